"""Cross entropy over all items, straight from user and item vectors: the matrix of all scores is never held.

Two ways, equal in value and gradient; `blocked_softmax_ce` takes the faster one that fits in the memory:

- `_ByPositions`, a block of positions against all items at a time: the whole row of scores is there, so the gradients
  are made from it at once, in the forward pass. As many operations as the plain way, fewer passes over the memory.
- `_ByItems`, tiles of positions and items: a running log-sum-exp, which is all that is kept; backward makes the scores
  again. One third more operations, for catalogues of which only a few rows of scores fit in the memory or the cache.

Source of the second: Milakov and Gimelshein 2018, arXiv 1805.02867 (online softmax).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_pad.nn.blocks import even_blocks
from recbole_pad.nn.kernels import at_least_float32
from recbole_pad.nn.products import add_product, product, row_unit

CACHED_SCORES = 1 << 21  # scores of a block on a CPU: more of them gain nothing
MOST_SCORES = 1 << 23  # of a block on a CPU: larger blocks leave its cache, and each is new memory from the system
FEWEST_FOR_UNITS = 64**2  # scores of a block: with fewer, padding the positions could take more than the memory
FEWEST_POSITIONS = 128  # of a block against all items: with fewer, the tiles of `_ByItems` are as fast or faster


def blocked_softmax_ce(states: Tensor, vectors: Tensor, target: Tensor, score_bytes: int) -> Tensor:
    """Mean cross entropy of the target against all items: ``softmax_ce(states @ vectors.T, target)`` in blocks.

    Products are made in the type of the arguments, or in autocast's; sums over them in float32 at least. Gradients can
    be taken any number of times, but not differentiated again.

    Args:
        states: user vectors, shape (M, w), M >= 1.
        vectors: item vectors, shape (n, w), n >= 1.
        target: row of `vectors` for each state, shape (M,), int64.
        score_bytes: memory for scores held at once, in bytes; at least one score is held. The gradients of `states`
            and `vectors` come on top; they may be made in the forward pass already.

    Returns:
        A scalar >= 0, float32 or wider.

    Raises:
        ValueError: shapes that do not fit or are empty.
    """
    fits = states.dim() == 2 and vectors.dim() == 2 and states.shape[1] == vectors.shape[1]
    if not fits or target.shape != states.shape[:1] or not len(target) or not len(vectors):
        raise ValueError(
            f"expected states (M, w), vectors (n, w) and target (M,), not empty; "
            f"got {tuple(states.shape)}, {tuple(vectors.shape)} and {tuple(target.shape)}"
        )
    product_type = (states[:1] @ vectors[:1].T).dtype  # under autocast: the type it chooses
    max_scores = max(1, score_bytes // _bytes_per_score(product_type))
    with torch.autocast(states.device.type, enabled=False):
        states, vectors = states.to(product_type), vectors.to(product_type)
        unit = row_unit(states) if max_scores >= FEWEST_FOR_UNITS else 1
        padded = math.ceil(len(states) / unit) * unit
        way, shape = _block_shape(padded, len(vectors), max_scores, states.device.type == "cpu")
        loss: Tensor = way.apply(states, vectors, target, _Blocks(*shape, unit))
        return loss


def _bytes_per_score(product_type: torch.dtype) -> int:
    """Of a score in the type of the products, and once more in float32 where that is another one."""
    wide = torch.float64 if product_type == torch.float64 else torch.float32
    return wide.itemsize + (0 if wide == product_type else 2 * product_type.itemsize)


def _block_shape(
    n_positions: int, n_items: int, max_scores: int, in_cache: bool
) -> tuple[type[_ByPositions] | type[_ByItems], tuple[int, int]]:
    """Which of the two ways, and (positions, items) of a block; their product is at most `max_scores`."""
    fitting = (min(max_scores, MOST_SCORES) if in_cache else max_scores) // n_items
    if fitting >= min(n_positions, FEWEST_POSITIONS):
        quick = max(FEWEST_POSITIONS, CACHED_SCORES // n_items) if in_cache else fitting
        return _ByPositions, (min(n_positions, fitting, quick), n_items)
    in_tile = min(max_scores, CACHED_SCORES) if in_cache else max_scores
    positions = min(n_positions, math.isqrt(in_tile))
    return _ByItems, (positions, min(n_items, in_tile // positions))


class _Blocks(NamedTuple):
    """Sizes of a block of scores, and what the number of positions should be a multiple of (`row_unit`)."""

    positions: int
    items: int
    unit: int

    def of_positions(self, n_positions: int) -> list[slice]:
        return even_blocks(0, n_positions, self.positions, self.unit)

    def of_items(self, n_items: int) -> list[slice]:
        return even_blocks(0, n_items, self.items)

    def memory(self, states: Tensor) -> Tensor:
        """Memory for the scores of a block, float32 or wider."""
        return at_least_float32(states.new_empty(0)).new_empty(self.positions * self.items)

    def padded(self, states: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Zero states with target 0 appended, up to a multiple of the unit; their gradients and losses are cut off."""
        n_more = -len(states) % self.unit
        return F.pad(states, (0, 0, 0, n_more)), F.pad(target, (0, n_more))


