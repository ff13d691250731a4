"""Scores of a few (row, item) pairs, beside inner products that score every item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def distinct_pairs(rows: Tensor, items: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    """The (row, item) pairs once each, without padding, sorted by row and item."""
    is_item = items != 0
    pair = torch.unique(rows[is_item].long() * n_items + items[is_item])
    return pair // n_items, pair % n_items


@dataclass(frozen=True)
class ScorePairs:
    """What is added to the scores of some items, row by row; all other items get nothing.

    Attributes:
        rows: row of each pair, int64, shape (m,).
        items: item id of each pair, int64, shape (m,); a pair stands there once, sorted by row, then item.
        values: what it adds, shape (m,).
    """

    rows: Tensor
    items: Tensor
    values: Tensor

    @classmethod
    def summed(cls, rows: Tensor, items: Tensor, values: Tensor, n_items: int) -> ScorePairs:
        """From pairs in any order; values of the same pair are added up."""
        keys, place = torch.unique(rows * n_items + items, return_inverse=True)
        total = values.new_zeros(len(keys)).index_add_(0, place, values)
        return cls(torch.div(keys, n_items, rounding_mode="floor"), keys % n_items, total)

    @classmethod
    def added_up(cls, parts: Sequence[ScorePairs], n_items: int) -> ScorePairs:
        """Of the same rows: values of a pair that stands in several parts are added up."""
        if len(parts) == 1:
            return parts[0]
        side_by_side = cls.joined(parts)
        return cls.summed(side_by_side.rows, side_by_side.items, side_by_side.values, n_items)

    @classmethod
    def joined(cls, parts: Sequence[ScorePairs]) -> ScorePairs:
        """Pairs of different rows, the later parts' rows above the earlier parts'."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "items", "values")))

    def at(self, rows: Tensor, items: Tensor, n_items: int) -> Tensor:
        """The value of each asked pair, 0 where it has none: (n,), (n,) -> (n,)."""
        if not len(self.rows):
            return self.values.new_zeros(len(rows))
        keys, asked = self.rows * n_items + self.items, rows * n_items + items
        place = torch.searchsorted(keys, asked).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == asked, self.values[place], 0.0)

    def add_to(self, scores: Tensor) -> Tensor:
        """`scores`, shape (B, V), with the values added in place."""
        scores[self.rows, self.items] += self.values
        return scores
