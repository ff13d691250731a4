"""The backbones: RecBole's own sequential models, what each can do, why others cannot serve, and a user's own classes.

A backbone with rows ``sequences`` gives a causal state at every position, so one row per user trains all positions.
One with rows ``prefixes`` gives one state per row (attention on the last item, graphs, or layers that look ahead), so
every prefix is a row. Every ``sequences`` entry has a causality test.
"""

from __future__ import annotations

import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import recbole
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import get_model
from torch import Tensor

from recbole_pad.errors import InputError
from recbole_pad.registry import pick

Call = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def _sequence_and_length(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(item_seq, item_seq_len)


def _sequence_and_user(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(item_seq, user)


def _user_and_sequence(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(user, item_seq)


def _core(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    """CORE's state is a unit vector; its own scores divide by the temperature."""
    return core(item_seq) / core.temperature


def _masked_last(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    """BERT4Rec: the oldest slot goes, a mask token follows the newest item; its state predicts the next item."""
    last = item_seq_len[:, None] - 1
    shifted = torch.cat([item_seq[:, 1:], torch.zeros_like(item_seq[:, :1])], dim=1)
    states = core(shifted.scatter(1, last, core.mask_token))
    return states.gather(1, last[:, :, None].expand(-1, -1, states.size(-1))).squeeze(1)


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone. A user's own class says it of itself by an attribute `pad_backbone` (docs/backbones.md).

    Attributes:
        rows: ``sequences`` (causal states at all positions) or ``prefixes`` (one state per row).
        call: how RecBole's model is called; returns states (B, N, d) or (B, d).
        position_table: attribute path of the absolute position table, where positions may count from the newest item.
        fixed_length: the model needs item_seq of the full MAX_ITEM_LIST_LENGTH columns.
        spare_tables: further item tables of the model that PAD's vectors replace.
        has_mask_token: the item table has one more row, for a mask token.
        causal_encoder: attribute path of RecBole's `TransformerEncoder`, in a model whose other layers work on each
            position by itself: it then runs on the tokens of all rows, without padding.
    """

    rows: str
    call: Call = _sequence_and_length
    position_table: str | None = None
    fixed_length: bool = False
    spare_tables: tuple[str, ...] = ()
    has_mask_token: bool = False
    causal_encoder: str | None = None


BACKBONES: dict[str, BackboneSpec] = {
    "SASRec": BackboneSpec("sequences", position_table="position_embedding", causal_encoder="trm_encoder"),
    "GRU4Rec": BackboneSpec("sequences"),
    "BERT4Rec": BackboneSpec("prefixes", _masked_last, position_table="position_embedding", has_mask_token=True),
    "NARM": BackboneSpec("prefixes"),
    "Caser": BackboneSpec("prefixes", _user_and_sequence, fixed_length=True),
    "CORE": BackboneSpec("prefixes", _core, position_table="net.position_embedding"),
    "LightSANs": BackboneSpec("prefixes", fixed_length=True),
    "FEARec": BackboneSpec("prefixes", fixed_length=True),
    "STAMP": BackboneSpec("prefixes"),
    "SINE": BackboneSpec("prefixes", fixed_length=True),
    "HGN": BackboneSpec(
        "prefixes", _sequence_and_user, fixed_length=True, spare_tables=("item_embedding_for_prediction",)
    ),
}

_NO_INNER_PRODUCT = "its score is not an inner product of a user state and an item vector"
_NEEDS_FEATURES = "it needs item features or further files beside the interactions"
UNSUPPORTED = {
    "TransRec": _NO_INNER_PRODUCT + " (a translated distance)",
    "FPMC": _NO_INNER_PRODUCT + " (three factor tables)",
    "RepeatNet": "it returns scores over all items, not a state",
    "SASRecCPR": "it returns a list of states and keeps a second name for its item table",
    "GRU4RecCPR": "it keeps a second name for its item table, which PAD's vectors cannot replace",
    "GRU4RecKG": "it needs knowledge-graph files (.ent)",
    "KSR": "it needs knowledge-graph files (.ent)",
    "S3Rec": "it needs its own pre-training file",
    "DIN": "it is a click model without full ranking",
    "DIEN": "it is a click model without full ranking",
    "SRGNN": "no causal states, and its graph is rebuilt in Python for each row; not tried with replaced vectors",
    "GCSAN": "its graph is rebuilt in Python for each row; not tried with replaced vectors",
    "NextItNet": "it reads the tail of right-padded lists, so short histories see padding",
    "HRM": "it reads the tail of right-padded lists, so short histories see padding",
    "NPE": "it passes vectors through a ReLU in its own scoring",
    "SHAN": "it needs inverted sequences (transform: inverse_itemseq)",
    "FOSSIL": "not tried with replaced vectors",
    "GRU4RecF": _NEEDS_FEATURES,
    "SASRecF": _NEEDS_FEATURES,
    "FDSA": _NEEDS_FEATURES,
}


OWN_SPEC = BackboneSpec("prefixes", fixed_length=True)  # of an own class that says nothing and inherits no backbone
_RECBOLE_SETTINGS = Path(recbole.__file__).parent / "properties" / "model"
_LIBRARIES = ("recbole", "torch", "builtins", "typing", "abc")


def is_own(name: str) -> bool:
    """Whether a backbone is a user's own class, written ``module:Class``."""
    return ":" in name


def backbone_class(name: str) -> type[Any]:
    """The class of a backbone.

    Raises:
        InputError: if an own class cannot be imported, or is no sequential model of RecBole's kind.
    """
    if not is_own(name):
        found: type[Any] = get_model(name)
        return found
    try:
        own = pkgutil.resolve_name(name)
    except Exception as error:  # importing a user's module may raise anything
        raise InputError(
            f"backbone: {name!r} cannot be imported ({type(error).__name__}: {error}); write module:Class, and put the "
            "folder of the module on PYTHONPATH"
        ) from error
    if not (inspect.isclass(own) and issubclass(own, SequentialRecommender)):
        raise InputError(
            f"backbone: {name!r} is no class that inherits from recbole.model.abstract_recommender."
            "SequentialRecommender; name one that does"
        )
    if not all(getattr(sys.modules[source.__module__], "__file__", None) for source in _own_part(own)):
        raise InputError(f"backbone: {name!r} is not defined in a file; put the class into a module of its own")
    return own


def backbone_spec(name: str) -> BackboneSpec:
    """The spec of a backbone; of an own class its attribute `pad_backbone`, or what is safe for what it inherits from.

    Raises:
        InputError: if the model cannot serve as a backbone (with the reason), is unknown, or cannot be imported.
    """
    if is_own(name):
        spec = getattr(backbone_class(name), "pad_backbone", None) or _inherited_spec(name)
        if not isinstance(spec, BackboneSpec) or spec.rows not in ("sequences", "prefixes"):
            raise InputError(
                f"backbone: pad_backbone of {name} is {spec!r}; make it a recbole_pad.backbones.BackboneSpec, rows "
                "sequences or prefixes"
            )
        return spec
    if name in UNSUPPORTED:
        raise InputError(
            f"backbone: {name} cannot serve as a backbone of PAD: {UNSUPPORTED[name]}; choose one of "
            f"{', '.join(BACKBONES)}, or write module:Class for one of your own"
        )
    return pick(BACKBONES, name, "backbone")


def _inherited_spec(name: str) -> BackboneSpec:
    """How the RecBole model that an own class inherits from is called, without what the class may have changed."""
    ancestor = _recbole_ancestor(name)
    if ancestor not in BACKBONES:
        return OWN_SPEC
    return replace(BACKBONES[ancestor], rows="prefixes", fixed_length=True, position_table=None, causal_encoder=None)


def _recbole_ancestor(name: str) -> str:
    """The nearest model of RecBole's that a backbone is or inherits from; `SequentialRecommender` at the last."""
    return next(source.__name__ for source in backbone_class(name).__mro__ if source.__module__.startswith("recbole."))


def _own_part(own: type[Any]) -> list[type[Any]]:
    """An own class and what it inherits from, as far as it is nobody's library."""
    return [source for source in own.__mro__ if source.__module__.partition(".")[0] not in _LIBRARIES]


def settings_file(name: str) -> Path | None:
    """RecBole's property file of a backbone; of an own class that of the model it inherits from, or None."""
    file = _RECBOLE_SETTINGS / f"{_recbole_ancestor(name)}.yaml"
    return file if file.is_file() else None


def own_settings_files(name: str) -> list[Path]:
    """``<Class>.yaml`` beside the modules of an own class and of those it inherits from, these first; if present."""
    if not is_own(name):
        return []
    files = [_module_file(source).with_name(f"{source.__name__}.yaml") for source in _own_part(backbone_class(name))]
    return [file for file in reversed(files) if file.is_file()]


def own_files(name: str) -> list[Path]:
    """The files of an own class, modules and settings: results change with them. Empty for RecBole's models."""
    modules = {_module_file(source) for source in _own_part(backbone_class(name))} if is_own(name) else set()
    return [*sorted(modules), *own_settings_files(name)]


def _module_file(source: type[Any]) -> Path:
    return Path(str(sys.modules[source.__module__].__file__))


def train_rows_of(train_rows: str, backbone: str) -> str:
    """Resolve ``auto`` to the rows that the backbone allows.

    Raises:
        InputError: if ``sequences`` is asked for a backbone without causal states.
    """
    spec = backbone_spec(backbone)
    if train_rows == "auto":
        return spec.rows
    if train_rows == "sequences" and spec.rows == "prefixes":
        raise InputError(
            f"train_rows: sequences needs a causal state at every position, which {backbone} does not give; "
            "use train_rows: auto or prefixes"
        )
    return train_rows
