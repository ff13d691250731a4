"""`recbole-pad compare`: models through the same data, split, protocol and budget, and a table with tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_pad.dataset_prep.files import write_text
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Grid, on_screen
from recbole_pad.experiments.outcome import (
    CELLS,
    Outcome,
    require_each_once,
    require_rows,
    rows_of_cells,
    write_outcome,
)
from recbole_pad.experiments.pages import comparison_page
from recbole_pad.experiments.paired_tests import against_best_other
from recbole_pad.experiments.tables import latex_table
from recbole_pad.experiments.variants import Variant


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
) -> Outcome:
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
    require_each_once("seeds", seeds)
    require_each_once("datasets", datasets)
    planned = {
        (dataset, variant.label): variant.cells(dataset, shared, seeds) for dataset in datasets for variant in variants
    }
    for variant in variants:
        if ignored := variant.ignored(shared):
            on_screen(f"{variant.label} does not know {', '.join(ignored)}, which the other models get")
    grid = Grid(cells, jobs)
    results = grid.results([cell for group in planned.values() for cell in group])
    rows = [row for (dataset, label), group in planned.items() for row in rows_of_cells(dataset, label, group, results)]
    require_rows(rows, grid.failures)
    tests = against_best_other(rows, variants[0].label)
    page = comparison_page(rows, tests, grid.failures, command)
    latex = [
        latex_table(own, f"{dataset}: test, full ranking, %, mean and standard deviation over seeds")
        for dataset in datasets
        if (own := [row for row in rows if row.dataset == dataset])
    ]
    files = {suffix: output / f"{name}.{suffix}" for suffix in ("md", "csv", "tex", "json")}
    write_outcome(page, rows, tests, files)
    write_text(files["tex"], "\n\n".join(latex) + "\n")
    return Outcome(rows, tests, grid.failures, list(files.values()))
