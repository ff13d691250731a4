"""Recommendation losses on scores: which positions and which negatives is the caller's business."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_pad.nn.kernels import at_least_float32


def bce(pos_score: Tensor, neg_score: Tensor) -> Tensor:
    """Binary cross entropy with separate means: mean[-log sigma(s+)] + mean[-log(1 - sigma(s-))].

    Args:
        pos_score: scores of the targets, shape (M,), M >= 1.
        neg_score: scores of the K negatives of each, shape (M, K), K >= 1. More negatives do not weigh more.

    Returns:
        A scalar >= 0, float32 or wider; 2 log 2 when every score is 0.

    Raises:
        ValueError: shapes that do not fit or are empty.

    Source: PAD, L_REC; Kang and McAuley 2018 (SASRec).
    """
    _check_negatives(pos_score, neg_score)
    return F.softplus(-at_least_float32(pos_score)).mean() + F.softplus(at_least_float32(neg_score)).mean()


def sampled_softmax(
    pos_score: Tensor,
    neg_score: Tensor,
    neg_is_target: Tensor,
    log_expected_count: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of the target against K sampled negatives, logQ-corrected where that is given.

    Subtracting the log of how often the sampler is expected to draw an item makes the sampled softmax
    approach the full one; without it, popular items are pushed down when the sampler prefers them.

    Args:
        pos_score: scores of the targets, shape (M,), M >= 1.
        neg_score: scores of the negatives, shape (M, K), K >= 1.
        neg_is_target: True where a sampled negative IS the row's target (accidental hit), shape (M, K), bool;
            such a negative is left out. A row whose negatives are all hits has loss 0.
        log_expected_count: log of the expected number of draws of each negative, shape (M, K); None: no
            correction. The target is always in, and not corrected (`model.objectives`).

    Returns:
        A scalar >= 0, float32 or wider.

    Raises:
        ValueError: shapes that do not fit or are empty.

    Source: Bengio and Senecal 2008, IEEE TNN 19(4); Yi et al. 2019, RecSys (sampling-bias correction); Khrylchenko et
    al. 2025, RecSys (the target, which is not drawn, is not corrected).
    """
    _check_negatives(pos_score, neg_score)
    _check_shape("neg_is_target", neg_is_target, neg_score)
    pos, neg = at_least_float32(pos_score), at_least_float32(neg_score)
    if log_expected_count is not None:
        _check_shape("log_expected_count", log_expected_count, neg_score)
        neg = neg - log_expected_count
    logits = torch.cat([pos.unsqueeze(1), neg.masked_fill(neg_is_target, -math.inf)], dim=1)
    return F.cross_entropy(logits, torch.zeros(len(pos), dtype=torch.long, device=pos.device))


def _check_shape(name: str, values: Tensor, like: Tensor) -> None:
    if values.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(values.shape)}")


def _check_negatives(pos_score: Tensor, neg_score: Tensor) -> None:
    fits = pos_score.dim() == 1 and neg_score.dim() == 2 and len(pos_score) == len(neg_score)
    if not fits or not neg_score.numel():
        raise ValueError(
            f"expected pos_score (M,) and neg_score (M, K), not empty; "
            f"got {tuple(pos_score.shape)} and {tuple(neg_score.shape)}"
        )


LOSSES = ("ce", "bce", "sampled_softmax")
"""The words of config key `loss`; what each computes in a step: `model.objectives.OBJECTIVES`."""
N_NEGATIVES = {"bce": 1, "sampled_softmax": 1024}
"""`n_negatives: auto`: of each position (bce), or shared by a step (sampled_softmax)."""
