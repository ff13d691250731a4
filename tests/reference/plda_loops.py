"""PLDA scores of item pairs from sums over pairs and a generalised eigenproblem, solved by scipy at once."""

from __future__ import annotations

import math

import numpy as np
import scipy.linalg

Pairs = list[tuple[int, int, float]]  # first item, second item, weight


def similarities(vectors: np.ndarray, pairs: Pairs) -> np.ndarray | None:
    """Inner products of the mapped unit vectors of all items, shape (V, V); `vectors` (V, D), zero rows have no text.

    None if there is no map.
    """
    has_text = [any(row) for row in vectors.tolist()]
    pairs = [(a, b, w) for a, b, w in pairs if a != b and has_text[a] and has_text[b]]
    if not pairs:
        return None
    total = sum(w for _, _, w in pairs)
    width = vectors.shape[1]
    mean = np.zeros(width)
    for a, b, w in pairs:
        mean += w * (vectors[a] + vectors[b]) / (2 * total)
    single, both = np.zeros((width, width)), np.zeros((width, width))
    for a, b, w in pairs:
        x, y = vectors[a] - mean, vectors[b] - mean
        single += w * (np.outer(x, x) + np.outer(y, y)) / (2 * total)
        both += w * (np.outer(x, y) + np.outer(y, x)) / (2 * total)
    single += np.eye(width) * (width / total * np.trace(single) / width)
    rho, axes = scipy.linalg.eigh(both, single)  # axes.T @ single @ axes = 1
    if not any(rho > 1e-6):
        return None
    mapped = []
    for item, row in enumerate(vectors):
        place = []
        for k in range(width):
            r = min(rho[k], 0.95)
            if r > 1e-6:
                place.append(math.sqrt(r / (1 - r * r)) * float((row - mean) @ axes[:, k]))
        length = math.sqrt(sum(x * x for x in place))
        mapped.append([x / length if has_text[item] else 0.0 for x in place])
    return np.array(mapped) @ np.array(mapped).T
