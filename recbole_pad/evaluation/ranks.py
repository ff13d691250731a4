"""The target's rank among all items, with and without the user's history masked."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def target_ranks(
    scores: Tensor, target: Tensor, history_rows: Tensor | None = None, history_items: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rank of each row's target: 1 + (items with a higher score) + (other items with the same score) / 2.

    Half a place per tie is the expected rank under random order: a model that gives every item one score gets
    the middle of the list, not the top. Padding (item 0) never counts. `scores` is not modified.

    Args:
        scores: shape (B, V), any float type; may hold infinities.
        target: item of each row, shape (B,), int64 in 1..V-1.
        history_rows: with `history_items`, the pairs (row of the batch, item) of the users' histories, each
            shape (h,), int64. Repeated pairs count once. None: no history, both ranks are equal.
        history_items: see `history_rows`; item 0 is ignored.

    Returns:
        (rank among all items, rank among the items outside the history), float64, shape (B,), on the scores'
        device. A target that is itself in the history has masked rank infinity, a sure miss, as in the
        published evaluation.

    Raises:
        ValueError: NaN scores, shapes that do not fit, a target outside 1..V-1, or only one of the history
            tensors.

    Source: PAD's evaluation masks the history; RecBole's sequential one does not. Both are offered.
    """
    if scores.dim() != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"expected scores (B, V) and target (B,), got {tuple(scores.shape)} and {tuple(target.shape)}")
    n_bad = int(torch.isnan(scores).any(dim=1).sum())
    if n_bad:
        raise ValueError(f"{n_bad} of {len(scores)} rows of scores contain NaN: the model has diverged")
    if bool(((target < 1) | (target >= scores.shape[1])).any()):
        raise ValueError(f"targets must be items 1..{scores.shape[1] - 1}; 0 is padding")

    target_score = scores.gather(1, target.unsqueeze(1))
    higher = _count(scores[:, 1:] > target_score)
    ties = _count(scores[:, 1:] == target_score) - 1
    everything = 1 + higher + ties / 2
    if history_rows is None and history_items is None:
        return everything, everything.clone()
    if history_rows is None or history_items is None or history_rows.shape != history_items.shape:
        raise ValueError("give history_rows and history_items together, of one shape, or neither")

    rows, items = _distinct_pairs(history_rows, history_items, n_items=scores.shape[1])
    score, own_score = scores[rows, items], target_score[rows, 0]
    is_target = items == target[rows]
    places = (score > own_score).double() + (score == own_score).double() / 2
    freed = torch.zeros_like(everything).index_add_(0, rows, places.masked_fill(is_target, 0.0))
    masked = everything - freed
    masked[rows[is_target]] = math.inf
    return everything, masked


def _count(is_counted: Tensor) -> Tensor:
    return is_counted.sum(dim=1).double()


def _distinct_pairs(rows: Tensor, items: Tensor, n_items: int) -> tuple[Tensor, Tensor]:
    is_item = items != 0
    pair = torch.unique(rows[is_item].long() * n_items + items[is_item])
    return pair // n_items, pair % n_items
