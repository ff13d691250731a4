"""Kernels for the MMD: how near two rows are, and how a bandwidth turns that into a number.

A kernel is two functions. `pairwise` compares all rows once, without a bandwidth; `value` applies one
bandwidth to the result. So a multi-kernel MMD computes ONE matrix and evaluates every bandwidth on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return float32 and float64 as they are, the rest as float32 (half precision underflows in exp)."""
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Squared Euclidean distances by one matrix product: |a|^2 + |b|^2 - 2 a.b.

    Args:
        x: rows, shape (n, d), float32 or wider.
        y: rows, shape (m, d), same type. Passing the SAME tensor as `x` makes the diagonal exactly 0.

    Returns:
        Shape (n, m), >= 0. The rounding error is relative to |a|^2 + |b|^2: centre rows that lie far from 0.
    """
    x_norm = (x * x).sum(dim=1, keepdim=True)
    y_norm = (y * y).sum(dim=1)
    sq_dist = (x_norm + y_norm - 2 * (x @ y.T)).clamp(min=0)
    if x is y:
        sq_dist = sq_dist.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0.0)
    return sq_dist


def l1_distances(x: Tensor, y: Tensor) -> Tensor:
    """Sums of absolute differences |a - b|_1 of all pairs of rows; (n, d) and (m, d) -> (n, m)."""
    return torch.cdist(x, y, p=1.0)


def dot_products(x: Tensor, y: Tensor) -> Tensor:
    """Inner products a.b of all pairs of rows; (n, d) and (m, d) -> (n, m)."""
    return x @ y.T


def cosine_similarities(x: Tensor, y: Tensor) -> Tensor:
    """Cosines a.b / (|a| |b|) of all pairs of rows; (n, d) and (m, d) -> (n, m) in [-1, 1].

    A zero row has no direction: its similarity is 0 and its gradient finite.
    """
    return _directions(x) @ _directions(y).T


def _directions(x: Tensor) -> Tensor:
    """Rows of length 1, zero rows as they are; there the gradient of `F.normalize` would be 1e12 times as large."""
    sq_norm = (x * x).sum(dim=1, keepdim=True)
    return x * torch.where(sq_norm > 0, sq_norm, 1.0).rsqrt()


def gaussian(sq_dist: Tensor, sigma_sq: Tensor) -> Tensor:
    """Gaussian kernel: k(a, b) = exp(-|a - b|^2 / (2 sigma^2)).

    Args:
        sq_dist: squared Euclidean distances, any shape, float32 or wider.
        sigma_sq: bandwidth sigma^2, a scalar in SQUARED distance units, > 0; infinity gives 1 everywhere.

    Returns:
        Values in [0, 1], the shape of `sq_dist`; exactly 1 where the distance is 0.

    Source: Gretton et al. 2012, "A Kernel Two-Sample Test", JMLR 13; PAD, alignment phase.
    """
    return torch.exp(-sq_dist / (2 * sigma_sq))


def laplacian(l1_dist: Tensor, scale: Tensor) -> Tensor:
    """Laplacian kernel: k(a, b) = exp(-|a - b|_1 / scale).

    Args:
        l1_dist: L1 distances, any shape, float32 or wider.
        scale: bandwidth, a scalar in L1 distance units, > 0; infinity gives 1 everywhere.

    Returns:
        Values in [0, 1], the shape of `l1_dist`; exactly 1 where the distance is 0.

    Source: characteristic like the Gaussian (Sriperumbudur et al. 2010, JMLR 11); PAD, kernel ablation.
    """
    return torch.exp(-l1_dist / scale)


def _as_it_is(similarity: Tensor, scale: Tensor) -> Tensor:
    return similarity


@dataclass(frozen=True)
class Kernel:
    """One kernel, split into the part that is shared by all bandwidths and the part that is not.

    Attributes:
        pairwise: rows (n, d) and rows (m, d) -> (n, m) distances, or similarities of a kernel without
            bandwidth.
        value: (that matrix, scalar bandwidth) -> kernel values of the same shape.
        has_bandwidth: False means that `value` ignores the bandwidth, so there is only one kernel to sum.
    """

    pairwise: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor, Tensor], Tensor]
    has_bandwidth: bool

    def __call__(self, x: Tensor, y: Tensor, bandwidth: float | Tensor = 1.0) -> Tensor:
        """Kernel values of all pairs of rows: (n, d) and (m, d) -> (n, m), for one bandwidth.

        Half-precision rows are widened to float32 first.
        """
        x = at_least_float32(x)
        y = x if y is x else at_least_float32(y)
        return self.value(self.pairwise(x, y), torch.as_tensor(bandwidth, dtype=x.dtype, device=x.device))


KERNELS: dict[str, Kernel] = {
    "gaussian": Kernel(squared_distances, gaussian, has_bandwidth=True),
    "laplacian": Kernel(l1_distances, laplacian, has_bandwidth=True),
    "linear": Kernel(dot_products, _as_it_is, has_bandwidth=False),
    "cosine": Kernel(cosine_similarities, _as_it_is, has_bandwidth=False),
}
"""The kernels by config word. `cosine` is the true cosine; the published code's 1 - cos flips the sign."""
