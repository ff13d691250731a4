"""Runs as the page shows them: read from their folders, and put together where they differ in the seed alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml
from numpy.typing import NDArray

from recbole_pad.errors import InputError
from recbole_pad.evaluation.table import read_reports
from recbole_pad.keys import WITHOUT_EFFECT

SPACES = ("id", "text", "aligned")  # in spaces.npz
_POINT_COLUMNS = ("count",)
_STARTED = re.compile(r"-(\d{4})(\d{2})(\d{2})T\d{6}-")
# Beside keys without effect: what is shown elsewhere, or makes no other model.
_NOT_OF_A_MODEL = WITHOUT_EFFECT | set(
    "seed model dataset backbone protocol resume init_checkpoint cold_split_seed".split()
)
_ALSO_SETTINGS = ("max_history", "positions")  # of a report's protocol: MAX_ITEM_LIST_LENGTH, positions


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: of its folder.
        report: result.json.
        settings: config.yaml, what the user set; empty where the folder has none.
        all_settings: all_settings.yaml, with the defaults.
        spaces: spaces.npz, {} where the folder has none.
    """

    name: str
    report: dict[str, Any]
    settings: dict[str, Any]
    all_settings: dict[str, Any]
    spaces: dict[str, NDArray[Any]]

    @property
    def date(self) -> str | None:
        """The day on which the run began, from the folder's name."""
        found = _STARTED.search(self.name)
        return "-".join(found.groups()) if found else None

    @property
    def seed(self) -> Any:
        """The seed, as result.json has it."""
        return self.report.get("seed")


@dataclass(frozen=True)
class Stat:
    """A mean over runs, and the standard deviation (n - 1), which one run does not have."""

    mean: float
    deviation: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Stat | None:
        """None for no values."""
        if not values:
            return None
        deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), deviation, len(values))


@dataclass(frozen=True)
class Model:
    """Runs of one model with the same settings, which differ in the seed.

    Attributes:
        label: model, backbone and what sets it apart from the others of the page.
        runs: in the order given.
    """

    label: str
    runs: list[Run] = field(default_factory=list)

    @property
    def phases(self) -> list[str]:
        """The phases of all runs, in order."""
        return list(dict.fromkeys(name for run in self.runs for name in run.report["phases"]))

    @property
    def seeds(self) -> str:
        """The seeds of the runs, as text."""
        return ", ".join(str(run.seed) for run in self.runs)

    def values(self, *keys: str) -> list[Any]:
        """What the runs' reports have under these keys; runs without it, or with null, are left out."""
        found = (look_up(run.report, *keys) for run in self.runs)
        return [value for value in found if value is not None]

    def stat(self, *keys: str) -> Stat | None:
        """Mean and deviation over the runs of a number in their reports."""
        return Stat.of([float(value) for value in self.values(*keys)])

    def names(self, *keys: str) -> list[str]:
        """The keys of a table in the runs' reports, in order."""
        return list(dict.fromkeys(name for table in self.values(*keys) for name in table))

    def last_phase_with(self, *keys: str) -> str | None:
        """The last phase whose entry has something under these keys."""
        return next((phase for phase in reversed(self.phases) if any(self.values("phases", phase, *keys))), None)


def look_up(table: Any, *keys: str) -> Any:
    """A value in nested dicts; None where a key is missing."""
    for key in keys:
        if not isinstance(table, dict) or key not in table:
            return None
        table = table[key]
    return table


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders, or their result.json files.

    Raises:
        InputError: as `read_reports` (no result, damaged, several datasets), for a run that is given twice, and for a
            damaged file of settings or of spaces.
    """
    folders = [path if path.is_dir() else path.parent for path in paths]
    places = [folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise InputError(f"{paths[number]}: this run is given twice; name each run once")
    reports = read_reports(paths)
    return [
        Run(
            place.name,
            report,
            _read_settings(folder / "config.yaml"),
            _read_settings(folder / "all_settings.yaml"),
            _read_spaces(folder / "spaces.npz"),
        )
        for folder, place, report in zip(folders, places, reports, strict=True)
    ]


def group_runs(runs: Sequence[Run]) -> list[Model]:
    """Put runs together that differ in the seed alone, in the order of their first runs.

    A second run of the same seed is another model: of other defaults or data, perhaps, and no seed of its own.
    """
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        name, number = f"{_model_name(run)} {sorted(_own_settings(run).items())}", 0
        while any(run.seed == other.seed for other in groups.get((name, number), [])):
            number += 1
        groups.setdefault((name, number), []).append(run)
    return [Model(label, own) for label, own in zip(_labels(list(groups.values())), groups.values(), strict=True)]


def _labels(groups: list[list[Run]]) -> list[str]:
    """Names of models; where several models share a name, with the settings in which they differ."""
    names = [_model_name(own[0]) for own in groups]
    settings = [_own_settings(own[0]) for own in groups]
    labels = []
    for name, own in zip(names, settings, strict=True):
        others = [other for other_name, other in zip(names, settings, strict=True) if other_name == name]
        differing = [key for key in own if any(other.get(key) != own[key] for other in others)]
        labels.append(name + (": " + ", ".join(f"{key}={own[key]}" for key in sorted(differing)) if differing else ""))
    return list(_told_apart(labels))


def _told_apart(labels: Sequence[str]) -> Iterator[str]:
    """The same labels; a later one that equals an earlier one gets a number."""
    for number, label in enumerate(labels):
        before = labels[:number].count(label)
        yield f"{label} #{before + 1}" if before else label


def _model_name(run: Run) -> str:
    backbone = run.report.get("backbone")
    return f"{run.report['model']} ({backbone})" if backbone else str(run.report["model"])


def _own_settings(run: Run) -> dict[str, str]:
    """What makes the model, with the protocol that it was trained and tested under."""
    protocol = {key: value for key, value in (run.report.get("protocol") or {}).items() if key not in _ALSO_SETTINGS}
    every = {**protocol, **run.settings}
    return {key: str(value) for key, value in every.items() if key not in _NOT_OF_A_MODEL}


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path}: is not a yaml file ({type(error).__name__}); remove it or run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds no settings but {type(content).__name__}; remove it or run again")
    return {str(key): value for key, value in content.items()}


def _read_spaces(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as content:
            columns = {name: content[name] for name in (*_POINT_COLUMNS, *SPACES) if name in content.files}
        n = len(columns["count"])
        if any(columns[name].shape != (n, 2) for name in SPACES if name in columns):
            raise ValueError("shapes do not agree")
    except (BadZipFile, ValueError, KeyError, OSError, EOFError, TypeError) as error:
        raise InputError(
            f"{path}: is not a file of spaces ({type(error).__name__}: {error}); remove it or run again"
        ) from error
    return columns
