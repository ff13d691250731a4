"""Better, or luck: paired bootstrap over users, t-test over seeds, correction for several comparisons."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_rel

_RESAMPLES_AT_ONCE = 250  # each takes a number for every distinct difference


def paired_bootstrap(
    first: NDArray[np.floating], second: NDArray[np.floating], seed: int = 0, n_resamples: int = 10_000
) -> dict[str, float]:
    """Difference of means of two models on the same users, with a 95 % interval and a two-sided p-value.

    Users are drawn with replacement; the p-value is twice the smaller share of resamples on the other side of 0 (at
    least 1 / n_resamples).

    Args:
        first: each user's value under one model, shape (n,), n >= 1 (with several seeds: the user's mean over them).
        second: under the other, the same users in the same order.
        seed: of the resampling.
        n_resamples: number of resamples.

    Returns:
        ``difference`` (first - second), ``low``, ``high``, ``p``.

    Raises:
        ValueError: shapes that differ, or no user.

    Source: Efron and Tibshirani 1993, chapter 16; Sakai 2006, SIGIR.
    """
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise ValueError(f"two arrays of one shape (n,), n >= 1, are needed; got {first.shape} and {second.shape}")
    difference = first - second
    values, counts = np.unique(difference, return_counts=True)  # few distinct values: a multinomial draw is exact
    generator = np.random.default_rng(seed)
    shares = counts / len(difference)
    sizes = [min(_RESAMPLES_AT_ONCE, n_resamples - done) for done in range(0, n_resamples, _RESAMPLES_AT_ONCE)]
    drawn = [generator.multinomial(len(difference), shares, size=size) @ values for size in sizes]
    means = np.concatenate(drawn) / len(difference)
    tail = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    low, high = np.quantile(means, [0.025, 0.975])
    return {
        "difference": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "p": min(1.0, max(2 * tail, 1 / n_resamples)),
    }


def seed_t_test(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of the paired t-test over seeds; None with fewer than two seeds or without any variance."""
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    if len(difference) < 2 or np.ptp(difference) == 0:
        return None
    return float(ttest_rel(first, second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for several comparisons, in the same order.

    Source: Holm 1979, Scandinavian Journal of Statistics 6(2).
    """
    order = np.argsort(p_values, kind="stable")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
