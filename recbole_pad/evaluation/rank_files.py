"""The ranks of a run's test rows in a file: what tests of significance need, without the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks

RANKS_FILE = "ranks.npz"
T = TypeVar("T")


def write_ranks(ranks: Mapping[str, Ranks], frequency: NDArray[np.integer], path: Path) -> None:
    """Write the test ranks of each phase.

    Arrays of the file, one entry for each test row: ``user``, ``target``, ``frequency`` (train interactions of the
    target) and ``<phase>.masked``, ``<phase>.unmasked``.

    Args:
        ranks: phase -> ranks of the same rows in the same order.
        frequency: train interactions of each item, shape (V,).
        path: the file; it is overwritten.

    Raises:
        ValueError: if the phases have ranked other rows.
    """
    first = next(iter(ranks.values()))
    columns: dict[str, Any] = {"user": first.user.astype(np.int64), "target": first.target.astype(np.int64)}
    columns["frequency"] = np.asarray(frequency)[first.target].astype(np.int64)
    for phase, own in ranks.items():
        if not (np.array_equal(own.user, first.user) and np.array_equal(own.target, first.target)):
            raise ValueError(f"phase {phase} has ranked other rows than {next(iter(ranks))}")
        columns[f"{phase}.masked"] = own.masked.astype(np.float32)  # halves of whole numbers: exact below 8 million
        columns[f"{phase}.unmasked"] = own.unmasked.astype(np.float32)
    with path.open("wb") as file:
        np.savez_compressed(file, **columns)


def read_ranks(path: Path) -> dict[str, Ranks]:
    """The ranks in a file of `write_ranks`: phase -> ranks, in the order of the phases; rows sorted by user and target.

    So the rows of two models are in the same order, though PAD's loaders and RecBole's are not.

    Raises:
        InputError: if the file is missing or is none of ours.
    """
    return _read(path, _phases)


def read_frequency(path: Path) -> NDArray[np.int64]:
    """Train interactions of the target of each row of a file of `write_ranks`; errors as of `read_ranks`."""
    return _read(path, lambda content: content["frequency"][_order(content)])


def _read(path: Path, take: Callable[[NpzFile], T]) -> T:
    if not path.is_file():
        raise InputError(f"{path}: no such file; runs of earlier versions have none: run the model again")
    try:
        with np.load(path, allow_pickle=False) as content:
            return take(content)
    except (BadZipFile, ValueError, KeyError, OSError, EOFError) as error:
        raise InputError(f"{path}: is not a file of ranks ({type(error).__name__}: {error}); run again") from error


def _phases(content: NpzFile) -> dict[str, Ranks]:
    order = _order(content)
    user, target = content["user"][order], content["target"][order]
    names = [name.removesuffix(".masked") for name in content.files if name.endswith(".masked")]
    columns = {
        name: [content[f"{name}.{protocol}"][order].astype(np.float64) for protocol in ("unmasked", "masked")]
        for name in names
    }
    return {name: Ranks(user, target, *own) for name, own in columns.items()}


def _order(content: NpzFile) -> NDArray[np.int64]:
    return np.lexsort((content["target"], content["user"]))
