"""RecBole's filter by number of interactions (k-core) by counting codes instead of Python objects."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Intervals = list[tuple[str, float, float, str]]
"""What `Dataset._parse_intervals_str` gives: (bracket, low, high, bracket) of each interval."""


def filter_by_inter_num(original: Callable[[Any], None], dataset: Any) -> None:
    """`Dataset._filter_by_inter_num`: the same interactions, users and items are dropped, round by round."""
    if dataset.uid_field is None or dataset.iid_field is None:
        return
    sides = [
        _Side(dataset, field, feat, dataset._parse_intervals_str(dataset.config[key]))
        for field, feat, key in (
            (dataset.uid_field, dataset.user_feat, "user_inter_num_interval"),
            (dataset.iid_field, dataset.item_feat, "item_inter_num_interval"),
        )
    ]
    if all(side.keeps_all() for side in sides):
        return
    for side in sides:
        side.encode()
    kept = np.ones(len(dataset.inter_feat), dtype=bool)
    while True:
        banned = [side.banned(kept) for side in sides]
        if not any(codes.any() for codes in banned):
            break
        for side, codes in zip(sides, banned, strict=True):
            kept &= ~codes[side.codes]
    dataset.inter_feat.drop(dataset.inter_feat.index[~kept], inplace=True)


class _Side:
    """Users or items: the field, the table of their features if there is one, and the allowed numbers."""

    def __init__(self, dataset: Any, field: str, feat: pd.DataFrame | None, intervals: Intervals | None) -> None:
        self._dataset = dataset
        self._field = field
        self._feat = feat
        self._intervals = intervals
        self.codes: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._index = pd.Index([])

    def keeps_all(self) -> bool:
        """Whether no number of interactions can be illegal: 1 and the largest are in one and the same interval."""
        if not self._intervals:
            return True
        largest = len(self._dataset.inter_feat)
        return (
            len(self._intervals) == 1
            and bool(self._allowed(np.array([1, largest])).all())
            and (self._feat is None or self._intervals[0][1] <= 0)
        )

    def encode(self) -> None:
        """Number the users or items of the interactions."""
        self.codes, self._index = pd.factorize(self._dataset.inter_feat[self._field])

    def banned(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of them have an illegal number of `kept` interactions; their features are dropped."""
        counts = np.bincount(self.codes[kept], minlength=len(self._index))
        illegal = (counts > 0) & ~self._allowed(counts)
        if self._feat is not None:
            codes = self._index.get_indexer(self._feat[self._field])  # -1: has no interaction
            least = self._intervals[0][1] if self._intervals else -1
            too_few = np.append(counts, 0)[codes] < least  # RecBole bans them whatever a second interval allows
            illegal[codes[too_few & (codes >= 0)]] = True
            self._feat.drop(self._feat.index[too_few | np.append(illegal, False)[codes]], inplace=True)
        return illegal

    def _allowed(self, counts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """RecBole's own test of intervals, on an array; with none of them all numbers are allowed."""
        if not self._intervals:
            return np.ones(len(counts), dtype=bool)
        allowed: NDArray[np.bool_] = self._dataset._within_intervals(counts, self._intervals)
        return allowed
