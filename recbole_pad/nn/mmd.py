"""Losses that align text and ID embeddings: multi-kernel MMD (distributions) and InfoNCE (pairs)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recbole_pad.nn.blocks import even_blocks
from recbole_pad.nn.kernels import KERNELS, Kernel, at_least_float32, cosine_similarities, gaussian
from recbole_pad.nn.products import add_product, product, row_unit
from recbole_pad.registry import pick

ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)
ROWS_PER_BLOCK_CPU = 320  # measured: 224 to 384 are equally fast, smaller and larger blocks slower
ROWS_PER_BLOCK_GPU = 4096


class AlignLoss(Protocol):
    """What every entry of `ALIGN_LOSSES` looks like: one signature, each loss reads what it needs."""

    def __call__(
        self,
        text: Tensor,
        ids: Tensor,
        *,
        kernel: str,
        alphas: Sequence[float],
        temperature: float,
        counts: Tensor | None = None,
    ) -> Tensor:
        """Two times (n, d), and how often each pair of rows occurs, (n,) -> a scalar."""
        ...


def mk_mmd(
    text: Tensor,
    ids: Tensor,
    kernel: str = "gaussian",
    alphas: Sequence[float] = ALPHAS,
    counts: Tensor | None = None,
) -> Tensor:
    """Squared multi-kernel MMD between two samples, unbiased within each; a scalar that can be negative.

    With K = sum_u k_u over the bandwidths alpha_u * (mean distance over all (2N)^2 pairs of the joint
    sample), N rows each:

        1/(N(N-1)) sum_{i != j} [K(t_i,t_j) + K(e_i,e_j)]  -  2/N^2 sum_{i,j} K(t_i,e_j)

    The published code adds the constant 2/(N-1) for unit-diagonal kernels; it has no gradient and is left out
    here. Computed in float32 at least, also inside autocast. If all rows are equal the value and the
    gradients are 0.

    Args:
        text: text embeddings after the adapter, shape (n, d).
        ids: ID embeddings, shape (n, d). The pairing of the rows does not matter.
        kernel: a word of `KERNELS`.
        alphas: bandwidths as multiples of the mean distance, each > 0. Not used by kernels without bandwidth.
            The mean is of squared distances for `gaussian`, of L1 for `laplacian`, and never differentiated.
        counts: multiplicities >= 0 of the n pairs of rows, shape (n,): the samples are those in which row i
            stands counts[i] times, N = sum(counts) >= 2, at the cost of the n distinct rows. A row's gradient
            is the sum over its repeats. None: each row once, N = n.

    Raises:
        ValueError: unequal or not 2-D shapes, N < 2, counts of another shape, or an alpha that is not positive.
        InputError: unknown kernel.

    Source: Gretton et al. 2012, JMLR 13, Lemma 6; PAD, alignment phase.
    """
    entry = pick(KERNELS, kernel, what="mmd_kernel")
    if entry.has_bandwidth and (not alphas or min(alphas) <= 0):
        raise ValueError(f"alphas must be positive numbers, at least one; got {tuple(alphas)}")
    size = _sample_size(text, ids, counts)
    with torch.autocast(text.device.type, enabled=False):
        rows = torch.cat([at_least_float32(text), at_least_float32(ids)])
        if entry.value is gaussian:
            value: Tensor = _GaussianMMD.apply(rows, _per_row(counts, rows), size, tuple(alphas))
            return value
        return matrix_mmd(rows, entry, alphas, counts)


def matrix_mmd(
    rows: Tensor,
    kernel: Kernel,
    alphas: Sequence[float],
    counts: Tensor | None = None,
) -> Tensor:
    """The MMD for any kernel, by autograd on the shared (2n, 2n) matrix.

    Args:
        rows: the joint sample [text; ids], shape (2n, d), float32 or wider.
        kernel: an entry of `KERNELS`.
        alphas: bandwidths as multiples of the mean distance.
        counts: see `mk_mmd`.

    Returns:
        A scalar.
    """
    n = len(rows) // 2
    count = _per_row(counts, rows)
    text, ids = count[:n], count[n:]
    size = text.sum()
    pairwise = kernel.pairwise(rows, rows)
    unit = pairwise.new_ones(())
    if kernel.has_bandwidth:
        unit = _usable_scale((count @ pairwise @ count / (2 * size) ** 2).detach())
    total = pairwise.new_zeros(())
    for alpha in alphas if kernel.has_bandwidth else (1.0,):
        values = kernel.value(pairwise, alpha * unit)
        within = text @ values[:n, :n] @ text + ids @ values[n:, n:] @ ids - values.diagonal() @ count
        total = total + within / (size * (size - 1)) - 2 * (text @ values[:n, n:] @ ids) / size**2
    return total


def _per_row(counts: Tensor | None, rows: Tensor) -> Tensor:
    """How often each row of the joint sample [text; ids] stands in it, shape (2n,), in the type of `rows`."""
    return rows.new_ones(len(rows)) if counts is None else counts.to(rows).repeat(2)


class _GaussianMMD(torch.autograd.Function):
    """Gaussian MK-MMD with its gradient in closed form, in blocks of pairs of rows that fit in the cache.

    Rows are centred and scaled so that the widest kernel is exp(-D/2), D squared distances; a kernel r times
    narrower is exp(-r D/2). With counts c, pair weights W (1/(N(N-1)) within, -1/N^2 across) and
    S_ij = sum_r r exp(-r D_ij/2), off the diagonal:

        L = sum_ij W_ij c_i c_j K(D_ij) + constant,   dL/dz_i = 2 c_i sum_j W_ij S_ij c_j (z_j - z_i)

    The diagonal (a row and its own repeats, distance 0) is the constant. No matrix of pairs is kept for
    backward, only the gradient itself.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: Tensor, size: int, alphas: tuple[float, ...]) -> Tensor:
        # Distances do not change; the Gram matrix gets more exact, and equal rows become exactly 0.
        rows = rows - rows[0]
        rows -= count @ rows / (2 * size)
        mean_dist = count @ rows.square().sum(dim=1) / size  # of |z_i - z_j|^2 over all pairs
        scale = (max(alphas) * _usable_scale(mean_dist)).rsqrt()
        rows *= scale
        ratios = [max(alphas) / alpha for alpha in sorted(alphas, reverse=True)]
        value, pull = _sum_over_pairs(rows, count, size, ratios, ctx.needs_input_grad[0])
        ctx.save_for_backward(pull.mul_(2 * scale) if ctx.needs_input_grad[0] else None)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = ctx.saved_tensors
        return upstream[0] * grad, None, None, None


