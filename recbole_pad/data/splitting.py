"""RecBole's leave-one-out and ratio splits without Python loops: the same rows in the same order in every part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recbole_pad.data.rows import take_rows

# Leave-one-out mode -> for each of train, valid and test its number counted from the last part, 1 = last; 0: all that
# is left; None: empty.
_PARTS: dict[str, tuple[int | None, ...]] = {
    "valid_and_test": (0, 2, 1),
    "valid_only": (0, 1, None),
    "test_only": (0, None, 1),
}


@dataclass(frozen=True)
class _Groups:
    """Row numbers by group: groups in the order of their first rows, rows of a group in their order.

    Attributes:
        rows: shape (n,).
        position: number of each of `rows` within its group, from 0, shape (n,).
        size: size of the group of each of `rows`, shape (n,).
    """

    rows: NDArray[np.int64]
    position: NDArray[np.int64]
    size: NDArray[np.int64]

    @classmethod
    def of(cls, keys: NDArray[np.int64]) -> _Groups:
        """Group by equal keys, shape (n,)."""
        codes, _ = pd.factorize(keys)
        sizes = np.bincount(codes)
        position = np.arange(len(keys)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return cls(np.argsort(codes, kind="stable"), position, np.repeat(sizes, sizes))


def leave_one_out(original: Callable[..., list[Any]], dataset: Any, group_by: str, leave_one_mode: str) -> list[Any]:
    """`Dataset.leave_one_out`; RecBole's own refuses what it does not know."""
    if group_by is None or leave_one_mode not in _PARTS:
        return original(dataset, group_by, leave_one_mode)
    numbers = _PARTS[leave_one_mode]
    groups = _Groups.of(dataset.inter_feat[group_by].numpy())
    n_left_out = np.minimum(max(number or 0 for number in numbers), groups.size - 1)
    from_end = groups.size - groups.position
    part = np.where(from_end <= n_left_out, from_end, 0)
    return copies(dataset, [groups.rows[part == (-1 if number is None else number)] for number in numbers])


def split_by_ratio(
    original: Callable[..., list[Any]], dataset: Any, ratios: Sequence[float], group_by: str | None = None
) -> list[Any]:
    """`Dataset.split_by_ratio`; where to cut a group of a size is asked of RecBole, once for each size."""
    shares = [ratio / sum(ratios) for ratio in ratios]
    n_rows = len(dataset.inter_feat)
    keys = np.zeros(n_rows, dtype=np.int64) if group_by is None else dataset.inter_feat[group_by].numpy()
    groups = _Groups.of(keys)
    sizes, which = np.unique(groups.size, return_inverse=True)
    cuts = np.array([dataset._calcu_split_ids(int(size), shares) for size in sizes], dtype=np.int64)
    cuts = cuts.reshape(len(sizes), len(shares) - 1)
    part = sum((groups.position >= cuts[which, number] for number in range(len(shares) - 1)), np.zeros(n_rows, int))
    return copies(dataset, [groups.rows[part == number] for number in range(len(shares))])


def copies(dataset: Any, parts: list[NDArray[np.int64]]) -> list[Any]:
    """The dataset with the rows of each part only, as RecBole's splits give it."""
    dataset._drop_unused_col()
    return [dataset.copy(take_rows(dataset.inter_feat, rows)) for rows in parts]
