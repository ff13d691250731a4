"""MK-MMD and InfoNCE term by term, on lists of lists of Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Row = Sequence[float]


def sq_dist(a: Row, b: Row) -> float:
    return sum((x - y) ** 2 for x, y in zip(a, b, strict=True))


def l1_dist(a: Row, b: Row) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True))


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: Row, b: Row) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def mean_over_pairs(rows: list[Row], dist: Callable[[Row, Row], float]) -> float:
    return sum(dist(a, b) for a in rows for b in rows) / len(rows) ** 2


def kernel_sum(kernel: str, rows: list[Row], alphas: Sequence[float]) -> Callable[[Row, Row], float]:
    """K = sum_u k_u with the bandwidths of this joint sample."""
    if kernel == "linear":
        return dot
    if kernel == "cosine":
        return cosine
    if kernel == "gaussian":
        mean = mean_over_pairs(rows, sq_dist)
        return lambda a, b: sum(math.exp(-sq_dist(a, b) / (2 * alpha * mean)) for alpha in alphas)
    mean = mean_over_pairs(rows, l1_dist)
    return lambda a, b: sum(math.exp(-l1_dist(a, b) / (alpha * mean)) for alpha in alphas)


def mk_mmd(kernel: str, text: list[Row], ids: list[Row], alphas: Sequence[float]) -> float:
    k, n = kernel_sum(kernel, text + ids, alphas), len(text)
    within = sum(k(text[i], text[j]) + k(ids[i], ids[j]) for i in range(n) for j in range(n) if i != j)
    cross = sum(k(text[i], ids[j]) for i in range(n) for j in range(n))
    return within / (n * (n - 1)) - 2 * cross / n**2


def gaussian_mk_mmd_grad(text: list[Row], ids: list[Row], alphas: Sequence[float]) -> list[list[float]]:
    """The gradient by the rows [text; ids], bandwidths held, from k' = -(a - b) / sigma^2 k of each pair of rows."""
    rows, n = text + ids, len(text)
    mean = mean_over_pairs(rows, sq_dist)
    grad = [[0.0] * len(rows[0]) for _ in rows]
    for i, a in enumerate(rows):
        for j, b in enumerate(rows):
            if i == j:
                continue
            weight = 1 / (n * (n - 1)) if (i < n) == (j < n) else -1 / n**2
            for alpha in alphas:
                pull = 2 * weight * math.exp(-sq_dist(a, b) / (2 * alpha * mean)) / (alpha * mean)
                grad[i] = [g - pull * (x - y) for g, x, y in zip(grad[i], a, b, strict=True)]
    return grad


def info_nce(text: list[Row], ids: list[Row], temperature: float) -> float:
    n = len(text)
    total = 0.0
    for i in range(n):
        own = math.exp(cosine(text[i], ids[i]) / temperature)
        to_ids = sum(math.exp(cosine(text[i], ids[j]) / temperature) for j in range(n))
        to_text = sum(math.exp(cosine(text[j], ids[i]) / temperature) for j in range(n))
        total += -math.log(own / to_ids) - math.log(own / to_text)
    return total / (2 * n)
