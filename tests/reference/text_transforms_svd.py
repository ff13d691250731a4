"""PCA and whitening by a singular value decomposition of the centred rows, all in memory."""

from __future__ import annotations

import numpy as np


def _svd(items: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    centred = items - items.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    for axis in axes:
        if axis[np.argmax(np.abs(axis))] < 0:
            axis *= -1
    return centred, singular**2 / len(items), axes


def pca(items: np.ndarray, k: int) -> np.ndarray:
    centred, _, axes = _svd(items)
    return centred @ axes[:k].T


def whiten(items: np.ndarray) -> np.ndarray:
    centred, variance, axes = _svd(items)
    columns = [
        centred @ axis / np.sqrt(v + 1e-6 * variance[0])
        for v, axis in zip(variance, axes, strict=True)
        if v >= 1e-5 * variance[0]
    ]
    return np.stack(columns, axis=1)