def _sum_over_pairs(
    rows: Tensor, count: Tensor, size: int, ratios: Sequence[float], needs_pull: bool
) -> tuple[Tensor, Tensor]:
    """The value L, and c_i sum_j W_ij S_ij c_j (z_j - z_i) of each row (0 unless `needs_pull`); see `_GaussianMMD`.

    S is symmetric: each pair of blocks of rows is computed once and used for both.
    """
    n, unit = len(rows) // 2, row_unit(rows)
    rows, count = _padded(rows, unit), _padded(count, unit)  # rows that count 0 times
    padded = len(rows) // 2
    largest = ROWS_PER_BLOCK_CPU if rows.device.type == "cpu" else ROWS_PER_BLOCK_GPU
    blocks = [*even_blocks(0, padded, largest, unit), *even_blocks(padded, 2 * padded, largest, unit)]
    pairs = _PairBlocks(rows, ratios)
    pull = _Pull(rows, count)
    within, across = [count @ (count - 1) * len(ratios)], [rows.new_zeros(())]
    for place, i in enumerate(blocks):
        for j in blocks[place:]:
            kernel_sum, slope = pairs.evaluate(i, j, needs_pull)
            of_one_sample = (i.start < padded) == (j.start < padded)
            total = (kernel_sum @ count[j]) @ count[i]
            (within if of_one_sample else across).append(total if i is j else 2 * total)
            if needs_pull:
                pull.add(i, j, slope, 1 / (size * (size - 1)) if of_one_sample else -1 / size**2)
    value = torch.stack(within).sum() / (size * (size - 1)) - torch.stack(across).sum() / size**2
    return value, pull.of_rows().unflatten(0, (2, padded))[:, :n].flatten(0, 1)


def _padded(values: Tensor, unit: int) -> Tensor:
    """Zeros appended to each half of (2n, ...) so that its length is a multiple of `unit`."""
    halves = values.unflatten(0, (2, -1))
    n_more = -halves.shape[1] % unit
    return torch.cat([halves, halves.new_zeros((2, n_more, *values.shape[1:]))], dim=1).flatten(0, 1)


class _Pull:
    """Collects c_i sum_j G_ij c_j (z_j - z_i) from blocks of the symmetric matrix G.

    Args:
        rows: z, shape (m, d).
        count: c, shape (m,).
    """

    def __init__(self, rows: Tensor, count: Tensor) -> None:
        self._rows, self._count = rows, count
        self._counted = rows * count[:, None]
        self._towards, self._sums = torch.zeros_like(rows), torch.zeros_like(count)

    def add(self, i: slice, j: slice, slope: Tensor, weight: float) -> None:
        """The block G[i, j] = weight * slope, and with it G[j, i]; `slope` has shape (I, J)."""
        self._add(i, j, slope, weight)
        if i is not j:
            self._add(j, i, slope.T, weight)

    def _add(self, i: slice, j: slice, slope: Tensor, weight: float) -> None:
        add_product(self._towards[i], slope, self._counted[j].T, weight)
        self._sums[i].addmv_(slope, self._count[j], alpha=weight)

    def of_rows(self) -> Tensor:
        """What was collected, shape (m, d)."""
        return (self._towards - self._rows * self._sums[:, None]) * self._count[:, None]


