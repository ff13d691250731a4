"""Causal multi-head attention, one row, head and position at a time, on lists of Python floats."""

from __future__ import annotations

import math


def attention(rows: list[list[list[float]]], n_heads: int) -> list[list[float]]:
    """Attended values of every token, row after row.

    Args:
        rows: of each row its tokens, of each token queries, keys and values side by side, 3 * n_heads * width numbers.
        n_heads: in each of the three parts, one head after the other.
    """
    result = []
    for tokens in rows:
        for t, token in enumerate(tokens):
            size = len(token) // 3
            width = size // n_heads
            attended: list[float] = []
            for head in range(n_heads):
                own = slice(head * width, (head + 1) * width)
                query = token[:size][own]
                keys = [other[size : 2 * size][own] for other in tokens[: t + 1]]
                values = [other[2 * size :][own] for other in tokens[: t + 1]]
                scores = [sum(q * k for q, k in zip(query, key, strict=True)) / math.sqrt(width) for key in keys]
                total = sum(math.exp(score) for score in scores)
                weights = [math.exp(score) / total for score in scores]
                attended += [sum(w * v[i] for w, v in zip(weights, values, strict=True)) for i in range(width)]
            result.append(attended)
    return result
