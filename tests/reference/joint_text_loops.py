"""Joint text vectors, item by item: parts as long as the first one on the quadratic mean, side by side."""

from __future__ import annotations

import math

import numpy as np


def join(parts: list[np.ndarray]) -> np.ndarray:
    """Transformed parts, each (n, D_p), without padding -> (n, sum of D_p)."""
    n_items = len(parts[0])
    lengths = []
    for part in parts:
        total = 0.0
        for row in part.tolist():
            for number in row:
                total += number * number
        lengths.append(math.sqrt(total / n_items))
    rows = []
    for item in range(n_items):
        row: list[float] = []
        for part, length in zip(parts, lengths, strict=True):
            row += [number * lengths[0] / length for number in part[item].tolist()]
        rows.append(row)
    return np.array(rows)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))
