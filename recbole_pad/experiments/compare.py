"""`recbole-pad compare`: models through the same data, split, protocol and budget, and a table with tests."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

import recbole_pad
from recbole_pad.checkpoint import write_json, write_whole
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell, CellResult, Grid, on_screen
from recbole_pad.experiments.comparison import PairedTest, against_best_other
from recbole_pad.experiments.measures import Row, rows_of
from recbole_pad.experiments.tables import (
    as_json,
    csv_text,
    groups_table,
    latex_table,
    markdown_table,
    paired_tests_table,
)
from recbole_pad.experiments.variants import Variant

CELLS = Path("cells")


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        rows: of all datasets; PAD has a row for each phase.
        tests: the first variant against the best other one, on each dataset.
        failures: cell -> why it has no result.
        files: what was written.
    """

    rows: list[Row]
    tests: list[PairedTest]
    failures: dict[str, str]
    files: list[Path]


def compare(
    variants: Sequence[Variant],
    datasets: Sequence[str],
    seeds: Sequence[int],
    shared: Mapping[str, Any],
    output: Path,
    cells: Path = CELLS,
    jobs: int = 1,
    command: str = "",
    say: Callable[[str], None] = on_screen,
) -> Comparison:
    """Run every variant on every dataset with every seed, as far as that is not done, and write the tables.

    A cell that fails does not stop the others; the tables then say what is missing.

    Args:
        variants: the first is tested against the best of the others.
        datasets: names.
        seeds: for all variants that train.
        shared: settings of all cells; a variant's own win over them.
        output: folder of ``comparison.md``, ``.json``, ``.csv`` and ``.tex``.
        cells: folder of the runs; several comparisons may share it.
        jobs: cells at the same time.
        command: for the record.
        say: takes progress lines.

    Raises:
        InputError: for no seed or dataset, one that comes twice, or when no cell has a result.
    """
    for name, given in (("seeds", seeds), ("datasets", datasets)):
        if not given or len(set(given)) != len(given):
            raise InputError(f"{name}: {list(given)} must name at least one, each once")
    planned = {
        (dataset, variant.label): variant.cells(dataset, shared, seeds) for dataset in datasets for variant in variants
    }
    for variant in variants:
        if ignored := variant.ignored(shared):
            say(f"{variant.label} does not know {', '.join(ignored)}, which the other models get")
    grid = Grid(cells, jobs, say)
    results = grid.results([cell for group in planned.values() for cell in group])
    rows = [row for (dataset, label), group in planned.items() for row in _rows(dataset, label, group, results)]
    if not rows:
        raise InputError(f"no cell has a result; the first failure: {next(iter(grid.failures.values()))}")
    tests = against_best_other(rows, variants[0].label)
    page = _page(rows, tests, grid.failures, command, shared)
    captions = {name: f"{name}: test, full ranking, %, mean and standard deviation over seeds" for name in datasets}
    latex = [latex_table(own, captions[name]) for name in datasets if (own := [r for r in rows if r.dataset == name])]
    output.mkdir(parents=True, exist_ok=True)
    texts = {".md": page, ".csv": csv_text(rows), ".tex": "\n\n".join(latex) + "\n"}
    for suffix, text in texts.items():
        _write(output / f"comparison{suffix}", text)
    write_json(output / "comparison.json", as_json(rows, tests))
    files = [output / f"comparison{suffix}" for suffix in (*texts, ".json")]
    return Comparison(rows, tests, grid.failures, files)


def _rows(dataset: str, label: str, group: Sequence[Cell], results: Mapping[Cell, CellResult]) -> list[Row]:
    found = {cell.seed: results[cell] for cell in group if cell in results}
    return rows_of(dataset, label, found) if found else []


def _write(path: Path, text: str) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _page(
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    failures: Mapping[str, str],
    command: str,
    shared: Mapping[str, Any],
) -> str:
    parts = ["# Comparison", protocol_text(rows), f"```bash\n{command}\n```" if command else ""]
    for dataset in dict.fromkeys(row.dataset for row in rows):
        own = [row for row in rows if row.dataset == dataset]
        last = [row for row in own if row.is_last]
        parts += [f"## {dataset}", markdown_table(own)]
        parts += [
            "HR@10 by train frequency of the target, history masked / not masked:",
            groups_table(last, "frequency"),
        ]
        parts += ["The same by bin (1: most frequent items, all bins of equal train mass):", groups_table(last, "bin")]
    if tests:
        parts += ["## Tests", TESTS_TEXT, paired_tests_table(tests)]
    if failures:
        parts += ["## Missing", "\n".join(f"- {cell}: {why}" for cell, why in failures.items())]
    return "\n\n".join(part for part in parts if part) + "\n"


TESTS_TEXT = (
    "The first model against the best other one on each measure (NDCG@10). Users: paired bootstrap over test rows, "
    "10,000 resamples, each row's value being the mean over seeds; it says nothing of the noise between seeds. Seeds: "
    "paired t-test over common seeds. Corrected: Holm, over all tests of this table. The best other model is chosen by "
    "its test result, which makes the test harder, not easier, for the first."
)


def protocol_text(rows: Sequence[Row]) -> str:
    """What the numbers are: protocol, seeds, machine, versions."""
    reports = [result.report for row in rows for result in row.results.values()]
    protocol = reports[0]["protocol"]
    seeds = sorted({seed for row in rows for seed in row.results})
    split = "leave-one-out" if "LS" in protocol["split"] else f"split {protocol['split']}"
    machines = sorted({f"{report['machine']['platform']}, {report['machine']['device']}" for report in reports})
    return (
        f"Test split, {split}, full ranking over all items, HR@10 / NDCG@10 in %, mean ± standard deviation over "
        f"seeds ({', '.join(map(str, seeds))}; models with nothing to train: one run). Masked: the user's whole "
        f"history cannot be recommended; every run is ranked both ways. Early stopping on {protocol['valid_metric']}, "
        f"history {'' if protocol['mask_history'] else 'not '}masked. Cold: targets with train frequency 0-5; over "
        "100: above 100. Bold: best of the column. Seconds: training and validation, without the test; of shared "
        "phases, what they took once.\n\n"
        f"Machine: {'; '.join(machines)}, {psutil.cpu_count(logical=False)} cores; recbole-pad "
        f"{recbole_pad.__version__}, torch {torch.__version__}, RecBole {version('recbole')}, Python "
        f"{platform.python_version()}."
    )
