"""`recbole-pad compare`: models through the same data, split, protocol and budget, and a table with tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_pad.checkpoint import write_json
from recbole_pad.dataset_prep.files import write_text
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell, CellResult, Grid, on_screen
from recbole_pad.experiments.measures import Row, rows_of
from recbole_pad.experiments.pages import comparison_page
from recbole_pad.experiments.paired_tests import PairedTest, against_best_other
from recbole_pad.experiments.tables import as_json, csv_text, latex_table
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
    name: str = "comparison",
) -> Comparison:
    """Run every variant on every dataset with every seed, as far as that is not done, and write the tables.

    A cell that fails does not stop the others; the tables then say what is missing.

    Args:
        variants: the first is tested against the best of the others.
        datasets: names.
        seeds: for all variants that train.
        shared: settings of all cells; a variant's own win over them.
        output: folder of ``<name>.md``, ``.json``, ``.csv`` and ``.tex``.
        cells: folder of the runs; several comparisons may share it.
        jobs: cells at the same time.
        command: for the record.
        name: of the files.

    Raises:
        InputError: for no seed or dataset, one that comes twice, or when no cell has a result.
    """
    if not name or Path(name).name != name:
        raise InputError(f"name: {name!r} must be the name of a file, without its folder; set output for that")
    for what, given in (("seeds", seeds), ("datasets", datasets)):
        if not given or len(set(given)) != len(given):
            raise InputError(f"{what}: {list(given)} must name at least one, each once")
    planned = {
        (dataset, variant.label): variant.cells(dataset, shared, seeds) for dataset in datasets for variant in variants
    }
    for variant in variants:
        if ignored := variant.ignored(shared):
            on_screen(f"{variant.label} does not know {', '.join(ignored)}, which the other models get")
    grid = Grid(cells, jobs)
    results = grid.results([cell for group in planned.values() for cell in group])
    rows = [row for (dataset, label), group in planned.items() for row in _rows(dataset, label, group, results)]
    if not rows:
        raise InputError(f"no cell has a result; the first failure: {next(iter(grid.failures.values()))}")
    tests = against_best_other(rows, variants[0].label)
    page = comparison_page(rows, tests, grid.failures, command)
    latex = [
        latex_table(own, f"{dataset}: test, full ranking, %, mean and standard deviation over seeds")
        for dataset in datasets
        if (own := [row for row in rows if row.dataset == dataset])
    ]
    output.mkdir(parents=True, exist_ok=True)
    texts = {"md": page, "csv": csv_text(rows), "tex": "\n\n".join(latex) + "\n"}
    files = {suffix: output / f"{name}.{suffix}" for suffix in (*texts, "json")}
    for suffix, text in texts.items():
        write_text(files[suffix], text)
    write_json(files["json"], as_json(rows, tests))
    return Comparison(rows, tests, grid.failures, list(files.values()))


def _rows(dataset: str, label: str, group: Sequence[Cell], results: Mapping[Cell, CellResult]) -> list[Row]:
    found = {cell.seed: results[cell] for cell in group if cell in results}
    return rows_of(dataset, label, found) if found else []
