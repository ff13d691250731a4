"""Losses that align text and ID embeddings: multi-kernel MMD (distributions) and InfoNCE (pairs)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_pad.nn.kernels import (
    KERNELS,
    Kernel,
    at_least_float32,
    cosine_similarities,
    gaussian,
    squared_distances,
)
from recbole_pad.registry import pick

ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
ROWS_PER_BLOCK = 2048


class AlignLoss(Protocol):
    """What every entry of `ALIGN_LOSSES` looks like: one signature, each loss reads what it needs."""

    def __call__(
        self, text: Tensor, ids: Tensor, *, kernel: str, alphas: Sequence[float], temperature: float
    ) -> Tensor:
        """Two times (n, d) -> a scalar."""
        ...


def mk_mmd(
    text: Tensor,
    ids: Tensor,
    kernel: str = "gaussian",
    alphas: Sequence[float] = ALPHAS,
    mean_dist: Tensor | None = None,
) -> Tensor:
    """Squared multi-kernel MMD between two samples, unbiased within each; a scalar that can be negative.

    With K = sum_u k_u over the bandwidths alpha_u * (mean distance over all (2n)^2 pairs of the joint
    sample):

        1/(n(n-1)) sum_{i != j} [K(t_i,t_j) + K(e_i,e_j)]  -  2/n^2 sum_{i,j} K(t_i,e_j)

    The published code adds the constant 2/(n-1) for unit-diagonal kernels; it has no gradient and is left out
    here. Computed in float32 at least, also inside autocast. If all rows are equal the value and the
    gradients are 0.

    Args:
        text: text embeddings after the adapter, shape (n, d), n >= 2.
        ids: ID embeddings, shape (n, d). The pairing of the rows does not matter.
        kernel: a word of `KERNELS`.
        alphas: bandwidths as multiples of the mean distance, each > 0. Not used by kernels without bandwidth.
        mean_dist: the mean distance to use instead of this batch's own: a scalar, squared distance for
            `gaussian`, L1 for `laplacian`. Never differentiated, like the batch's own.

    Raises:
        ValueError: unequal or not 2-D shapes, fewer than two rows, or an alpha that is not positive.
        InputError: unknown kernel.

    Source: Gretton et al. 2012, JMLR 13, Lemma 6; PAD, alignment phase.
    """
    _check_pairs(text, ids)
    entry = pick(KERNELS, kernel, what="mmd_kernel")
    if entry.has_bandwidth and (not alphas or min(alphas) <= 0):
        raise ValueError(f"alphas must be positive numbers, at least one; got {tuple(alphas)}")
    with torch.autocast(text.device.type, enabled=False):
        rows = torch.cat([at_least_float32(text), at_least_float32(ids)])
        if entry.value is gaussian:
            value: Tensor = _GaussianMMD.apply(rows, tuple(alphas), mean_dist)
            return value
        return matrix_mmd(rows, entry, alphas, mean_dist)


def matrix_mmd(rows: Tensor, kernel: Kernel, alphas: Sequence[float], mean_dist: Tensor | None = None) -> Tensor:
    """The MMD for any kernel, by autograd on the shared (2n, 2n) matrix.

    Args:
        rows: the joint sample [text; ids], shape (2n, d), float32 or wider.
        kernel: an entry of `KERNELS`.
        alphas: bandwidths as multiples of the mean distance.
        mean_dist: see `mk_mmd`.

    Returns:
        A scalar.
    """
    n = len(rows) // 2
    pairwise = kernel.pairwise(rows, rows)
    unit = pairwise.new_ones(())
    if kernel.has_bandwidth:
        unit = _usable_scale((pairwise.mean() if mean_dist is None else mean_dist.to(pairwise)).detach())
    total = pairwise.new_zeros(())
    for alpha in alphas if kernel.has_bandwidth else (1.0,):
        values = kernel.value(pairwise, alpha * unit)
        within = values[:n, :n].sum() + values[n:, n:].sum() - values.diagonal().sum()
        total = total + within / (n * (n - 1)) - 2 * values[:n, n:].mean()
    return total


class _GaussianMMD(torch.autograd.Function):
    """Gaussian MK-MMD with its gradient in closed form, in blocks of rows: no (2n, 2n) matrix is kept.

    With pair weights W (1/(n(n-1)) within, -1/n^2 across, 0 on the diagonal), L = sum_ij W_ij K(d_ij), d
    squared distances, and G = W * K'(d):   dL/dz_i = 4 (z_i sum_j G_ij - sum_j G_ij z_j),
    where the diagonal of G cancels.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, alphas: tuple[float, ...], mean_dist: Tensor | None) -> Tensor:
        n = len(rows) // 2
        # Distances do not change; the Gram matrix gets more exact, and equal rows become exactly 0.
        rows = rows - rows[0]
        rows = rows - rows.mean(dim=0)
        own_mean = 2 * rows.square().sum(dim=1).mean()  # = the mean of |z_i - z_j|^2 over all pairs
        unit = _usable_scale(own_mean if mean_dist is None else mean_dist.detach().to(rows))
        needs_grad = ctx.needs_input_grad[0]

        value = rows.new_zeros(())
        grad = torch.zeros_like(rows) if needs_grad else None
        for start in [*range(0, n, ROWS_PER_BLOCK), *range(n, 2 * n, ROWS_PER_BLOCK)]:
            stop = min(start + ROWS_PER_BLOCK, n if start < n else 2 * n)
            block = rows[start:stop]
            weight = rows.new_full((2 * n,), -1 / n**2)
            own_half = weight[:n] if start < n else weight[n:]
            own_half.fill_(1 / (n * (n - 1)))
            sq_dist = squared_distances(block, rows)
            kernel_sum, slope = _sum_over_bandwidths(sq_dist, unit, alphas, needs_grad)
            kernel_sum.diagonal(offset=start).zero_()
            value += (kernel_sum @ weight).sum()
            if grad is not None:
                slope *= weight
                grad[start:stop] = 4 * (slope.sum(dim=1, keepdim=True) * block - slope @ rows)
        if grad is not None:
            ctx.save_for_backward(grad)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return upstream[0] * grad, None, None


