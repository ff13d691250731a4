"""`recbole-pad experiment`: runs an experiment's variants and writes its table, figure and page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell, CellResult, Grid, on_screen
from recbole_pad.experiments.definition import Experiment, StudyVariant
from recbole_pad.experiments.figures import draw, require_matplotlib
from recbole_pad.experiments.measures import Measure, Row, measures_of
from recbole_pad.experiments.outcome import (
    CELLS,
    Outcome,
    require_each_once,
    require_rows,
    rows_of_cells,
    write_outcome,
)
from recbole_pad.experiments.pages import Choice, experiment_page, grouped
from recbole_pad.experiments.paired_tests import PairedTest, against_reference
from recbole_pad.experiments.variants import is_trained
from recbole_pad.keys import PLACES

RESULTS = Path("experiment")


def run_experiment(
    experiment: Experiment,
    dataset: str,
    seeds: Sequence[int],
    shared: Mapping[str, Any],
    output: Path = RESULTS,
    cells: Path = CELLS,
    jobs: int = 1,
    command: str = "",
    say: Callable[[str], None] = on_screen,
) -> Outcome:
    """Run what is missing of an experiment and write ``<name>-<dataset>.md``, ``.json``, ``.csv``, ``.png``, ``.svg``.

    Args:
        experiment: see `definition.read_experiment`.
        dataset: its name.
        seeds: of every variant; tuning uses the first ones.
        shared: settings of all variants, over those of the experiment; a variant's own win over them.
        output: folder of the files.
        cells: folder of the runs; equal phases are trained once.
        jobs: runs at the same time.
        command: for the record.
        say: takes progress lines.

    Raises:
        InputError: for no seed, one that comes twice, no matplotlib, or when no cell has a result.
    """
    require_each_once("seeds", seeds)
    require_matplotlib()
    grid = Grid(cells, jobs, say)
    plan = _Plan(experiment, dataset, seeds, shared, grid)
    choices = plan.choose()
    planned = plan.cells()
    results = grid.results([cell for group in planned.values() for cell in group])
    rows = _rows(experiment, dataset, planned, results)
    require_rows(rows, grid.failures)
    tests = _tests(experiment, rows)
    extra = {heading: [_extra(row, path) for row in rows] for heading, path in experiment.extra.items()}
    stem = f"{experiment.name}-{dataset}"
    files = {suffix: output / f"{stem}.{suffix}" for suffix in ("md", "json", "csv", "png", "svg")}
    of_all = {key: value for key, value in shared.items() if key not in PLACES}
    told = replace(experiment, settings={**experiment.settings, **of_all})
    page = experiment_page(told, dataset, rows, tests, choices, grid.failures, extra, command, stem)
    write_outcome(page, rows, tests, files, choices)
    for suffix in ("png", "svg"):
        write_whole(files[suffix], partial(draw, rows, f"{experiment.title} ({dataset})", suffix))
    return Outcome(rows, tests, grid.failures, list(files.values()), choices)


class _Plan:
    """The cells of an experiment, once the tuned values are chosen."""

    def __init__(
        self, experiment: Experiment, dataset: str, seeds: Sequence[int], shared: Mapping[str, Any], grid: Grid
    ) -> None:
        self._experiment, self._dataset, self._seeds, self._shared = experiment, dataset, seeds, shared
        self._grid = grid
        self._chosen: dict[str, dict[str, Any]] = {}

    def cells(self) -> dict[str, list[Cell]]:
        """Label -> a cell for each seed."""
        return {
            label: [self._cell(variant, seed) for seed in self._seeds_of(variant)]
            for label, variant in self._experiment.variants.items()
        }

    def choose(self) -> list[Choice]:
        """Run every value of every tuned variant on the tuning seeds, and keep what validation prefers."""
        tuned = [variant for variant in self._experiment.variants.values() if variant.tune]
        seeds = self._seeds[: int(self._experiment.tuning.get("seeds", 1))]
        trials = {
            (variant.label, json.dumps(value)): [self._cell(variant, seed, {key: value}, tuning=True) for seed in seeds]
            for variant in tuned
            for key, values in variant.tune.items()
            for value in values
        }
        results = self._grid.results([cell for cells in trials.values() for cell in cells])
        choices = []
        for variant in tuned:
            key = next(iter(variant.tune))
            scores = {
                value: float(np.mean([_valid_score(results[cell]) for cell in cells]))
                for (label, value), cells in trials.items()
                if label == variant.label and all(cell in results for cell in cells)
            }
            if not scores:
                raise InputError(f"{variant.label}: no value of {key} could be tried; {self._grid.failures}")
            best = max(scores, key=lambda value: scores[value])
            self._chosen[variant.label] = {key: json.loads(best)}
            choices.append(Choice(variant.label, key, scores, json.loads(best)))
        return choices

    def _seeds_of(self, variant: StudyVariant) -> Sequence[int]:
        return self._seeds if is_trained(variant.model) else self._seeds[:1]

    def _cell(
        self, variant: StudyVariant, seed: int, values: Mapping[str, Any] | None = None, tuning: bool = False
    ) -> Cell:
        own = self._chosen.get(variant.label, {}) if values is None else values
        settings = {**self._experiment.settings, **self._shared, **variant.settings, **own}
        trial = self._experiment.tuning.get("settings", {}) if tuning else {}
        start = variant.start if "phases" not in trial else None
        first = None if start is None else self._cell(self._experiment.variants[start], seed)
        experts = variant.start_experts if first is not None else ()
        label = variant.label
        if tuning:  # on screen; cells that differ in the label alone share their run
            label += f" ({', '.join(f'{key}: {json.dumps(value)}' for key, value in own.items())})"
        return Cell(self._dataset, label, variant.model, {**settings, **trial}, seed, first, experts)


def _valid_score(result: CellResult) -> float:
    """NDCG@10 on validation rows, with the run's own protocol, after its last phase."""
    protocol = "masked" if result.report["protocol"]["mask_history"] else "unmasked"
    last = list(result.report["phases"].values())[-1]
    return measures_of(last["valid"])[Measure(protocol, "all", "ndcg@10")]


def _rows(
    experiment: Experiment, dataset: str, cells: Mapping[str, Sequence[Cell]], results: Mapping[Cell, CellResult]
) -> list[Row]:
    rows: list[Row] = []
    for label, group in cells.items():
        if label in experiment.hidden:
            continue
        own = rows_of_cells(dataset, label, group, results)
        shown = [row for row in own if row.phase in experiment.show]
        rows += shown or [row for row in own if row.is_last]  # a model without these phases, too
    return rows


def _tests(experiment: Experiment, rows: Sequence[Row]) -> list[PairedTest]:
    tests = []
    for own in grouped(experiment, rows).values():
        reference = next((row for row in own if row.label == experiment.reference), None)
        if reference is not None:
            tests += against_reference(own, reference)
    return tests


def _extra(row: Row, path: str) -> str:
    """A number below each run's entry of the phase, as mean ± standard deviation; empty where a run has none."""
    values = []
    for result in row.results.values():
        value: Any = result.report["phases"][row.phase]
        for word in path.split("."):
            value = value.get(word) if isinstance(value, dict) else None
        if value is None:
            return ""
        values.append(float(value))
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"
