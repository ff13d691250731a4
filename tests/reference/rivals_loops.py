"""The rivals' own parts, one item, user and position at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg

Row = Sequence[float]


def dot(a: Row, b: Row) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(a: Row) -> list[float]:
    length = math.sqrt(dot(a, a))
    return [x / length for x in a]


def softmax(logits: Row) -> list[float]:
    exps = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(exps) for x in exps]


def times(vector: Row, matrix: Sequence[Row]) -> list[float]:
    """vector @ matrix, the matrix as rows."""
    return [sum(x * row[j] for x, row in zip(vector, matrix, strict=True)) for j in range(len(matrix[0]))]


def group_whiten(items: np.ndarray, n_groups: int) -> np.ndarray:
    """Each group of neighbouring columns times the inverse square root of its own covariance."""
    centred = items - items.mean(axis=0)
    groups = []
    for columns in np.array_split(np.arange(items.shape[1]), n_groups):
        own = centred[:, columns]
        groups.append(own @ np.linalg.inv(scipy.linalg.sqrtm(own.T @ own / len(items)).real))
    return np.hstack(groups)


def moe_adaptor(
    text: Row, shift: Sequence[Row], weight: Sequence[Sequence[Row]], gate: Sequence[Row], noise: Row | None = None
) -> list[float]:
    """sum_k g_k (x - b_k) W_k; `noise` is added to the gate's logits."""
    logits = times(text, gate)
    gates = softmax([logit + (0.0 if noise is None else noise[k]) for k, logit in enumerate(logits)])
    total = [0.0] * len(weight[0][0])
    for g, own_shift, own_weight in zip(gates, shift, weight, strict=True):
        moved = times([x - b for x, b in zip(text, own_shift, strict=True)], own_weight)
        total = [t + g * m for t, m in zip(total, moved, strict=True)]
    return total


def sequence_item_contrast(states: list[Row], items: list[Row], target: list[int], temperature: float) -> float:
    """Mean of -log softmax of each state's own target among all targets; repeats of the own one are left out."""
    total = 0.0
    for m, state in enumerate(states):
        score = [dot(unit(state), unit(item)) / temperature for item in items]
        others = [s for k, s in enumerate(score) if k == m or target[k] != target[m]]
        total -= score[m] - math.log(sum(math.exp(s) for s in others))
    return total / len(states)


def attention(
    queries: list[Row],
    values: list[Row],
    projections: np.ndarray,
    biases: Row,
    out: np.ndarray,
    out_bias: Row,
    heads: int,
) -> list[list[float]]:
    """Multi-head attention of position t on positions 0..t; `projections` holds the rows of W_q, W_k, W_v, (3d, d)."""
    width = len(queries[0])
    w_q, w_k, w_v = (projections[n * width : (n + 1) * width] for n in range(3))
    b_q, b_k, b_v = (biases[n * width : (n + 1) * width] for n in range(3))

    def project(vector: Row, matrix: np.ndarray, bias: Row) -> list[float]:
        return [dot(vector, row) + b for row, b in zip(matrix.tolist(), bias, strict=True)]

    size = width // heads
    result = []
    for t, query in enumerate(queries):
        q = project(query, w_q, b_q)
        joined: list[float] = []
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            scores = [dot(q[own], project(values[s], w_k, b_k)[own]) / math.sqrt(size) for s in range(t + 1)]
            weights = softmax(scores)
            seen = [project(values[s], w_v, b_v)[own] for s in range(t + 1)]
            joined += [sum(w * v[j] for w, v in zip(weights, seen, strict=True)) for j in range(size)]
        result.append(project(joined, out, out_bias))
    return result


def similar_users(histories: dict[int, list[int]], text: list[Row], n_similar: int) -> dict[int, list[int]]:
    """For each user the others by cosine of the mean text vectors of their items, nearest first."""
    mean = {
        user: [sum(text[item][j] for item in items) / len(items) for j in range(len(text[0]))]
        for user, items in histories.items()
    }
    return {
        user: sorted(set(mean) - {user}, key=lambda other: -dot(unit(mean[user]), unit(mean[other])))[:n_similar]
        for user in mean
    }


def distillation(students: list[Row], teachers: list[list[Row]]) -> float:
    """Mean over users and entries of (student - mean of the teachers)^2."""
    total, count = 0.0, 0
    for student, own in zip(students, teachers, strict=True):
        for j, value in enumerate(student):
            total += (value - sum(teacher[j] for teacher in own) / len(own)) ** 2
            count += 1
    return total / count
