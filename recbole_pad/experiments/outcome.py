"""What comparisons and experiments end with, and their common steps on the way from cells to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_pad.checkpoint import write_json
from recbole_pad.dataset_prep.files import write_text
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell, CellResult
from recbole_pad.experiments.measures import Row, rows_of
from recbole_pad.experiments.pages import Choice
from recbole_pad.experiments.paired_tests import PairedTest
from recbole_pad.experiments.tables import as_json, csv_text

CELLS = Path("cells")


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        rows: of the tables; a phase of a run may have a row of its own.
        tests: of a comparison, the first variant against the best other one on each dataset; of an experiment, every
            row against the reference's row of the same phase.
        failures: cell -> why it has no result.
        files: what was written, the page first.
        choices: of an experiment's tuned variants.
    """

    rows: list[Row]
    tests: list[PairedTest]
    failures: dict[str, str]
    files: list[Path]
    choices: Sequence[Choice] = ()


def require_each_once(what: str, given: Sequence[Any]) -> None:
    """Refuse an empty list, and one that names something twice.

    Raises:
        InputError: saying `what` it is.
    """
    if not given or len(set(given)) != len(given):
        raise InputError(f"{what}: {list(given)} must name at least one, each once")


def rows_of_cells(dataset: str, label: str, cells: Sequence[Cell], results: Mapping[Cell, CellResult]) -> list[Row]:
    """The rows of one variant, of those of its cells that have a result; none where no cell has."""
    found = {cell.seed: results[cell] for cell in cells if cell in results}
    return rows_of(dataset, label, found) if found else []


def require_rows(rows: Sequence[Row], failures: Mapping[str, str]) -> None:
    """Refuse to write tables of nothing.

    Raises:
        InputError: naming the first failure.
    """
    if not rows:
        raise InputError(f"no cell has a result; the first failure: {next(iter(failures.values()))}")


def write_outcome(
    page: str,
    rows: Sequence[Row],
    tests: Sequence[PairedTest],
    files: Mapping[str, Path],
    choices: Sequence[Choice] | None = None,
) -> None:
    """Write the page, and its rows and tests for programs.

    Args:
        page: the Markdown.
        rows: of its tables.
        tests: of its rows.
        files: where ``md``, ``csv`` and ``json`` go; the folder is made.
        choices: what stands in the JSON beside them; None: it has no such entry.
    """
    files["md"].parent.mkdir(parents=True, exist_ok=True)
    write_text(files["md"], page)
    write_text(files["csv"], csv_text(rows))
    chosen = {} if choices is None else {"choices": [vars(choice) for choice in choices]}
    write_json(files["json"], {**as_json(rows, tests), **chosen})
