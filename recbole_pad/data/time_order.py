"""Interactions in the order of their times as the file gives them (key `exact_times`).

RecBole holds times in float32: seconds since 1970 are then 128 seconds apart (milliseconds 131), so that interactions
of one session have the same time and stand in the order of the file, which may be any. Here each user's interactions
are put in order before the times are rounded; all later sorting is stable. Source: ours; docs/protocols.md.
"""

from __future__ import annotations

from collections.abc import Callable
from logging import getLogger
from operator import itemgetter
from typing import Any

import numpy as np
from recbole.utils import FeatureType


def in_exact_order(original: Callable[[Any], None], dataset: Any) -> None:
    """`Dataset._change_feat_format`; before it, interactions are sorted by user and time, if rounding loses an order.

    Ties keep the order of the file. Where RecBole's own order is right, nothing is moved. Files of `benchmark_filename`
    are left alone: where one ends and the next begins is known by the number of lines.
    """
    user, time = dataset.uid_field, dataset.time_field
    is_timed = time in dataset.inter_feat and dataset.field2type[time] == FeatureType.FLOAT
    if is_timed and dataset.benchmark_filename_list is None:
        times = dataset.inter_feat[time]
        if times.dtype == object:  # a numerical feature of RecBole's: (value, weight or bucket)
            times = times.map(itemgetter(0))
        order = exact_order(dataset.inter_feat[user].to_numpy(), times.to_numpy(dtype=np.float64))
        if order is not None:
            getLogger().info("%s has finer steps than float32 holds: sorted before rounding (exact_times)", time)
            dataset.inter_feat = dataset.inter_feat.iloc[order].reset_index(drop=True)
    original(dataset)


def with_missing_times_counted(original: Callable[[Any], None], dataset: Any) -> None:
    """`Dataset._fill_nan`, which gives interactions without a time the mean of all times; before it, a warning."""
    time = dataset.time_field
    is_timed = time in dataset.inter_feat and dataset.field2type[time] == FeatureType.FLOAT
    n_missing = int(dataset.inter_feat[time].isna().sum()) if is_timed else 0
    if n_missing:
        getLogger().warning(
            "%s: %d of %d interactions have no %s; RecBole gives them the mean of all times, so they stand anywhere in "
            "their user's history: fill the column, or remove these lines",
            dataset.dataset_name,
            n_missing,
            len(dataset.inter_feat),
            time,
        )
    original(dataset)


def is_in_order(users: np.ndarray, times: np.ndarray) -> bool:
    """Whether rows are sorted by user and time already; both shape (n,)."""
    later_user, same_user = users[1:] > users[:-1], users[1:] == users[:-1]
    return bool((later_user | (same_user & (times[1:] >= times[:-1]))).all())


def exact_order(users: np.ndarray, times: np.ndarray) -> np.ndarray | None:
    """The order by user and time, ties as they are; None where sorting by rounded times gives each user the same one.

    Args:
        users: int, shape (n,).
        times: float64, shape (n,).

    Returns:
        Row numbers, shape (n,), or None.
    """
    if is_in_order(users, times):
        return None
    exact = np.lexsort((times, users))
    rounded = np.lexsort((times.astype(np.float32), users))
    return None if np.array_equal(exact, rounded) else exact
