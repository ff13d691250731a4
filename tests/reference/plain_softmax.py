"""Full softmax from a matrix of all scores, by torch's own cross entropy: what the blocked one must equal."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def softmax_ce(scores: Tensor, target: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Mean cross entropy of the target, (M,), against every allowed item of (M, V); a row's own target is allowed."""
    if allowed is not None:
        own = target.unsqueeze(1)
        scores = scores.masked_fill(~allowed, -math.inf).scatter(1, own, scores.gather(1, own))
    return F.cross_entropy(scores, target)
