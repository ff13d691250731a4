"""What a run leaves in its folder: result.json, the settings it had, test ranks and spaces of items."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from logging import getLogger
from pathlib import Path
from typing import Any

import yaml

import recbole_pad
from recbole_pad import diagnose
from recbole_pad.checkpoint import RunFolder, write_json
from recbole_pad.data.item_file import columns_of_texts
from recbole_pad.dataset_prep.encoders.base import package_version
from recbole_pad.dataset_prep.files import write_text, write_whole
from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.evaluate import ItemGroups, evaluate_split, split_ranks
from recbole_pad.evaluation.rank_files import RANKS_FILE, write_ranks
from recbole_pad.keys import FOLDER_KEYS, PROCESS_KEYS
from recbole_pad.registration import has_our_backbone
from recbole_pad.training import Training

RESULT_FORMAT = 1
_REPORTED = tuple(  # of a phase's record
    "seconds peak_memory_mb epochs best_epoch best_valid_result train_loss valid_curve reused_from".split()
)


def phase_reports(
    training: Training,
    trainer: Any,
    loaders: Mapping[str, Any],
    groups: ItemGroups | None,
    test_ranks: Ranks | None,
    diagnostics: diagnose.Diagnostics | None,
) -> tuple[dict[str, Any], dict[str, Ranks]]:
    """Each phase's own model on both held-out splits, and its test ranks, where there are `groups`.

    Args:
        training: of the run, finished.
        trainer: that trained the model.
        loaders: ``valid`` and ``test``.
        groups: of the items; None: no report by groups.
        test_ranks: of the last phase, which are not computed again.
        diagnostics: that followed the training, if any.

    Returns:
        phase -> its part of result.json, and phase -> test ranks.
    """
    split = trainer.config["eval_args"]["split"]
    reports: dict[str, Any] = {}
    ranks: dict[str, Ranks] = {}
    for phase, record in training.records.items():
        training.enter(phase)
        reports[phase] = {key: getattr(record, key) for key in _REPORTED}
        if groups is not None:
            is_last = phase == list(training.records)[-1]
            ranks[phase] = (test_ranks if is_last else None) or split_ranks(
                trainer, loaders["test"], groups.pairs(split, "test")
            )
            for name, known in (("valid", None), ("test", ranks[phase])):
                reports[phase][name] = evaluate_split(trainer, loaders[name], groups, split, name, ranks=known)
        if diagnostics is not None:
            reports[phase]["diagnostics"] = diagnostics.report()
    return reports, ranks


def header(config: Any, network: Any, dataset: Any) -> dict[str, Any]:
    """What result.json says of the run before its figures: protocol, texts, machine and versions."""
    return {
        "format": RESULT_FORMAT,
        "model": config["model"],
        "backbone": config["backbone"] if has_our_backbone(config["model"]) else None,
        "dataset": config["dataset"],
        "seed": config["seed"],
        "protocol": {
            "split": config["eval_args"]["split"],
            "ranking": config["eval_args"]["mode"],
            "mask_history": bool(config["mask_history"]),
            **{key: config[key] for key in ("cold_split", "cold_split_seed") if config["cold_split"]},
            **{key: config[key] for key in ("global_time_cuts",) if "TS" in config["eval_args"]["split"]},
            "valid_metric": config["valid_metric"],
            "max_history": config["MAX_ITEM_LIST_LENGTH"],
            "positions": config["positions"] if has_our_backbone(config["model"]) else None,
        },
        "text": _text(config, network, dataset),
        "repeat_term": float(network.repeats.shift) if hasattr(network, "repeats") else None,
        "n_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "command": sys.argv if multiprocessing.parent_process() else sys.orig_argv,  # sys.argv is cut for RecBole
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count(), "device": str(config["device"])},
        "versions": _versions(),
    }


def _text(config: Any, network: Any, dataset: Any) -> dict[str, Any] | None:
    """What the model reads of the items' texts; None: nothing."""
    if getattr(network, "text_fingerprint", None) is None:
        return None
    reads = {key: config[f"text_{key}"] for key in ("encoder", "transform")}
    with suppress(InputError):  # own vectors need no texts
        reads["columns"] = columns_of_texts(dataset)
    return {**reads, "sha256": network.text_fingerprint}


def _versions() -> dict[str, str]:
    packages = ("recbole", "torch", "numpy", "pandas", "transformers", "sentence-transformers")
    return {
        "python": platform.python_version(),
        "recbole-pad": recbole_pad.__version__,
        **{package: package_version(package) for package in packages},
    }


def write_result(
    folder: RunFolder,
    report: dict[str, Any],
    config: Any,
    ranks: Mapping[str, Ranks],
    groups: ItemGroups | None,
    diagnostics: diagnose.Diagnostics | None,
) -> None:
    """Write result.json, the settings, and (where there are `groups`, `diagnostics`) test ranks and spaces of items."""
    if groups is not None:
        write_whole(folder.path / RANKS_FILE, partial(write_ranks, ranks, groups.counts))
    if diagnostics is not None:
        write_whole(folder.path / diagnose.SPACES_FILE, diagnostics.write)
    write_json(folder.result_file, report)
    _write_yaml(folder.path / "config.yaml", _given(config))
    _write_yaml(folder.path / "all_settings.yaml", config.final_config_dict)
    getLogger().info(f"result: {folder.result_file}")


def _given(config: Any) -> dict[str, Any]:
    """What was set, so that it can be passed as --config_files; places from the root, for another working directory."""
    given = {"model": config["model"], "dataset": config["dataset"], **config.external_config_dict}
    if config["text_vectors_dir"]:
        given.setdefault("text_vectors_dir", config["text_vectors_dir"])
    for key in FOLDER_KEYS:
        if given.get(key):
            given[key] = str(Path(given[key]).absolute())
    return {key: value for key, value in given.items() if key not in PROCESS_KEYS}


def _write_yaml(path: Path, settings: dict[str, Any]) -> None:
    text = yaml.safe_dump({key: yaml_value(value) for key, value in settings.items()}, sort_keys=False)
    write_text(path, text)


def yaml_value(value: Any) -> Any:
    """A setting as YAML can hold it."""
    if isinstance(value, (list, tuple)):
        return [yaml_value(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): yaml_value(entry) for key, entry in value.items()}
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