class _PairSums(NamedTuple):
    """Of a block of pairs, shape (I, J) each; both are 0 where a row meets itself.

    Attributes:
        kernel: sum_r exp(-r D/2).
        slope: sum_r r exp(-r D/2), twice the derivative of `kernel` by -D; 0 unless asked for.
    """

    kernel: Tensor
    slope: Tensor


class _PairBlocks:
    """Evaluates the kernels on blocks of pairs of rows, in memory that is used again for every block.

    Args:
        rows: scaled rows, shape (m, d); D = squared distances.
        ratios: of each kernel, ascending: exp(-ratio * D/2).
    """

    def __init__(self, rows: Tensor, ratios: Sequence[float]) -> None:
        self._rows, self._ratios = rows, ratios
        self._half_norm = rows.square().sum(dim=1) / 2
        self._memory = rows.new_empty((4, 0))

    def evaluate(self, i: slice, j: slice, needs_slope: bool) -> _PairSums:
        """The sums over all kernels for the rows `i` against the rows `j`; valid until the next call."""
        shape = (i.stop - i.start, j.stop - j.start)
        n_pairs = shape[0] * shape[1]
        if self._memory.shape[1] < n_pairs:
            self._memory = self._memory.new_empty((4, n_pairs))
        values, kernel, slope = (memory[:n_pairs].view(shape) for memory in self._memory[1:])
        exponent = product(self._rows[i], self._rows[j], self._memory[0])
        exponent.sub_(self._half_norm[i, None]).sub_(self._half_norm[j]).clamp_(max=0)
        if i is j:
            exponent.fill_diagonal_(-math.inf)
        kernel.zero_()
        slope.zero_()
        previous = math.inf
        for ratio in self._ratios:
            if ratio == 2 * previous:
                values.mul_(values)
            else:
                torch.mul(exponent, ratio, out=values).exp_()
            previous = ratio
            kernel += values
            if needs_slope:
                slope.add_(values, alpha=ratio)
        return _PairSums(kernel, slope)


def _usable_scale(mean_dist: Tensor) -> Tensor:
    """The mean distance, or infinity where it is 0 (all rows equal): every kernel is then 1 and flat."""
    return torch.where(mean_dist > 0, mean_dist, math.inf)


def info_nce(text: Tensor, ids: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE on cosine similarities: row i of `text` should find row i of `ids`, and the reverse.

    Args:
        text: text embeddings, shape (n, d).
        ids: ID embeddings of the same items in the same order, shape (n, d). An item twice is its own
            negative.
        temperature: > 0; cosines are divided by it.
        counts: multiplicities >= 0 of the n pairs of rows, shape (n,), as in `mk_mmd`.

    Returns:
        The mean of the two directions' cross entropies over all N rows, a scalar >= 0; log(N) when nothing is
        aligned.

    Raises:
        ValueError: unequal or not 2-D shapes, N < 2, counts of another shape, or a temperature that is not
            positive.

    Source: van den Oord et al. 2018, arXiv 1807.03748; symmetric as in CLIP, Radford et al. 2021.
    """
    size = _sample_size(text, ids, counts)
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    with torch.autocast(text.device.type, enabled=False):
        logits = cosine_similarities(at_least_float32(text), at_least_float32(ids)) / temperature
        count = logits.new_ones(len(logits)) if counts is None else counts.to(logits)
        to_ids, to_text = (torch.logsumexp(each + count.log(), dim=1) for each in (logits, logits.T))
        return ((to_ids + to_text) / 2 - logits.diagonal()) @ count / size


def _sample_size(text: Tensor, ids: Tensor, counts: Tensor | None) -> int:
    """Check the arguments of an alignment loss; return the number N of rows of each sample, repeats included."""
    if text.dim() != 2 or text.shape != ids.shape:
        raise ValueError(f"expected two (n, d) tensors of one shape, got {tuple(text.shape)} and {tuple(ids.shape)}")
    if counts is not None and counts.shape != text.shape[:1]:
        raise ValueError(f"counts must have shape ({len(text)},), got {tuple(counts.shape)}")
    size = len(text) if counts is None else int(counts.sum())
    if size < 2:
        raise ValueError(f"an alignment loss needs at least 2 rows, got {size}")
    return size


def _mmd(
    text: Tensor,
    ids: Tensor,
    *,
    kernel: str,
    alphas: Sequence[float],
    temperature: float,
    counts: Tensor | None = None,
) -> Tensor:
    return mk_mmd(text, ids, kernel, alphas, counts=counts)


def _info_nce(
    text: Tensor,
    ids: Tensor,
    *,
    kernel: str,
    alphas: Sequence[float],
    temperature: float,
    counts: Tensor | None = None,
) -> Tensor:
    return info_nce(text, ids, temperature, counts)


def _mmd_and_info_nce(text: Tensor, ids: Tensor, **settings: Any) -> Tensor:
    """The distributions together, and each text with its own ID vector."""
    return _mmd(text, ids, **settings) + _info_nce(text, ids, **settings)


ALIGN_LOSSES: dict[str, AlignLoss] = {
    "mmd": _mmd,
    "infonce": _info_nce,
    "mmd+infonce": _mmd_and_info_nce,
}
