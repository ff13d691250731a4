"""Transforms of the raw text vectors before anything is trained: centring, whitening, PCA.

The vectors may be larger than memory (a numpy memmap): they are read in blocks of rows, statistics are
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_pad.errors import InputError

NUMBERS_PER_BLOCK = 2**22  # of a block of rows: 34 MB in float64
ALLOWED = "none, center, whiten, whiten:K, pca:K (K a whole number from 1 to the width of the vectors)"


class Rows(Protocol):
    """A table of rows that is read in slices: a numpy array, a memory map, or rows of one in another order."""

    @property
    def ndim(self) -> int: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> NDArray[Any]: ...


Vectors = Tensor | NDArray[np.floating] | Rows


class Moments:
    """Mean, covariance and principal axes of rows 1..V-1, each computed when first asked for."""

    def __init__(self, vectors: Vectors) -> None:
        if len(vectors) < 2:
            raise InputError("there is no text vector besides the padding row: nothing to take statistics of")
        self._vectors = vectors
        self._n = len(vectors) - 1

    @cached_property
    def mean(self) -> Tensor:
        """Shape (D,), float64."""
        total = sum((block.sum(dim=0) for _, block in item_blocks(self._vectors)), torch.zeros(()))
        mean = total / self._n
        if not bool(torch.isfinite(mean).all()):
            raise InputError("the text vectors contain NaN or infinite values; rebuild them")
        return mean

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,), largest first, >= 0, and axes as columns (D, D); covariance with divisor n.

        The entry of largest absolute value of each axis is positive, so that the signs are reproducible.
        """
        width = self._vectors.shape[1]
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for _, block in item_blocks(self._vectors):
            block -= self.mean
            covariance += block.T @ block
        eigenvalues, axes = torch.linalg.eigh(covariance / self._n)
        eigenvalues, axes = eigenvalues.flip(0).clamp(min=0), axes.flip(1)
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        return eigenvalues, axes * torch.sign(largest)


Transform = Callable[[Moments, int | None], tuple[Tensor, Tensor | None]]
"""(moments, K or None) -> (what to subtract (D,), what to multiply with from the right (D, D') or None)."""


def center(moments: Moments, k: int | None) -> tuple[Tensor, Tensor | None]:
    """Subtract the mean."""
    return moments.mean, None


def pca(moments: Moments, k: int | None) -> tuple[Tensor, Tensor | None]:
    """(x - mean) on the K leading principal axes, not rescaled."""
    return moments.mean, moments.axes[1][:, :k]


def whiten(moments: Moments, k: int | None) -> tuple[Tensor, Tensor | None]:
    """(x - mean) on the principal axes, each divided by sqrt(eigenvalue + 1e-6 * largest eigenvalue).

    Directions below 1e-5 of the largest eigenvalue are noise of the encoder's arithmetic and are dropped.

    Raises:
        InputError: all vectors are equal.

    Source: Su et al. 2021, "Whitening Sentence Representations", arXiv 2103.15316.
    """
    eigenvalues, axes = moments.axes
    largest = eigenvalues[0]
    if not largest > 1e-20 * moments.mean.square().sum():  # less is rounding of the mean
        raise InputError("all text vectors are equal: there is nothing to whiten; use text_transform: none")
    keep = eigenvalues >= 1e-5 * largest
    return moments.mean, (axes / torch.sqrt(eigenvalues + 1e-6 * largest))[:, keep][:, :k]


def none(moments: Moments, k: int | None) -> tuple[Tensor, Tensor | None]:
    """Leave the vectors as they are."""
    return torch.zeros((), dtype=torch.float64), None


TEXT_TRANSFORMS: dict[str, Transform] = {"none": none, "center": center, "whiten": whiten, "pca": pca}
NEEDS_K = {"none": False, "center": False, "whiten": None, "pca": True}  # None: K is optional


def transform_text(vectors: Vectors, spec: str) -> Tensor:
    """Transform the text table.

    Args:
        vectors: text vectors, shape (V, D), any float type, tensor or numpy array (a memmap is read block by
            block). Row 0 is padding: it enters no statistic.
        spec: "none", "center", "whiten", "whiten:K" or "pca:K".

    Returns:
        float32 on the CPU, shape (V, D'), a new tensor; row 0 is zero. D' is D for none and center, K for
        pca, and the number of directions kept for whiten (at most K, fewer if the vectors do not span K
        directions).

    Raises:
        InputError: bad `spec`, K above D, values that are not finite, no item, or nothing to whiten.
    """
    width, blocks = transformed_blocks(vectors, spec)
    out = torch.zeros(len(vectors), width, dtype=torch.float32)
    for start, block in blocks:
        out[start : start + len(block)] = block
    return out


def transformed_blocks(vectors: Vectors, spec: str) -> tuple[int, Iterator[tuple[int, Tensor]]]:
    """As `transform_text`, block by block, for results that do not fit into memory.

    Returns:
        D', and an iterator of (first row, transformed rows as float32 on the CPU) over rows 1..V-1.

    Raises:
        InputError: as `transform_text`; all of it before the first block.
    """
    if vectors.ndim != 2:
        raise InputError(f"text vectors must have shape (items, width), got {tuple(vectors.shape)}")
    name, k = parse_spec(spec, width=vectors.shape[1])
    shift, matrix = TEXT_TRANSFORMS[name](Moments(vectors), k)

    def moved(block: Tensor) -> Tensor:
        block -= shift
        return (block if matrix is None else block @ matrix).float()

    width = vectors.shape[1] if matrix is None else matrix.shape[1]
    return int(width), ((start, moved(block)) for start, block in item_blocks(vectors))


def parse_spec(spec: str, width: int) -> tuple[str, int | None]:
    """Split "name" or "name:K" and check it against the width D of the vectors.

    Raises:
        InputError: naming the allowed forms.
    """
    name, colon, number = str(spec).partition(":")
    k = int(number) if number.isascii() and number.isdigit() else None
    if name not in TEXT_TRANSFORMS or bool(colon) != (k is not None) or k == 0 or NEEDS_K[name] not in (None, bool(k)):
        raise InputError(f"text_transform: {spec!r} is not known; choose one of {ALLOWED}")
    if k is not None and k > width:
        raise InputError(f"text_transform: {spec!r} asks for {k} directions, the vectors have {width}")
    return name, k


def item_blocks(vectors: Vectors) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, a copy of the rows as float64 on the CPU) over rows 1..V-1."""
    n_rows = max(1, NUMBERS_PER_BLOCK // max(1, vectors.shape[1]))
    for start in range(1, len(vectors), n_rows):
        block = vectors[start : start + n_rows]
        if isinstance(block, Tensor):
            yield start, block.detach().to("cpu", torch.float64, copy=True)
        else:
            yield start, torch.from_numpy(np.array(block, dtype=np.float64))
