"""Probabilistic linear discriminant analysis (PLDA): which directions of the text vectors say what is chosen together.

A cosine counts every direction of the vectors alike. Items that one user takes one after the other have some of
them in common (brand, kind) and others not (size, wording). In coordinates in which the vectors of all pairs are white
and the correlations of a pair are diagonal, rho_k, the log-likelihood ratio of "x and y are a pair" against "any two"
is, for Gaussians, sum_k rho_k / (1 - rho_k^2) x_k y_k and terms of each item alone. Closed form, nothing is trained by
gradients, and an item that was never seen has its place like any other.

Source: Ioffe 2006 (ECCV). Vectors of one length before it: Garcia-Romero and Espy-Wilson 2011 (Interspeech); after it,
in place of the terms of each item alone, as Kaldi has it. Directions of rho <= 0 are left out: in PLDA there are none.
Users' neighbouring items as pairs are ours (docs/decisions.md, "Match expert").
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_pad.nn.ragged import Ragged
from recbole_pad.nn.text_transforms import rows_of_block

TEXT_METRICS = ("cosine", "plda")
_LOWEST, _HIGHEST = 1e-6, 0.95  # of a correlation: below is rounding; near 1 the weight has no bound
_NO_SPREAD = 1e-12  # of the total variance over the squared length of the mean: below, all vectors are the same


class PLDA(nn.Module):
    """The map of unit vectors into the space in which the inner product says whether two items are a pair.

    Args:
        mean: of the vectors of all pairs, shape (D,).
        directions: shape (D, K); K is the number of directions in which pairs correlate.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("directions", directions, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
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
        The map, float32; None if no pair is left, if all their vectors are the same, or if pairs correlate in no
        direction.
    """
    assert pairs.values is not None
    n_items = len(pairs.offsets) - 1
    first = torch.repeat_interleave(torch.arange(n_items), pairs.offsets.diff())
    width = rows(first[:1]).size(1)

    def blocks_of(items: Tensor) -> tuple[Tensor, ...]:
        return items.split(rows_of_block(width))

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

    total, cross = torch.zeros(2, width, width, dtype=torch.float64)
    for items in blocks_of(paired):
        block = centred(items)
        total += block.T @ (mass[items, None] * block)
    for pair in blocks_of(torch.arange(len(first))):
        items, place = first[pair].unique_consecutive(return_inverse=True)
        followers = weights[pair, None] * centred(second[pair])
        cross += centred(items).T @ followers.new_zeros(len(items), width).index_add_(0, place, followers)
    total, cross = total / mass.sum(), (cross + cross.T) / mass.sum()
    if total.trace() <= _NO_SPREAD * mean.square().sum():
        return None
    ridge = width / weights.sum() * total.diagonal().mean()
    variance, axes = torch.linalg.eigh(total + ridge * torch.eye(width))
    white = axes / variance.sqrt()
    rho, axes = torch.linalg.eigh(white.T @ cross @ white)
    positive = rho > _LOWEST
    if not positive.any():
        return None
    rho = rho[positive].clamp(max=_HIGHEST)
    directions = white @ axes[:, positive] * (rho / (1 - rho.square())).sqrt()
    return PLDA(mean.float(), directions.float())
