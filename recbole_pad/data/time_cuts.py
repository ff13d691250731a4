"""A split at two times that hold for all users (key `global_time_cuts`, ``eval_args.split: {'TS': ...}``).

RecBole's own split `TS` cuts off the test rows at one time for all users, but the validation rows user by user, so that
some users train on what comes after the validation rows of others. Here both cuts are global. What is in which part,
with an example: docs/protocols.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_pad.data.histories import cuts_globally
from recbole_pad.data.rows import rows_from_here
from recbole_pad.data.splitting import copies
from recbole_pad.errors import InputError


def with_cuts(original: Callable[[Any], None], dataset: Any) -> None:
    """`Dataset._change_feat_format`; a dataset with a split `TS` gets `time_cuts`, two times, before rows are made.

    Raises:
        InputError: for a list that is neither two times nor three shares, and for a cut without interactions on a side.
    """
    if not cuts_globally(dataset.config):
        original(dataset)
        return
    given = dataset.config["eval_args"]["split"]["TS"]
    _check(given)
    dataset._check_field("time_field")
    times = dataset.inter_feat[dataset.time_field].to_numpy(dtype=np.float32)  # as in RecBole's tensors
    dataset.time_cuts = time_cuts(times, given)
    part = parts(times, dataset.time_cuts)
    sizes = np.bincount(part, minlength=3)
    if not sizes.all():
        raise InputError(
            f"eval_args.split: TS {given} gives {sizes[0]}, {sizes[1]} and {sizes[2]} interactions for training, "
            "validation and test; times in the data are "
            f"{times.min():.9g} to {times.max():.9g}, choose cuts between them"
        )
    original(dataset)


def left_out_of(dataset: Any) -> NDArray[np.int64] | None:
    """`left_out` of a split at global cuts, shape (n_rows,); None for other splits."""
    left_out: NDArray[np.int64] | None = getattr(dataset, "left_out", None)
    return left_out


def _check(given: Any) -> None:
    are_numbers = isinstance(given, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in given
    )
    if are_numbers and (
        (len(given) == 3 and min(given) > 0) or (len(given) == 2 and np.float32(given[0]) < np.float32(given[1]))
    ):
        return
    raise InputError(
        f"eval_args.split: TS {given!r} is neither three shares > 0, such as [0.8, 0.1, 0.1], nor two times "
        "[first of validation, first of test]"
    )


def time_cuts(times: NDArray[np.float32], given: Sequence[float]) -> NDArray[np.float32]:
    """The first time of validation and that of test, shape (2,).

    Args:
        times: of all interactions, shape (n,).
        given: these two times, or three shares of the interactions. Interactions at a cut's own time come after it, so
            ties make the earlier part smaller.
    """
    if len(given) == 2:
        return np.asarray(given, dtype=np.float32)
    places = np.cumsum(given[:2]) / sum(given) * len(times)
    cuts: NDArray[np.float32] = np.sort(times)[np.minimum(np.round(places).astype(np.int64), len(times) - 1)]
    return cuts


def parts(times: NDArray[np.float32], cuts: NDArray[np.float32]) -> NDArray[np.int64]:
    """0 for training, 1 for validation, 2 for test; shape of `times`."""
    return np.searchsorted(cuts, times, side="right").astype(np.int64)


def split_at_cuts(
    original: Callable[..., list[Any]], dataset: Any, ratios: Sequence[float], group_by: str
) -> list[Any]:
    """`Dataset.time_based_split`: every row goes where the time of its target lies; its history is all that is earlier.

    The splits get `left_out`: how many interactions of its user, from the target on, are not history of a row, shape
    (n_rows,).
    """
    feat = dataset.inter_feat
    users, times = feat[group_by].numpy(), feat[dataset.time_field].numpy()
    part = parts(times if times.ndim == 1 else times[..., 0], dataset.time_cuts)
    left_out = rows_from_here(users)
    places = [np.flatnonzero(part == number) for number in range(3)]
    splits = copies(dataset, places)
    for split, rows in zip(splits, places, strict=True):
        split.left_out = left_out[rows]
    _log(dataset, [users[rows] for rows in places], [feat[dataset.iid_field].numpy()[rows] for rows in places])
    return splits


def _log(dataset: Any, users: list[NDArray[np.int64]], targets: list[NDArray[np.int64]]) -> None:
    """Say where the cuts are and what comes after them.

    Raises:
        InputError: if a part has no row: the first interaction of a user has no history, so it is none.
    """
    if not all(len(own) for own in users):
        raise InputError(
            f"eval_args.split: TS gives {', '.join(str(len(own)) for own in users)} rows for training, validation and "
            "test (a user's first interaction has no history and is no row); choose other cuts"
        )
    new_users = [len(np.setdiff1d(own, users[0])) for own in users[1:]]
    new_targets = [int((~np.isin(own, targets[0])).sum()) for own in targets[1:]]
    dataset.logger.info(
        f"global_time_cuts: validation from {dataset.time_cuts[0]:.9g}, test from {dataset.time_cuts[1]:.9g}; rows: "
        f"{len(users[0])} train, {len(users[1])} valid, {len(users[2])} test; users without a training row: "
        f"{new_users[0]} in valid, {new_users[1]} in test; rows whose target is no target in training: "
        f"{new_targets[0]} in valid, {new_targets[1]} in test"
    )
