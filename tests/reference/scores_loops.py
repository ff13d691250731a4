"""PAD's score and its alignment rows, one user, item and expert at a time, on Python floats."""

from __future__ import annotations

import math
from collections.abc import Sequence


def gate_weights(logits: Sequence[float], norm: str) -> list[float]:
    """w_k of one item from its logits a_k.

    softmax: exp(a_k) / sum_j exp(a_j); sigmoid: sigma(a_k) / sum_j sigma(a_j);
    softplus: log2(1 + exp(a_k)) / E.
    """
    if norm == "softplus":
        return [math.log2(1 + math.exp(a)) / len(logits) for a in logits]
    values = [math.exp(a) if norm == "softmax" else 1 / (1 + math.exp(-a)) for a in logits]
    return [value / sum(values) for value in values]


def user_weights(slopes: Sequence[float], log_frequency: float) -> list[float]:
    """g_k of a user whose newest item has this standardised log frequency: 1 where the slope is 0."""
    return [math.log1p((math.e - 1) * math.exp(slope * log_frequency)) for slope in slopes]


def log_frequencies(counts: Sequence[int]) -> list[float]:
    """log(1 + count), less the mean, over the standard deviation of all items; counts[0] is padding."""
    logs = [math.log(1 + count) for count in counts]
    mean = sum(logs[1:]) / (len(logs) - 1)
    variance = sum((value - mean) ** 2 for value in logs[1:]) / (len(logs) - 2)
    return [(value - mean) / math.sqrt(variance) for value in logs]


def decayed_history(vectors: Sequence[Sequence[float]], decay: float) -> list[float]:
    """sum_j decay^j v_j, j = 0 for the last vector."""
    state = [0.0] * len(vectors[0])
    for j, vector in enumerate(reversed(vectors)):
        state = [value + decay**j * x for value, x in zip(state, vector, strict=True)]
    return state


def score(weights: Sequence[float], states: Sequence[Sequence[float]], vectors: Sequence[Sequence[float]]) -> float:
    """sum_k w_k h_k . v_k."""
    return sum(
        weight * sum(h * v for h, v in zip(state, vector, strict=True))
        for weight, state, vector in zip(weights, states, vectors, strict=True)
    )


def published_mmd_rows(item_seq: list[list[int]], target: list[int], negatives: list[int]) -> list[int]:
    """Every slot of the batch: inputs, targets and negatives, each padded to the width of the inputs."""
    n_slots = sum(map(len, item_seq))
    targets = []
    for row, items in enumerate(item_seq):
        real = [item for item in items if item]
        following = [*real[1:], target[row]]
        targets += following + [0] * (len(items) - len(following))
    inputs = [item for items in item_seq for item in items]
    return inputs + targets + negatives + [0] * (n_slots - len(negatives) if negatives else 0)
