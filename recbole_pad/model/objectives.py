"""The recommendation loss of a step: which items it needs, and its value from user states and item vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.nn.blocked_softmax import blocked_softmax_ce
from recbole_pad.nn.losses import bce, sampled_softmax


@dataclass(frozen=True)
class Step:
    """What a loss needs of one training step; M training positions, n items, w columns.

    Attributes:
        states: user vectors, shape (M, w).
        vectors: item vectors, shape (n, w).
        target: rows of `vectors`, shape (M,).
        negatives: rows of `vectors`: (M, K), or (K,) shared by all positions; None where the loss needs all items.
        target_ids: item ids of the targets, shape (M,).
        negative_ids: item ids of the negatives, as `negatives`.
        softmax_ids: item ids of the full softmax, sorted, shape (S,); every target is among them.
        sampler: for its sampling probabilities.
        score_memory_mb: memory for the scores that the full softmax holds at once, in MB (2^20 bytes).
    """

    states: Tensor
    vectors: Tensor
    target: Tensor
    negatives: Tensor | None
    target_ids: Tensor
    negative_ids: Tensor | None
    softmax_ids: Tensor
    sampler: NegativeSampler | None
    score_memory_mb: int = 512


def _no_negatives(sampler: NegativeSampler | None, users: Tensor, n_negatives: int) -> Tensor | None:
    return None


def _per_position(sampler: NegativeSampler | None, users: Tensor, n_negatives: int) -> Tensor | None:
    assert sampler is not None
    return sampler.draw_unseen_by(users, n_negatives)


def _shared(sampler: NegativeSampler | None, users: Tensor, n_negatives: int) -> Tensor | None:
    assert sampler is not None
    return sampler.draw_shared(n_negatives)


def _full_softmax(step: Step) -> Tensor:
    """Cross entropy over the items of the softmax only: leaving the others out early saves their columns."""
    has_all = len(step.softmax_ids) == len(step.vectors) - 1  # all but the padding: no copy is needed
    vectors = step.vectors[1:] if has_all else step.vectors.index_select(0, step.softmax_ids)
    target = torch.searchsorted(step.softmax_ids, step.target_ids)
    return blocked_softmax_ce(step.states, vectors, target, step.score_memory_mb * 2**20)


def _pos_score(step: Step) -> Tensor:
    return (step.states * step.vectors[step.target]).sum(dim=1)


def _binary(step: Step) -> Tensor:
    neg_score = torch.einsum("mw,mkw->mk", step.states, step.vectors[step.negatives])
    return bce(_pos_score(step), neg_score)


def _sampled_softmax(step: Step) -> Tensor:
    assert step.sampler is not None
    assert step.negatives is not None
    assert step.negative_ids is not None
    neg_score = step.states @ step.vectors[step.negatives].T
    return sampled_softmax(
        _pos_score(step),
        neg_score,
        step.negative_ids[None, :] == step.target_ids[:, None],
        # of the negatives alone: the target is not drawn, it is always in (Khrylchenko et al. 2025)
        step.sampler.log_expected_count(step.negative_ids).expand_as(neg_score),
    )


@dataclass(frozen=True)
class Objective:
    """One entry of `OBJECTIVES`: how negatives are drawn, and the loss."""

    draw: Callable[[NegativeSampler | None, Tensor, int], Tensor | None]
    loss: Callable[[Step], Tensor]
    needs_sampler: bool = True


OBJECTIVES = {
    "ce": Objective(_no_negatives, _full_softmax, needs_sampler=False),
    "bce": Objective(_per_position, _binary),
    "sampled_softmax": Objective(_shared, _sampled_softmax),
}
