"""Files of a run: written whole or not at all, read without unpickling, and found again by fingerprint."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import recbole_pad
from recbole_pad.backbone_classes import own_files
from recbole_pad.config import PADConfig, experts_to_load, phase_view
from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.dataset_prep.files import write_text, write_whole
from recbole_pad.errors import InputError
from recbole_pad.keys import FIRST_READ_IN, WITHOUT_EFFECT
from recbole_pad.phases import PHASES, STARTS_FROM, WITHOUT_TEXT

FORMAT = "recbole_pad checkpoint 1"
NUMBERS = 6  # raised with every change that moves the numbers of a run: older phases are then not taken from a cache

# Beside keys without effect: what the fingerprint holds in another form, or what comes after training.
_NOT_FINGERPRINTED = WITHOUT_EFFECT | set(
    "config_files config_file resume single_spec url eval_batch_size metrics topk "  # of the run and its evaluation
    "phases experts init_checkpoint init_experts "  # there as members and digests
    "text_encoder text_fields text_template "  # a digest of the vectors
    "exact_times cold_split cold_split_seed global_time_cuts".split()  # a digest of the data
)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; NaN is refused."""
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    write_text(path, text + "\n")


def save(path: Path, content: dict[str, Any]) -> None:
    """Save tensors and plain values, whole or not at all, so that `load` can read them without unpickling."""
    write_whole(path, lambda temporary: torch.save({"format": FORMAT, **content}, temporary))


def load(path: Path, device: Any = "cpu") -> dict[str, Any]:
    """Read a file that `save` wrote.

    Raises:
        InputError: if the file is missing, truncated, or not one of ours.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such checkpoint; give a file that a run of PAD wrote (pretrain.pth, align.pth, ...)"
        )
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=True)  # tables are not held twice
    except Exception as error:  # torch raises half a dozen types for a damaged or a foreign file
        raise InputError(
            f"{path}: cannot be read as a checkpoint of recbole-pad ({type(error).__name__}): it is truncated or was "
            "written by another program; delete it and train again, or name another file"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{path}: is not a checkpoint of a PAD phase (format {FORMAT!r}); name a file such as "
            "<run folder>/pretrain.pth. RecBole's own checkpoints are read by load_data_and_model"
        )
    return content


def fingerprint(config: Any, dataset: Any, phase: str) -> str:
    """A name for everything that determines the weights at the end of a phase: data, texts, settings, seed, version.

    Settings that only later phases read are left out, so variants share equal phases.

    Args:
        config: RecBole's config.
        dataset: the training split of `PADDataset`.
        phase: the phase; the earlier ones of config key `phases` count too.
    """
    settings = PADConfig.read(config)
    phases = settings.phases[: settings.phases.index(phase) + 1]
    later = list(PHASES)[list(PHASES).index(phase) + 1 :]
    unread = _NOT_FINGERPRINTED | {key for name in later for key in FIRST_READ_IN.get(name, ())}
    content = {
        "version": [recbole_pad.__version__, NUMBERS],
        "phases": phases,
        "data": dataset.histories.digest(),
        "counts": hashlib.sha256(dataset.train_counts.tobytes()).hexdigest(),
        "settings": {name: _settings_of(phase_view(config, name), unread) for name in phases},
    }
    members = {name for done in phases for name in PHASES[done].members(settings.experts)}
    if members - WITHOUT_TEXT:
        table = dataset.text_table
        content["text"] = [table.fingerprint, hashlib.sha256(table.rows.tobytes()).hexdigest()]
    if files := own_files(settings.backbone):
        content["backbone"] = [file_sha256(file) for file in files]
    if "TS" in config["eval_args"]["split"]:  # which validation rows stop the training
        content["global_time_cuts"] = bool(config["global_time_cuts"])
    if PHASES[phase].is_gated:
        content["experts"] = settings.experts
        # where validation rows are many, the gate is fitted on some batches of them
        content["eval_batch_size"] = config["eval_batch_size"]
    wanted = experts_to_load(config)
    loaded = members | {STARTS_FROM[name] for name in members if name in STARTS_FROM}  # an expert may start as a copy
    if config["init_checkpoint"] and (wanted is None or loaded & set(wanted)):
        content["init"] = _initial_weights(Path(config["init_checkpoint"]))
        content["init_experts"] = wanted
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _initial_weights(path: Path) -> str:
    """A name for the weights in a phase's file: its fingerprint, or (a trainer used alone stores none) its bytes."""
    content = load(path)
    return str((content.get("finished") and content.get("fingerprint")) or file_sha256(path))


def _settings_of(config: Any, unread: frozenset[str]) -> dict[str, str]:
    return {
        key: repr(_with_lists(value))
        for key, value in sorted(config.final_config_dict.items())
        if key not in unread and "." not in key and not isinstance(value, type)
    }


def _with_lists(value: Any) -> Any:
    """Tuples as lists, as they come back from a YAML file."""
    if isinstance(value, (list, tuple)):
        return [_with_lists(entry) for entry in value]
    return {key: _with_lists(entry) for key, entry in value.items()} if isinstance(value, dict) else value


class RunFolder:
    """The folder of one run: ``<checkpoint_dir>/<model>-<dataset>-<time>-<name>``.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: Any, name: str) -> RunFolder:
        """A new, empty folder that no other run has; `name` is what `find` looks for."""
        parent = Path(config["checkpoint_dir"])
        stem = f"{config['model']}-{config['dataset']}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        for number in range(1, 10_000):
            path = parent / (f"{stem}-{name}" if number == 1 else f"{stem}.{number}-{name}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            return cls(path)
        raise InputError(f"{parent}: 10,000 runs started in this second; set another checkpoint_dir")

    @classmethod
    def find(cls, config: Any, name: str) -> RunFolder | None:
        """The newest run of these settings, if there is one."""
        pattern = f"{config['model']}-{config['dataset']}-*-{name}"
        found = sorted(Path(config["checkpoint_dir"]).glob(pattern), key=lambda path: path.stat().st_mtime)
        return cls(found[-1]) if found else None

    def phase_file(self, phase: str) -> Path:
        """Best weights of a phase."""
        return self.path / f"{phase}.pth"

    @property
    def last_file(self) -> Path:
        """State at the start of the epoch under way, to continue a killed run from."""
        return self.path / "last.pth"

    @property
    def model_file(self) -> Path:
        """The final model as a RecBole checkpoint, for `load_data_and_model`."""
        return self.path / "model.pth"

    @property
    def result_file(self) -> Path:
        """The result of the run."""
        return self.path / "result.json"
