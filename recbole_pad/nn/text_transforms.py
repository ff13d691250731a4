"""Transforms of the raw text vectors before anything is trained: centring, whitening, PCA; several tables side by side.

The vectors may be larger than memory (a numpy memmap): they are read in blocks of rows, statistics are
float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from recbole_pad.errors import InputError

NUMBERS_PER_BLOCK = 2**22  # of a block of rows: 34 MB in float64
_NOISE = 1e-5  # share of the largest eigenvalue below which a direction is noise of the encoder's arithmetic
_FLOOR = 1e-6  # share of it that is added to every eigenvalue before dividing
ALLOWED = (
    "none, center, whiten, whiten:K, pca:K, group_whiten:G, unit (K, G: whole numbers from 1 to the width of the "
    "vectors), or for joint vectors one of them per part, joined by +"
)
AND = "+"  # between the transforms of the parts of joint vectors


class Rows(Protocol):
    """A table of rows that is read in slices: a numpy array, a memory map, or rows of one in another order."""

    @property
    def ndim(self) -> int: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice) -> NDArray[Any]: ...


Vectors = Tensor | NDArray[np.floating] | Rows


class Joint:
    """Tables of the same items side by side; each part is transformed by itself (`transform_text`).

    Args:
        parts: P tables, shapes (V, D_p).
    """

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self.parts = tuple(parts)

    def __len__(self) -> int:
        return len(self.parts[0])


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
    def covariance(self) -> Tensor:
        """Shape (D, D), float64; divisor n."""
        width = self._vectors.shape[1]
        covariance = torch.zeros(width, width, dtype=torch.float64)
        for _, block in item_blocks(self._vectors):
            block -= self.mean
            covariance += block.T @ block
        return covariance / self._n

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (D,), largest first, >= 0, and axes as columns (D, D) of the covariance.

        The entry of largest absolute value of each axis is positive, so that the signs are reproducible.
        """
        eigenvalues, axes = principal_axes(self.covariance)
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        return eigenvalues, axes * torch.sign(largest)


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, largest first, >= 0, and eigenvectors as columns; of a symmetric matrix."""
    eigenvalues, axes = torch.linalg.eigh(covariance)
    return eigenvalues.flip(0).clamp(min=0), axes.flip(1)


RowMap = Callable[[Tensor], Tensor]
"""Rows (n, D) -> transformed rows (n, D'), float64; may write into what it is given."""
Transform = Callable[[Moments, int | None], RowMap]
"""(moments, K or None) -> what to do with a block of rows."""


def _affine(shift: Tensor, matrix: Tensor | None = None) -> RowMap:
    """Rows -> (rows - shift) @ matrix."""

    def moved(rows: Tensor) -> Tensor:
        rows -= shift
        return rows if matrix is None else rows @ matrix

    return moved


def center(moments: Moments, k: int | None) -> RowMap:
    """Subtract the mean."""
    return _affine(moments.mean)


def pca(moments: Moments, k: int | None) -> RowMap:
    """(x - mean) on the K leading principal axes, not rescaled."""
    return _affine(moments.mean, moments.axes[1][:, :k])


def whiten(moments: Moments, k: int | None) -> RowMap:
    """(x - mean) on the principal axes, each divided by sqrt(eigenvalue + 1e-6 * largest eigenvalue).

    Directions below 1e-5 of the largest eigenvalue are noise of the encoder's arithmetic and are dropped.

    Raises:
        InputError: all vectors are equal.

    Source: Su et al. 2021, "Whitening Sentence Representations", arXiv 2103.15316.
    """
    eigenvalues, axes = moments.axes
    _require_spread(eigenvalues[0], moments)
    keep = eigenvalues >= _NOISE * eigenvalues[0]
    return _affine(moments.mean, (axes / torch.sqrt(eigenvalues + _FLOOR * eigenvalues[0]))[:, keep][:, :k])


def group_whiten(moments: Moments, k: int | None) -> RowMap:
    """(x - mean) whitened within each of K groups of neighbouring columns, along the columns themselves (ZCA).

    Each group gets the covariance identity; what the groups have in common stays: the more groups, the more of it. One
    group is full whitening. Directions without variance, as of `whiten`, become zero: the width stays D.

    Raises:
        InputError: all vectors are equal.

    Source: Zhang et al. 2024, "Are ID Embeddings Necessary? Whitening Pre-trained Text Embeddings for Effective
    Sequential Recommendation" (WhitenRec), ICDE.
    """
    assert k is not None, "`parse_spec` requires the number of groups"
    least = _require_spread(moments.covariance.diagonal().max(), moments)
    matrix = torch.zeros_like(moments.covariance)
    for columns in torch.arange(len(matrix)).tensor_split(k):
        own = slice(int(columns[0]), int(columns[-1]) + 1)
        eigenvalues, axes = principal_axes(moments.covariance[own, own])
        keep = (eigenvalues >= _NOISE * eigenvalues[0]) & (eigenvalues > least)
        axes, scales = axes[:, keep], torch.sqrt(eigenvalues + _FLOOR * eigenvalues[0])[keep]
        matrix[own, own] = axes / scales @ axes.T
    return _affine(moments.mean, matrix)


def _require_spread(variance: Tensor, moments: Moments) -> Tensor:
    """Refuse vectors without variance; returns the variance that is no more than rounding of the mean."""
    least = 1e-20 * moments.mean.square().sum()
    if not variance > least:
        raise InputError("all text vectors are equal: there is nothing to whiten; use text_transform: none")
    return least


def none(moments: Moments, k: int | None) -> RowMap:
    """Leave the vectors as they are."""
    return lambda rows: rows


def unit(moments: Moments, k: int | None) -> RowMap:
    """Each vector at length 1; an all-zero one stays zero."""
    return lambda rows: F.normalize(rows, dim=1)


TEXT_TRANSFORMS: dict[str, Transform] = {
    "none": none,
    "unit": unit,
    "center": center,
    "whiten": whiten,
    "pca": pca,
    "group_whiten": group_whiten,
}
# None: K is optional
NEEDS_K = {"none": False, "unit": False, "center": False, "whiten": None, "pca": True, "group_whiten": True}


def transform_text(vectors: Vectors | Joint, spec: str) -> Tensor:
    """Transform the text table.

    The parts of joint vectors are transformed each by itself, scaled to the mean squared length of the first part, and
    put side by side: where the vectors of each part are about equally long, the cosine of two joint vectors is about
    the mean of the cosines of their parts.

    Args:
        vectors: text vectors, shape (V, D), any float type, tensor or numpy array (a memmap is read block by
            block). Row 0 is padding: it enters no statistic.
        spec: "none", "unit", "center", "whiten", "whiten:K", "pca:K" or "group_whiten:G". For joint vectors one for
            all parts, or one per part, joined by "+": "whiten+unit".

    Returns:
        float32 on the CPU, shape (V, D'), a new tensor; row 0 is zero. D' is D for none, unit, center and group_whiten,
        K for pca, and the number of directions kept for whiten (at most K, fewer if the vectors do not span K
        directions); of joint vectors the sum over the parts.

    Raises:
        InputError: bad `spec`, K above D, values that are not finite, no item, or nothing to whiten.
    """
    width, blocks = transformed_blocks(vectors, spec)
    out = torch.zeros(len(vectors), width, dtype=torch.float32)
    for start, block in blocks:
        out[start : start + len(block)] = block
    return out


def transformed_blocks(vectors: Vectors | Joint, spec: str) -> tuple[int, Iterator[tuple[int, Tensor]]]:
    """As `transform_text`, block by block, for results that do not fit into memory.

    Returns:
        D', and an iterator of (first row, transformed rows as float32 on the CPU) over rows 1..V-1.

    Raises:
        InputError: as `transform_text`; all of it before the first block.
    """
    parts = vectors.parts if isinstance(vectors, Joint) else (vectors,)
    for part in parts:
        if part.ndim != 2:
            raise InputError(f"text vectors must have shape (items, width), got {tuple(part.shape)}")
    maps = [_row_map(part, own) for part, own in zip(parts, specs_of_parts(spec, len(parts)), strict=True)]
    width = sum(
        move(torch.empty(0, part.shape[1], dtype=torch.float64)).size(1) for part, move in zip(parts, maps, strict=True)
    )
    if len(parts) > 1:
        maps = _as_long_as_first(parts, maps)

    def moved(blocks: Sequence[tuple[int, Tensor]]) -> tuple[int, Tensor]:
        own = [move(block).float() for move, (_, block) in zip(maps, blocks, strict=True)]
        return blocks[0][0], torch.cat(own, dim=1)

    n_rows = rows_of_block(sum(part.shape[1] for part in parts))
    return width, map(moved, zip(*(item_blocks(part, n_rows) for part in parts), strict=True))


def _row_map(vectors: Vectors, spec: str) -> RowMap:
    name, k = parse_spec(spec, width=vectors.shape[1])
    return TEXT_TRANSFORMS[name](Moments(vectors), k)


def _as_long_as_first(parts: Sequence[Vectors], maps: Sequence[RowMap]) -> list[RowMap]:
    """The maps, scaled: what each of them makes has the mean squared length of what the first one makes."""
    squares = [
        float(sum(move(block).square().sum() for _, block in item_blocks(part)))
        for part, move in zip(parts, maps, strict=True)
    ]
    if not all(0 < square < float("inf") for square in squares):
        raise InputError("a part of the joint text vectors is zero for all items, or not finite; leave it out")
    return [_scaled(move, (squares[0] / square) ** 0.5) for move, square in zip(maps, squares, strict=True)]


def _scaled(move: RowMap, scale: float) -> RowMap:
    return lambda rows: move(rows) * scale


def specs_of_parts(spec: str, n_parts: int) -> list[str]:
    """The transform of each part: one for all, or one per part.

    Raises:
        InputError: if their number is neither 1 nor `n_parts`.
    """
    specs = str(spec).split(AND)
    if len(specs) not in (1, n_parts):
        raise InputError(
            f"text_transform: {spec!r} names {len(specs)} transforms, but text_encoder has {n_parts} part(s); give one "
            "for all, or one per part"
        )
    return specs * n_parts if len(specs) == 1 else specs


def unit_rows(vectors: Tensor, shortest: float) -> Tensor:
    """Rows scaled to length 1; zero where a row is shorter than `shortest`: (n, D) -> (n, D)."""
    return F.normalize(vectors, dim=1) * (vectors.norm(dim=1, keepdim=True) >= shortest)


def shortest_of(vectors: Tensor) -> float:
    """The length below which a row of such vectors, shape (n, D), says nothing: a thousandth of the median length.

    An item without text gets the mean of the others, which a transform that centres moves to zero, up to rounding:
    scaled up, such rows would all be the same vector, and each other's nearest neighbours.
    """
    return 1e-3 * float(vectors.norm(dim=1).median())


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
        raise InputError(f"text_transform: {spec!r} asks for {k}, the vectors have {width} columns")
    return name, k


def rows_of_block(width: int) -> int:
    """Rows of a block of vectors of this width."""
    return max(1, NUMBERS_PER_BLOCK // max(1, width))


def item_blocks(vectors: Vectors, n_rows: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (first row, a copy of the rows as float64 on the CPU) over rows 1..V-1, `n_rows` at a time."""
    n_rows = n_rows or rows_of_block(vectors.shape[1])
    for start in range(1, len(vectors), n_rows):
        block = vectors[start : start + n_rows]
        if isinstance(block, Tensor):
            yield start, block.detach().to("cpu", torch.float64, copy=True)
        else:
            yield start, torch.from_numpy(np.array(block, dtype=np.float64))
