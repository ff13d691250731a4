"""Lists of different lengths in compressed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """n lists of item ids, one after the other, and where each begins.

    Attributes:
        offsets: shape (n + 1,); list r is ``items[offsets[r]:offsets[r + 1]]``.
        items: item ids of all lists.
        values: a number for each item, or None.
    """

    offsets: Tensor
    items: Tensor
    values: Tensor | None = None

    @classmethod
    def from_pairs(cls, rows: Tensor, items: Tensor, n_rows: int, values: Tensor | None = None) -> Ragged:
        """From (row, item) pairs in any order."""
        ends = torch.bincount(rows, minlength=n_rows).cumsum(0)
        order = torch.argsort(rows, stable=True)
        return cls(torch.cat([ends.new_zeros(1), ends]), items[order], None if values is None else values[order])

    def entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """(place in `rows`, place in `items`) of every entry of the lists `rows`."""
        start = self.offsets[rows]
        length = self.offsets[rows + 1] - start
        first = length.cumsum(0) - length
        place = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), length)
        return place, torch.arange(len(place), device=rows.device) + (start - first)[place]
