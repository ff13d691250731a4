"""The recommendation losses term by term, on lists of Python floats."""

from __future__ import annotations

import math


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def bce(pos: list[float], neg: list[list[float]]) -> float:
    flat = [s for row in neg for s in row]
    return sum(-math.log(sigmoid(s)) for s in pos) / len(pos) + sum(-math.log(1 - sigmoid(s)) for s in flat) / len(flat)


def softmax_ce(scores: list[list[float]], target: list[int], allowed: list[bool]) -> float:
    total = 0.0
    for row, t in zip(scores, target, strict=True):
        total -= math.log(math.exp(row[t]) / sum(math.exp(s) for v, s in enumerate(row) if allowed[v] or v == t))
    return total / len(target)


def sampled_softmax(
    pos: list[float],
    neg: list[list[float]],
    neg_is_target: list[list[bool]],
    neg_expected: list[list[float]],
) -> float:
    """The corrected score of a negative, exp(s) / (expected count); all counts 1 means no correction."""
    total = 0.0
    for m, score in enumerate(pos):
        own = math.exp(score)
        others = sum(math.exp(s) / neg_expected[m][k] for k, s in enumerate(neg[m]) if not neg_is_target[m][k])
        total -= math.log(own / (own + others))
    return total / len(pos)
