"""Rows of a sequential dataset, history and target, whose list columns are made when somebody reads them.

RecBole keeps a list of `MAX_ITEM_LIST_LENGTH` values per row and column: 12 bytes x 50 for each interaction. Here the
interactions are kept once, and a row is the place of its target among them.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from torch import Tensor

_BLOCK_ROWS = 65_536  # of a column that is made as a whole: bounds the memory of its temporary tensors


def windows(values: Tensor, end: Tensor, length: Tensor, width: int) -> Tensor:
    """The `length` values before each `end`, padded with zeros on the right.

    Args:
        values: shape (n, ...).
        end: shape (...), int64; ``values[end]`` is not part of the window.
        length: shape as `end`, int64, at most `width` and at most `end`.
        width: values per window, padding included.

    Returns:
        Shape (*end.shape, width, *values.shape[1:]), the type of `values`.
    """
    starts, lengths = (end - length).reshape(-1), length.reshape(-1)
    result = values.new_zeros((len(starts), width, *values.shape[1:]))
    steps = torch.arange(width)
    for first in range(0, len(starts), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        inside = steps < lengths[block, None]
        source = (starts[block, None] + steps).masked_fill_(~inside, 0)
        padding = ~inside.view(*inside.shape, *[1] * (values.dim() - 1))
        result[block] = values[source].masked_fill_(padding, 0)
    return result.view(*end.shape, width, *values.shape[1:])


class RowColumns(MutableMapping[str, Tensor]):
    """Columns of rows by name. A list column is made when it is first read, and then kept.

    Args:
        columns: every column in RecBole's order; None for a list column that is not made yet.
        values: for each list column the values of all interactions, sorted by user and time.
        target: place of each row's target in `values`, shape (n_rows,).
        length: interactions before the target that belong to the row, shape (n_rows,).
        width: length of the lists, padding included.
    """

    def __init__(
        self,
        columns: dict[str, Tensor | None],
        values: dict[str, Tensor],
        target: Tensor,
        length: Tensor,
        width: int,
    ) -> None:
        self._columns = columns
        self._values = values
        self._target = target
        self._length = length
        self._width = width

    def __getitem__(self, name: str) -> Tensor:
        column = self._columns[name]
        if column is None:
            column = self._columns[name] = windows(self._values[name], self._target, self._length, self._width)
        return column

    def __setitem__(self, name: str, column: Tensor) -> None:
        self._columns[name] = column

    def __delitem__(self, name: str) -> None:
        del self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self._target)

    def take(self, index: Any) -> RowColumns:
        """The chosen rows; a list column that is not made is not made for it."""
        columns = {name: None if column is None else column[index] for name, column in self._columns.items()}
        return RowColumns(columns, self._values, self._target[index], self._length[index], self._width)


class LazyRows(Interaction):
    """RecBole's table of interactions over `RowColumns`. What it gives equals what an eager one gives.

    By name it gives a whole column; by row numbers (of a batch) an eager `Interaction`; by `take` (for a split) another
    lazy one.
    """

    interaction: RowColumns

    def __init__(self, columns: RowColumns) -> None:
        self.interaction = columns
        self.length = columns.n_rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            return self.interaction[index]
        return Interaction(dict(self.interaction.take(_as_index(index))))

    def take(self, index: Any) -> LazyRows:
        """The chosen rows, with lists that are made when they are read."""
        return LazyRows(self.interaction.take(_as_index(index)))

    def _reindex(self, index: Any) -> None:
        """Of RecBole's `sort` and `shuffle`."""
        self.interaction = self.interaction.take(_as_index(index))


def take_rows(feat: Any, index: np.ndarray) -> Any:
    """The chosen rows of a lazy table, as a lazy one, or of RecBole's own; `index` holds row numbers, int64."""
    if isinstance(feat, LazyRows):
        return feat.take(index)
    rows = torch.from_numpy(index)
    return Interaction({name: feat[name][rows] for name in feat})  # not feat[index], which makes Python lists


def _as_index(index: Any) -> Any:
    """What RecBole indexes with (it makes lists of all but slices and numbers) as an index of tensors."""
    if isinstance(index, (list, range, np.ndarray)):
        array = np.asarray(index)
        return torch.from_numpy(array.astype(np.int64) if array.size == 0 else np.ascontiguousarray(array))
    return index


def rows_from_here(users: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each row the number of rows of its user from this one on; a user's rows are in time order."""
    by_user = np.argsort(users, kind="stable")
    ends = np.cumsum(np.bincount(users))
    result = np.empty(len(users), dtype=np.int64)
    result[by_user] = ends[users[by_user]] - np.arange(len(users))
    return result
