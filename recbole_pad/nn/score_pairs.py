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
    def joined(cls, parts: Sequence[ScorePairs]) -> ScorePairs:
        """Pairs of different rows, the later parts' rows above the earlier parts'."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "items", "values")))

    def plus(self, other: ScorePairs, n_items: int) -> ScorePairs:
        """With the values of other pairs of the same rows added, of which there are far fewer.

        A pair may stand in one of the two alone.
        """
        if not len(self.rows) or not len(other.rows):
            return self if len(self.rows) else other
        keys, added = self.rows * n_items + self.items, other.rows * n_items + other.items
        place = torch.searchsorted(keys, added)
        is_new = keys[place.clamp(max=len(keys) - 1)] != added
        values = self.values.index_add(0, place[~is_new], other.values[~is_new].to(self.values.dtype))
        inserted = place[is_new]
        is_own = torch.ones(len(keys) + len(inserted), dtype=torch.bool, device=keys.device)
        is_own[inserted + torch.arange(len(inserted), device=keys.device)] = False
        columns = []
        for own, new in ((self.rows, other.rows), (self.items, other.items), (values, other.values)):
            column = own.new_empty(len(is_own))
            column[is_own], column[~is_own] = own, new[is_new].to(own.dtype)
            columns.append(column)
        return ScorePairs(*columns)

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