class _ByPositions(torch.autograd.Function):
    """Cross entropy in blocks of positions; the gradients are made along with the value and kept.

    With P the softmax of the scores and Y the one-hot targets: dL/d(scores) = (P - Y) / M.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, target: Tensor, blocks: _Blocks) -> Tensor:
        ctx.n, ctx.dtype = len(states), states.dtype
        states, target = blocks.padded(states, target)
        memory = blocks.memory(states)
        losses = memory.new_empty(len(states))
        grad_states = memory.new_zeros(states.shape) if ctx.needs_input_grad[0] else None
        # stored by columns, as the products that it is the sum of
        grad_vectors = memory.new_zeros(vectors.T.shape).T if ctx.needs_input_grad[1] else None
        for rows in blocks.of_positions(len(states)):
            slope, losses[rows] = _slope_and_losses(states[rows], vectors, target[rows], memory)
            if grad_states is not None:
                add_product(grad_states[rows], slope, vectors.T)
            if grad_vectors is not None:
                add_product(grad_vectors.T, states[rows].T, slope.T)
            del slope  # before the next one is made
        ctx.save_for_backward(None if grad_states is None else grad_states[: ctx.n], grad_vectors)
        return losses[: ctx.n].mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        scale = upstream[0] / ctx.n
        grads = [
            None if grad is None else torch.mul(grad, scale, out=grad.new_empty(grad.shape)).to(ctx.dtype)
            for grad in ctx.saved_tensors
        ]
        return grads[0], grads[1], None, None


def _slope_and_losses(states: Tensor, vectors: Tensor, target: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """P - Y of a block of positions in the type of the states, shape (m, n), and the cross entropies, shape (m,)."""
    scores, own = product(states, vectors, memory), target[:, None]
    highest = scores.amax(dim=1, keepdim=True)
    above_own = highest - scores.gather(1, own)
    sums = scores.sub_(highest).exp_().sum(dim=1, keepdim=True)
    scores.mul_(sums.reciprocal()).scatter_add_(1, own, scores.new_full(own.shape, -1.0))
    return scores.to(states.dtype), (sums.log() + above_own).squeeze(1)


class _ByItems(torch.autograd.Function):
    """Cross entropy in tiles of positions and items; keeps the log-sum-exp of each position."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, vectors: Tensor, target: Tensor, blocks: _Blocks) -> Tensor:
        ctx.n, ctx.blocks = len(states), blocks
        states, target = blocks.padded(states, target)
        memory = blocks.memory(states)
        log_sums, own = memory.new_empty(len(states)), memory.new_empty(len(states))
        for rows in blocks.of_positions(len(states)):
            highest = memory.new_full((rows.stop - rows.start,), -math.inf)
            sums = torch.zeros_like(highest)
            for items in blocks.of_items(len(vectors)):
                highest, sums = _running_sums(highest, sums, product(states[rows], vectors[items], memory))
            log_sums[rows] = highest + sums.log()
            own[rows] = (at_least_float32(states[rows]) * at_least_float32(vectors[target[rows]])).sum(dim=1)
        ctx.save_for_backward(states, vectors, target, log_sums)
        return (log_sums - own)[: ctx.n].mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        states, vectors, target, log_sums = ctx.saved_tensors
        memory = ctx.blocks.memory(states)
        grad_states = memory.new_zeros(states.shape) if ctx.needs_input_grad[0] else None
        grad_vectors = memory.new_zeros(vectors.shape) if ctx.needs_input_grad[1] else None
        for rows in ctx.blocks.of_positions(len(states)):
            for items in ctx.blocks.of_items(len(vectors)):
                scores = product(states[rows], vectors[items], memory)
                softmax = scores.sub_(log_sums[rows, None]).exp_().to(states.dtype)
                if grad_states is not None:
                    add_product(grad_states[rows], softmax, vectors[items].T)
                if grad_vectors is not None:
                    add_product(grad_vectors[items].T, states[rows].T, softmax.T)
                del scores, softmax  # before the next ones are made
        if grad_states is not None:
            grad_states -= vectors[target]
        if grad_vectors is not None:
            grad_vectors.index_add_(0, target, states.to(grad_vectors.dtype), alpha=-1)
        scale = upstream[0] / ctx.n
        grads = [None if grad is None else grad.mul_(scale).to(states.dtype) for grad in (grad_states, grad_vectors)]
        return None if grads[0] is None else grads[0][: ctx.n], grads[1], None, None


def _running_sums(highest: Tensor, sums: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score and the sum of exp(score - highest), with a further block of scores: (m,), (m,), (m, k)."""
    higher = torch.maximum(highest, scores.amax(dim=1))
    further = scores.sub_(higher[:, None]).exp_().sum(dim=1)
    return higher, sums * (highest - higher).exp_() + further
