"""Probabilistic linear discriminant analysis (PLDA): which directions of the text vectors say what is chosen together.

A cosine counts every direction of the vectors alike. Items that one user takes one after the other have some of
them in common (brand, kind) and others not (size, wording). In the coordinates in which the vectors of all pairs are
white and the correlation of a pair is diagonal, rho_k, the log likelihood that two items are a pair rather than any two
is, in Gaussian terms, sum_k rho_k / (1 - rho_k^2) x_k y_k and terms of each item alone. Closed form, nothing is
trained by gradients, and an item that was never seen has its place like any other.

Source: PLDA is of Ioffe 2006 (ECCV); scaling the vectors to one length before and after, which stands for the terms
of each item alone, of Garcia-Romero and Espy-Wilson 2011 (Interspeech). Taking users' neighbouring items for pairs is
ours (docs/decisions.md, "Match expert").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recbole_pad.nn.ragged import Ragged

_NUMBERS_PER_BLOCK = 2**22  # of a block of gathered rows: 34 MB in float64
_LOWEST, _HIGHEST = 1e-6, 0.95  # of a correlation: below is rounding; near 1 the weight has no bound


@dataclass(frozen=True)
class PLDA:
    """The map of unit vectors into the space in which the inner product says whether two items are a pair.

    Attributes:
        mean: of the vectors of all pairs, shape (D,), float32.
        directions: shape (D, K), float32; K is the number of directions in which pairs agree.
    """

    mean: Tensor
    directions: Tensor

    def __call__(self, vectors: Tensor) -> Tensor:
        """Unit vectors (n, D) -> unit vectors (n, K); rows of zeros, which have no text, stay zero."""
        is_text = vectors.any(dim=1, keepdim=True)
        return F.normalize((vectors - self.mean) @ self.directions, dim=1) * is_text


def fit_plda(rows: Callable[[Tensor], Tensor], pairs: Ragged) -> PLDA | None:
    """Learn the map from pairs of items.

    Both covariances are of the pairs, so that frequent items count as often as they stand in one. The covariance of
    single vectors gets a ridge of D / (weight of all pairs) of its mean eigenvalue: with few pairs little is whitened.

    Args:
        rows: unit vectors of the items, on the CPU: ids (n,) -> (n, D); zero for an item without text.
        pairs: the second items of the pairs of each first item, with weights; V lists. A pair of an item with itself
            says nothing, and neither does one with an item without text; they are left out.

    Returns:
        The map; None if no pair is left, or if pairs agree in no direction.
    """
    assert pairs.values is not None
    n_items = len(pairs.offsets) - 1
    first = torch.repeat_interleave(torch.arange(n_items), pairs.offsets.diff())
    width = rows(first[:1]).size(1)

    def blocks_of(items: Tensor) -> tuple[Tensor, ...]:
        return items.split(max(1, _NUMBERS_PER_BLOCK // width))

    has_text = torch.cat([rows(items).any(dim=1) for items in blocks_of(torch.arange(n_items))])
    kept = (first != pairs.items) & has_text[first] & has_text[pairs.items]
    first, second, weights = first[kept], pairs.items[kept], pairs.values[kept].double()
    if not len(first):
        return None
    mass = torch.zeros(n_items, dtype=torch.float64)
    mass.index_add_(0, first, weights).index_add_(0, second, weights)
    paired = mass.nonzero().squeeze(1)
    mean = torch.stack([mass[items] @ rows(items).double() for items in blocks_of(paired)]).sum(dim=0) / mass.sum()

    def centred(items: Tensor) -> Tensor:
        return rows(items).double() - mean

    single, both = torch.zeros(2, width, width, dtype=torch.float64)
    for items in blocks_of(paired):
        block = centred(items)
        single += block.T @ (mass[items, None] * block)
    for pair in blocks_of(torch.arange(len(first))):
        items, place = first[pair].unique_consecutive(return_inverse=True)
        followers = weights[pair, None] * centred(second[pair])
        both += centred(items).T @ followers.new_zeros(len(items), width).index_add_(0, place, followers)
    single, both = single / mass.sum(), (both + both.T) / mass.sum()
    ridge = width / weights.sum() * single.diagonal().mean()
    variance, axes = torch.linalg.eigh(single + ridge * torch.eye(width))
    white = axes / variance.sqrt()
    rho, axes = torch.linalg.eigh(white.T @ both @ white)
    agree = rho > _LOWEST
    if not agree.any():
        return None
    rho = rho[agree].clamp(max=_HIGHEST)
    directions = white @ axes[:, agree] * (rho / (1 - rho.square())).sqrt()
    return PLDA(mean.float(), directions.float())
