"""Ranks by sorting candidates, and metrics by the book, in plain Python."""

from __future__ import annotations

import math


def rank(scores: list[float], target: int, hidden: set[int]) -> float:
    """Expected position of the target among the candidates, equal scores in random order."""
    if target in hidden:
        return math.inf
    candidates = [v for v in range(1, len(scores)) if v not in hidden]
    best = 1 + sum(scores[v] > scores[target] for v in candidates)
    worst = sum(scores[v] >= scores[target] for v in candidates)
    return (best + worst) / 2


def metrics(ranks: list[float], k: int) -> tuple[float, float, float]:
    """(hit@k, ndcg@k, mrr@k)."""
    listed = [r for r in ranks if r <= k]
    return (
        len(listed) / len(ranks),
        sum(1 / math.log2(r + 1) for r in listed) / len(ranks),
        sum(1 / r for r in listed) / len(ranks),
    )