def _sum_over_bandwidths(
    sq_dist: Tensor, unit: Tensor, alphas: Sequence[float], needs_slope: bool
) -> tuple[Tensor, Tensor]:
    """Return sum_u k_u and its derivative by the squared distance (left at 0 unless `needs_slope`)."""
    kernel_sum = torch.zeros_like(sq_dist)
    slope = torch.zeros_like(sq_dist) if needs_slope else kernel_sum.new_zeros(())
    for alpha, values in _gaussians(sq_dist, unit, alphas):
        kernel_sum += values
        if needs_slope:
            slope -= values / (2 * alpha * unit)
    return kernel_sum, slope


def _gaussians(sq_dist: Tensor, unit: Tensor, alphas: Sequence[float]) -> Iterator[tuple[float, Tensor]]:
    """Yield (alpha, values), widest first. Half the bandwidth is the square: k_{alpha/2} = k_alpha^2."""
    previous = math.inf
    values = sq_dist
    for alpha in sorted(alphas, reverse=True):
        values = values * values if previous == 2 * alpha else gaussian(sq_dist, alpha * unit)
        previous = alpha
        yield alpha, values


def _usable_scale(mean_dist: Tensor) -> Tensor:
    """The mean distance, or infinity where it is 0 (all rows equal): every kernel is then 1 and flat."""
    return torch.where(mean_dist > 0, mean_dist, math.inf)


def info_nce(text: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Symmetric InfoNCE on cosine similarities: row i of `text` should find row i of `ids`, and the reverse.

    Args:
        text: text embeddings, shape (n, d), n >= 2.
        ids: ID embeddings of the same items in the same order, shape (n, d). An item twice is its own
            negative.
        temperature: > 0; cosines are divided by it.

    Returns:
        The mean of the two directions' cross entropies, a scalar >= 0; log(n) when nothing is aligned.

    Raises:
        ValueError: unequal or not 2-D shapes, fewer than two rows, or a temperature that is not positive.

    Source: van den Oord et al. 2018, arXiv 1807.03748; symmetric as in CLIP, Radford et al. 2021.
    """
    _check_pairs(text, ids)
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    with torch.autocast(text.device.type, enabled=False):
        logits = cosine_similarities(at_least_float32(text), at_least_float32(ids)) / temperature
        own = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def _check_pairs(text: Tensor, ids: Tensor) -> None:
    if text.dim() != 2 or text.shape != ids.shape:
        raise ValueError(f"expected two (n, d) tensors of one shape, got {tuple(text.shape)} and {tuple(ids.shape)}")
    if len(text) < 2:
        raise ValueError(f"an alignment loss needs at least 2 rows, got {len(text)}")


def _mmd(text: Tensor, ids: Tensor, *, kernel: str, alphas: Sequence[float], temperature: float) -> Tensor:
    return mk_mmd(text, ids, kernel, alphas)


def _info_nce(text: Tensor, ids: Tensor, *, kernel: str, alphas: Sequence[float], temperature: float) -> Tensor:
    return info_nce(text, ids, temperature)


def _none(text: Tensor, ids: Tensor, *, kernel: str, alphas: Sequence[float], temperature: float) -> Tensor:
    return torch.zeros((), device=text.device)


ALIGN_LOSSES: dict[str, AlignLoss] = {"mmd": _mmd, "infonce": _info_nce, "none": _none}
