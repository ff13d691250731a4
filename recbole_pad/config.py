"""The settings of a run, typed and checked: PAD's, and what RecBole does not check of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

from recbole.evaluator.register import metric_information, metric_types
from recbole.utils import EvaluatorType

from recbole_pad.backbone_classes import backbone_spec
from recbole_pad.budget import AUTO
from recbole_pad.errors import InputError
from recbole_pad.nn.adapter import ACTIVATIONS, FUSIONS
from recbole_pad.nn.gate import EQUAL, GATE_NORMS, GATES, RANDOM, USER_GATES
from recbole_pad.nn.kernels import KERNELS
from recbole_pad.nn.losses import LOSSES, N_NEGATIVES
from recbole_pad.nn.mmd import ALIGN_LOSSES
from recbole_pad.nn.plda import TEXT_METRICS
from recbole_pad.phases import EXPERTS, PHASES
from recbole_pad.registry import pick

_LEARNERS = ("adam", "adamw", "sgd", "adagrad", "rmsprop", "sparse_adam")


@dataclass(frozen=True)
class PADConfig:
    """All settings of PAD, checked. Meaning, range and source of each: properties/model/PAD.yaml."""

    backbone: str
    phases: list[str]
    experts: list[str]
    train_rows: str
    train_windows: str
    positions: str
    bucket_by_length: bool
    text_encoder: str
    text_fields: list[str]
    text_template: str
    text_vectors_dir: str
    text_transform: str
    adapter_layers: int
    adapter_activation: str
    adapter_dropout: float
    adapter_init: str
    fusion: str
    fusion_activation: str
    fusion_dropout: float
    fusion_init: str
    loss: str
    n_negatives: int
    negatives: str
    negative_sampling: str
    unseen_items: str
    id_dropout: float
    align_start: str
    anchor_weight: float
    align_loss: str
    mmd_weight: float
    mmd_rows: str
    mmd_kernel: str
    mmd_bandwidths: list[float]
    infonce_temperature: float
    n_bins: int
    gate_form: str
    gate_norm: str
    gate_start: Any
    gate_users: str
    gate_learning_rate: float
    gate_fit: str
    gate_cold_weight: float
    match_decay: float
    match_metric: str
    repeat_term: str
    markov_decay: float
    expert_loss: str
    retrain_experts: bool
    learner: str
    learning_rate: float
    weight_decay: float
    weight_average: float
    epochs: int
    stopping_step: int | str
    seed: int
    score_memory_mb: int
    text_memory_mb: int
    sparse_updates: str
    precision: str
    compile: bool
    fused_optimizer: bool
    diagnostics: bool

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> PADConfig:
        """Read and check the settings.

        Args:
            config: RecBole's config, or the view of it that `phase_view` gives.

        Raises:
            InputError: for a missing key, an unknown word or a value out of range, naming the key.
        """
        missing = [field.name for field in fields(cls) if config[field.name] is None]
        if missing:
            raise InputError(f"config keys missing or null: {', '.join(missing)}; defaults: properties/model/PAD.yaml")
        values = {field.name: config[field.name] for field in fields(cls)}
        for key in ("text_fields", "phases", "experts"):
            values[key] = name_list(values[key])
        values["mmd_bandwidths"] = _as_list(values["mmd_bandwidths"])
        for key in ("text_encoder", "text_transform"):
            values[key] = joined(values[key])
        if values["n_negatives"] == AUTO:
            values["n_negatives"] = N_NEGATIVES.get(values["loss"], 1)
        settings = cls(**values)
        settings._check()
        return settings

    @property
    def text_columns(self) -> list[str]:
        """What `read_item_texts` makes the text of: columns, or one template."""
        return columns_or_template(self.text_fields, self.text_template)

    @property
    def fits_gate(self) -> bool:
        """Whether a gate is fitted on validation rows (`gate_fit: valid`), in a phase that has one."""
        has_gate = len(self.experts) > 1 and any(PHASES[phase].is_gated for phase in self.phases)
        return has_gate and self.gate_fit == "valid"

    def _check(self) -> None:
        backbone_spec(self.backbone)
        for key, table in _WORDS.items():
            chosen = getattr(self, key)
            for word in chosen if isinstance(chosen, list) else [chosen]:
                pick(dict.fromkeys(table), word, key)
        for key in (field.name for field in fields(self) if field.type == "bool"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(f"{key}: {getattr(self, key)!r} is neither True nor False")
        whole = {field.name for field in fields(self) if field.type in ("int", "int | str")}
        for key, (low, high) in _RANGES.items():
            if key == "stopping_step" and self.stopping_step == AUTO:
                continue
            check_number(key, getattr(self, key), low, high, key in whole)
        if not self.mmd_bandwidths or not all(_is_number(alpha) and alpha > 0 for alpha in self.mmd_bandwidths):
            raise InputError(f"mmd_bandwidths: {self.mmd_bandwidths} must be numbers > 0, at least one")
        if self.gate_start not in (EQUAL, RANDOM) and not _are_ends(self.gate_start):
            raise InputError(
                f"gate_start: {self.gate_start!r} is neither {EQUAL!r} nor {RANDOM!r} nor {{expert: [frequent, rare]}}"
            )
        for key in ("phases", "experts"):
            chosen = getattr(self, key)
            if not chosen or len(set(chosen)) != len(chosen):
                raise InputError(f"{key}: {chosen} must name at least one entry, each once")
        is_gated = any(PHASES[phase].is_gated for phase in self.phases)
        if is_gated and self.gate_fit == "train" and self.expert_loss == "separate" and len(self.experts) > 1:
            raise InputError(
                "gate_fit: train learns the gate from the loss of the mixture, but expert_loss: separate has none; set "
                "expert_loss: joint, or gate_fit: valid"
            )
        if is_gated and "markov" in self.experts and (self.expert_loss == "joint" or set(self.experts) == {"markov"}):
            raise InputError(
                "experts: markov has no vectors, so it cannot be alone and the joint loss cannot contain it; set "
                "expert_loss: separate, or leave markov out"
            )
        if self.anchor_weight == 0 and "align" in self.phases and (self.align_loss == "none" or self.mmd_weight == 0):
            raise InputError("anchor_weight: 0 leaves the phase align without a loss; set align_loss and mmd_weight")
        order = [name for name in _WORDS["phases"] if name in self.phases]
        if self.phases != order:
            raise InputError(f"phases: {self.phases} must keep the order {order}")


def name_list(given: Any) -> list[str]:
    """Names of columns, phases or experts, from a list or a text.

    A text is as a command line has it: ``a,b``, ``[a, b]``, ``['a', 'b']``.
    """
    if isinstance(given, str):
        given = [name.strip().strip("'\"") for name in given.strip().strip("[]").split(",")]
    return [str(name) for name in given]


def experts_to_load(config: Any) -> list[str] | None:
    """The experts of config key `init_experts`; None: all that the file of `init_checkpoint` holds."""
    return None if config["init_experts"] is None else name_list(config["init_experts"])


def columns_or_template(fields: Any, template: Any) -> list[str]:
    """What a text is made of, for `read_item_texts`: the template alone if there is one, else the columns."""
    return [str(template)] if template else name_list(fields)


def joined(parts: Any) -> str:
    """``[a, b]``, and "[a,b]" as the command line has it, in the form ``a+b``."""
    if isinstance(parts, str) and parts.startswith("[") and parts.endswith("]"):
        parts = parts[1:-1].split(",")
    return "+".join(str(part).strip() for part in parts) if isinstance(parts, (list, tuple)) else str(parts)


def check_number(key: str, value: Any, low: float, high: float, is_whole: bool = False) -> None:
    """Refuse what is not a (whole) number in [low, high].

    Raises:
        InputError: naming the key, the value and the range.
    """
    if not _is_number(value, is_whole) or not low <= value <= high:
        raise InputError(f"{key}: {value!r} is not {'a whole number' if is_whole else 'a number'} in [{low}, {high}]")


def check_run(config: Any) -> None:
    """Refuse values of RecBole's own keys that would only fail in the middle of a run, of any model.

    Raises:
        InputError: naming the key, the value and what it may be.
    """
    for key, (low, high) in _RECBOLE_RANGES.items():
        if config[key] is not None:
            check_number(key, config[key], low, high, isinstance(low, int))
    for metric in _as_list(config["metrics"]):
        if set(metric_information.get(str(metric).lower(), ())) & _NO_TENSORS:
            raise InputError(f"metrics: RecBole 1.2.1 fails on {metric} at the first validation; leave it out")
    name, at, k = str(config["valid_metric"]).lower().partition("@")
    metrics, topk = (_as_list(config[key]) for key in ("metrics", "topk"))
    has_k = metric_types.get(name) == EvaluatorType.RANKING and name != "gauc"
    is_computed = name in [str(metric).lower() for metric in metrics] and bool(at) == has_k
    if config["eval_step"] and not (is_computed and (not at or k in map(str, topk))):
        raise InputError(
            f"valid_metric: {config['valid_metric']} is not computed; metrics: {metrics}, topk: {topk}. Add it there, "
            "or set another valid_metric"
        )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_number(value: Any, is_whole: bool = False) -> bool:
    return isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool)


def _are_ends(start: Any) -> bool:
    """Whether this is {expert: [number, number], ...}."""
    return isinstance(start, Mapping) and all(
        isinstance(ends, (list, tuple)) and len(ends) == 2 and all(map(_is_number, ends)) for ends in start.values()
    )


_WORDS: dict[str, tuple[str, ...]] = {
    "phases": tuple(PHASES),
    "experts": EXPERTS,
    "train_rows": ("auto", "sequences", "prefixes"),
    "train_windows": ("last", "all"),
    "positions": ("auto", "recency", "absolute"),
    "adapter_activation": tuple(ACTIVATIONS),
    "adapter_init": ("matched", "xavier"),
    "fusion": tuple(FUSIONS),
    "fusion_activation": tuple(ACTIVATIONS),
    "fusion_init": ("sum", "xavier"),
    "loss": LOSSES,
    "negatives": ("seen", "all"),
    "negative_sampling": ("uniform", "popularity"),
    "unseen_items": ("mean", "raw"),
    "align_loss": (*ALIGN_LOSSES, "none"),
    "mmd_rows": ("unique", "all"),
    "mmd_kernel": tuple(KERNELS),
    "gate_norm": tuple(GATE_NORMS),
    "gate_form": tuple(GATES),
    "gate_users": tuple(USER_GATES),
    "match_metric": TEXT_METRICS,
    "repeat_term": ("valid", "none"),
    "align_start": ("pretrain", "random"),
    "gate_fit": ("train", "valid", "none"),
    "expert_loss": ("joint", "separate"),
    "learner": _LEARNERS,
    "sparse_updates": ("auto", "always", "never"),
    "precision": ("float32", "bfloat16"),
}
_NO_TENSORS = {
    "data.num_items",
    "data.num_users",
    "data.count_items",
    "data.count_users",
}  # no tensors: .cpu() fails
# Of RecBole's keys, where they are set; whole numbers where the lower end is one.
_RECBOLE_RANGES: dict[str, tuple[float, float]] = {
    "train_batch_size": (1, 10**9),
    "eval_batch_size": (1, 10**9),
    "MAX_ITEM_LIST_LENGTH": (1, 1_000_000),
    "seed": (0, 2**32 - 1),
    "train_seconds": (0.0, 1e9),
    "hidden_dropout_prob": (0.0, 0.99),
    "attn_dropout_prob": (0.0, 0.99),
    "dropout_prob": (0.0, 0.99),
}
_RANGES: dict[str, tuple[float, float]] = {
    "adapter_layers": (0, 64),
    "adapter_dropout": (0, 0.99),
    "fusion_dropout": (0, 0.99),
    "n_negatives": (1, 100_000),
    "id_dropout": (0, 0.99),
    "anchor_weight": (0, 1e6),
    "mmd_weight": (0, 1e6),
    "infonce_temperature": (1e-4, 100),
    "n_bins": (1, 10_000),
    "gate_learning_rate": (0, 10),
    "match_decay": (0, 1),
    "markov_decay": (0, 1),
    "weight_average": (0, 0.999999),
    "gate_cold_weight": (1e-3, 1e3),
    "learning_rate": (0, 10),
    "weight_decay": (0, 10),
    "epochs": (0, 1_000_000),
    "stopping_step": (0, 1_000_000),
    "score_memory_mb": (1, 10_000_000),
    "text_memory_mb": (0, 10_000_000),
}


def phase_view(config: Any, phase: str) -> Any:
    """A copy of RecBole's config in which `<phase>.<key>` has replaced `<key>`."""
    view = copy.copy(config)
    view.final_config_dict = dict(config.final_config_dict)
    prefix = f"{phase}."
    for key, value in config.final_config_dict.items():
        if key.startswith(prefix):
            view.final_config_dict[key[len(prefix) :]] = value
    return view
