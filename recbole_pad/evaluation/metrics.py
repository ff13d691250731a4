"""Hit, NDCG and MRR at k from the rank of one target per user, over all users or by group of items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

KS = (5, 10, 20)
_GAINS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {  # of a rank within the list
    "hit": np.ones_like,
    "ndcg": lambda ranks: 1 / np.log2(ranks + 1),
    "mrr": lambda ranks: 1 / ranks,
}


def gains(ranks: NDArray[np.floating], metric: str) -> NDArray[np.float64]:
    """Each row's value of a metric from the rank of the one target.

    Args:
        ranks: 1-based ranks, shape (n,), may be infinite.
        metric: ``hit@k``, ``ndcg@k`` or ``mrr@k``.

    Raises:
        ValueError: another metric.
    """
    name, _, k = metric.partition("@")
    if name not in _GAINS or not k.isdigit():
        raise ValueError(f"metric must be hit@k, ndcg@k or mrr@k, got {metric!r}")
    exact: NDArray[np.float64] = np.asarray(ranks, dtype=np.float64)
    return np.where(exact <= int(k), _GAINS[name](exact), 0.0)


def metrics(ranks: NDArray[np.floating], ks: Sequence[int] = KS) -> dict[str, float]:
    """Mean metrics over the rows, under RecBole's names.

    hit@k: share of ranks <= k. ndcg@k: mean of 1/log2(rank + 1) where rank <= k, else 0. mrr@k: mean of
    1/rank where rank <= k, else 0. Ranks need not be whole: a tie adds half a place.

    Args:
        ranks: 1-based, shape (n,), may be infinite (a sure miss).
        ks: list lengths, each >= 1.

    Returns:
        {"hit@5": ..., "ndcg@5": ..., "mrr@5": ..., ...} as plain floats in [0, 1], not rounded; {} if there
        is no row.

    Raises:
        ValueError: a rank below 1 or NaN, or not 1-D.
    """
    ranks = np.asarray(ranks, dtype=np.float64)
    if ranks.ndim != 1 or not (ranks >= 1).all():
        raise ValueError(f"ranks must be numbers >= 1, shape (n,); got shape {ranks.shape}")
    if not len(ranks):
        return {}
    return {f"{name}@{k}": float(np.mean(gains(ranks, f"{name}@{k}"))) for k in ks for name in _GAINS}


def grouped_metrics(
    ranks: NDArray[np.floating], groups: NDArray[np.integer], names: Sequence[str]
) -> dict[str, dict[str, int | float]]:
    """Metrics of each group, averaged over the rows whose target falls into it.

    Args:
        ranks: shape (n,).
        groups: index into `names` for each row, shape (n,), for example `frequency_group(counts[target])`.
        names: the groups, all of which appear in the answer.

    Returns:
        {name: {"n": rows, "hit@5": ..., ...}}; a group without rows has only {"n": 0}.

    Raises:
        ValueError: shapes that differ or an index outside `names`.
    """
    ranks, groups = np.asarray(ranks, dtype=np.float64), np.asarray(groups)
    if ranks.shape != groups.shape:
        raise ValueError(f"ranks and groups differ in shape: {ranks.shape} and {groups.shape}")
    if ((groups < 0) | (groups >= len(names))).any():
        raise ValueError(f"groups must be indices below {len(names)} into {list(names)}")
    result: dict[str, dict[str, int | float]] = {}
    for index, name in enumerate(names):
        own = ranks[groups == index]
        result[name] = {"n": len(own), **metrics(own)}
    return result


def merged(groups: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of each metric over the rows of several groups, and ``n``, their number.

    Args:
        groups: entries of `grouped_metrics`; a metric that one with rows does not have is left out. A single group
            stays as it is, to the last bit.
    """
    if len(groups) == 1:
        return dict(groups[0])
    filled = [group for group in groups if group["n"]]
    n = sum(group["n"] for group in filled)
    names = [name for name in (filled[0] if filled else ()) if name != "n" and all(name in group for group in filled)]
    return {"n": n, **{name: sum(group["n"] * group[name] for group in filled) / n for name in names}}
