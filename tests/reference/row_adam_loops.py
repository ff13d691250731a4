"""Lazy Adam on one table, number by number, in float64 Python."""

from __future__ import annotations

import math


def lazy_adam(
    table: list[list[float]],
    steps: list[list[tuple[int, list[float]]]],
    lr: float,
    weight_decay: float,
    decoupled: bool,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> list[list[float]]:
    """The table after the steps; each step is a list of (row, gradient), rows may be named more than once."""
    weight = [list(row) for row in table]
    first = [[0.0] * len(row) for row in table]
    second = [[0.0] * len(row) for row in table]
    for t, named in enumerate(steps, start=1):
        for row in sorted({row for row, _ in named}):
            for column in range(len(weight[row])):
                w = weight[row][column]
                g = sum(gradient[column] for other, gradient in named if other == row)
                if decoupled:
                    w -= lr * weight_decay * w
                else:
                    g += weight_decay * w
                first[row][column] = beta1 * first[row][column] + (1 - beta1) * g
                second[row][column] = beta2 * second[row][column] + (1 - beta2) * g * g
                m = first[row][column] / (1 - beta1**t)
                v = second[row][column] / (1 - beta2**t)
                weight[row][column] = w - lr * m / (math.sqrt(v) + eps)
    return weight
