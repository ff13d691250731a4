"""The target's rank among all items, with and without the user's history masked, from a matrix of scores."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recbole_pad.errors import InputError
from recbole_pad.nn.score_pairs import distinct_pairs

_TILE = 2**20  # scores compared at once: they and the marks of the comparison stay in the processor's cache


@torch.no_grad()
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
    refuse_bad_targets(target, scores.size(1))
    check_history(history_rows, history_items)

    own = scores.gather(1, target.unsqueeze(1))
    counts = torch.zeros(2, len(scores), dtype=torch.float64, device=scores.device)
    has_nan = torch.isnan(scores[:, 0])
    marks = torch.empty(min(scores.numel(), _TILE), device=scores.device)
    n_columns = max(1, min(scores.size(1) - 1, _TILE))
    n_rows = _TILE // n_columns
    for column in range(1, scores.size(1), n_columns):
        for row in range(0, len(scores), n_rows):
            rows = slice(row, row + n_rows)
            tile = scores[rows, column : column + n_columns]
            counts[:, rows] += count_above(tile, own[rows], marks)
            has_nan[rows] |= torch.isnan(tile.amax(dim=1))
    refuse_nan(has_nan)
    everything = places(counts)
    if history_rows is None or history_items is None:
        return everything, everything.clone()
    pairs = distinct_pairs(history_rows, history_items, scores.size(1))
    return everything, masked_ranks(everything, own[:, 0], target, *pairs, scores[pairs])


def count_above(scores: Tensor, own: Tensor, marks: Tensor) -> Tensor:
    """How many scores are higher than the row's own one, and how many are not lower: shape (2, B), float64.

    Args:
        scores: shape (B, n), any float type.
        own: shape (B, 1).
        marks: room for at least B * n float32 numbers, overwritten. Zeros and ones in float32, summed there, cost a
            fraction of what torch takes for booleans; the sums are exact up to n = 2^24.
    """
    is_counted = marks[: scores.numel()].view(scores.shape)
    higher = torch.gt(scores, own, out=is_counted).sum(dim=1)
    not_lower = torch.ge(scores, own, out=is_counted).sum(dim=1)
    return torch.stack([higher, not_lower]).double()


def places(counts: Tensor) -> Tensor:
    """Ranks from the sums of `count_above` over all items: half way between the best and the worst place."""
    return (1 + counts[0] + counts[1]) / 2


def masked_ranks(everything: Tensor, own: Tensor, target: Tensor, rows: Tensor, items: Tensor, score: Tensor) -> Tensor:
    """Ranks among the items outside the history.

    Args:
        everything: ranks among all items, shape (B,).
        own: scores of the targets, shape (B,).
        target: shape (B,).
        rows: with `items`, the distinct (row, item) pairs of the histories, shape (h,).
        items: see `rows`.
        score: of the pairs, shape (h,).
    """
    own_score, is_target = own[rows], items == target[rows]
    freed = ((score > own_score).double() + (score >= own_score).double()) / 2
    masked = everything.index_add(0, rows, -freed.masked_fill(is_target, 0.0))
    masked[rows[is_target]] = math.inf
    return masked


def refuse_bad_targets(target: Tensor, n_items: int) -> None:
    """Raise ValueError where a target is padding or no item."""
    if bool(((target < 1) | (target >= n_items)).any()):
        raise ValueError(f"targets must be items 1..{n_items - 1}; 0 is padding")


def check_history(rows: Tensor | None, items: Tensor | None) -> None:
    """Raise ValueError unless both tensors are given, of one shape, or neither."""
    if (rows is None) != (items is None) or (rows is not None and items is not None and rows.shape != items.shape):
        raise ValueError("give history_rows and history_items together, of one shape, or neither")


def refuse_nan(has_nan: Tensor) -> None:
    """Refuse rows of scores that hold a NaN; `has_nan` has the shape (B,).

    Raises:
        InputError: where there is one.
    """
    n_bad = int(has_nan.sum())
    if n_bad:
        raise InputError(
            f"{n_bad} of {len(has_nan)} rows of scores contain NaN: the model has diverged; train with a lower "
            "learning_rate"
        )
