"""Full ranking by inner products in blocks of users and items: exact ranks of the targets, running top-k.

Scores exist as one block of (users x items) at a time, small enough for the processor's cache, so the memory does not
grow with the catalogue beyond the item vectors; those may come block by block too. A matrix product costs nearly all
of the time: counting what is above the target takes three passes over a block in cache, and the top-k looks only at the
rows of a block that hold a score above the k-th best so far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from recbole_pad.evaluation.ranks import (
    check_history,
    count_above,
    masked_ranks,
    places,
    refuse_bad_targets,
    refuse_nan,
)
from recbole_pad.nn.score_pairs import ScorePairs, distinct_pairs

SCORE_MEMORY_MB = 512
_BLOCK = {"cpu": (256, 2**20), "cuda": (4096, 2**26)}  # device -> (users, scores) of a block at most
_BYTES = 4 * 2  # of a block, per score: the score and a mark beside it, float32 both
_MANY = 16  # blocks of items: one more costs little

History = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Items:
    """The item side of a ranking.

    Attributes:
        n_items: V, with padding (item 0), which is never scored.
        vectors: maps item ids (n,) to their vectors (n, w).
    """

    n_items: int
    vectors: Callable[[Tensor], Tensor]

    @classmethod
    def of_table(cls, table: Tensor) -> Items:
        """All vectors in memory: shape (V, w)."""
        return cls(len(table), lambda item_ids: table[item_ids])


@torch.no_grad()
def rank_targets(
    users: Tensor,
    items: Items,
    target: Tensor,
    history: History | None = None,
    score_memory_mb: float = SCORE_MEMORY_MB,
    extra: ScorePairs | None = None,
) -> tuple[Tensor, Tensor]:
    """Ranks of the users' targets, as `ranks.target_ranks` defines them, for the scores ``users @ vectors.T + extra``.

    Equal to it for the scores that the blocks hold: a target's own score is the one in its block, never one computed
    in another way, which would differ in the last bit and lose its ties.

    Args:
        users: user vectors, shape (U, w).
        items: the item vectors.
        target: item of each user, shape (U,), int64 in 1..V-1.
        history: pairs (row of `users`, item), each tensor of shape (h,), int64. Repeated pairs count once, item 0 is
            ignored. None: no history, both ranks are equal.
        score_memory_mb: scores held at once, in MB.
        extra: added to the scores of a few items of each user, or None.

    Returns:
        (rank among all items, rank among the items outside the history), float64, shape (U,); infinite where the
        target itself is in the history.

    Raises:
        ValueError: NaN scores, shapes that do not fit, or a target outside 1..V-1.
    """
    grid = _Grid.of(len(users), items.n_items, users.device, score_memory_mb)
    scores = _Scores(users, items, grid, extra)
    counts = _TargetCounts(scores, target, history)
    _walk(scores, [counts])
    _walk(scores, [counts], counts.restart())
    return counts.ranks()


@torch.no_grad()
def top_k(
    users: Tensor,
    items: Items,
    k: int,
    history: History | None = None,
    score_memory_mb: float = SCORE_MEMORY_MB,
    extra: ScorePairs | None = None,
) -> tuple[Tensor, Tensor]:
    """The k items of the highest scores, best first, those of the history left out.

    Args:
        users: user vectors, shape (U, w).
        items: the item vectors.
        k: length of the lists, >= 1.
        history: items of each user that are left out, see `rank_targets`.
        score_memory_mb: scores held at once, in MB.
        extra: added to the scores of a few items of each user, or None.

    Returns:
        (scores, item ids), shape (U, k) both; score -inf and item 0 where fewer than k items are left. Of equal scores
        in different blocks, the lower item ids come first.

    Raises:
        ValueError: NaN scores, k below 1, or history tensors that do not fit.
    """
    grid = _Grid.of(len(users), items.n_items, users.device, score_memory_mb)
    best = _RunningTopK(users, k, history, grid)
    _walk(_Scores(users, items, grid, extra), [best])
    return best.lists()


@torch.no_grad()
def rank_and_top_k(
    users: Tensor,
    items: Items,
    target: Tensor,
    k: int,
    history: History | None = None,
    score_memory_mb: float = SCORE_MEMORY_MB,
    extra: ScorePairs | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """`rank_targets` and `top_k` (without the history) in one pass over the items."""
    grid = _Grid.of(len(users), items.n_items, users.device, score_memory_mb)
    scores = _Scores(users, items, grid, extra)
    counts = _TargetCounts(scores, target, history)
    best = _RunningTopK(users, k, history, grid)
    _walk(scores, [counts, best])
    _walk(scores, [counts], counts.restart())
    return counts.ranks(), best.lists()


@dataclass(frozen=True)
class _Grid:
    """How users and items are cut: rows of a block, and its columns (items 1..V-1; padding is left out)."""

    n_users: int
    n_items: int
    rows: int
    columns: int

    @classmethod
    def of(cls, n_users: int, n_items: int, device: torch.device, score_memory_mb: float) -> _Grid:
        most_rows, most_scores = _BLOCK.get(device.type, _BLOCK["cuda"])
        n_scores = max(1, min(most_scores, int(score_memory_mb * 2**20) // _BYTES))
        rows = max(1, min(most_rows, n_users, n_scores))
        return cls(n_users, n_items, rows, max(1, min(n_scores // rows, n_items - 1)))

    def row_slices(self) -> list[slice]:
        return [slice(row, min(row + self.rows, self.n_users)) for row in range(0, self.n_users, self.rows)]

    def column_starts(self) -> range:
        return range(1, self.n_items, self.columns)


@dataclass(frozen=True)
class _Block:
    """The scores of some users and items.

    Attributes:
        number: (number of the row chunk, number of the column chunk).
        rows: of the users.
        first_item: the first of the items.
        scores: shape (rows, items).
        highest: the best score of each row, shape (rows,).
        marks: room for as many float32 numbers.
    """

    number: tuple[int, int]
    rows: slice
    first_item: int
    scores: Tensor
    highest: Tensor
    marks: Tensor


class _Consumer(Protocol):
    def see(self, block: _Block) -> None: ...


@dataclass(frozen=True)
class _Scores:
    """All scores, as blocks that are computed when they are asked for."""

    users: Tensor
    items: Items
    grid: _Grid
    extra: ScorePairs | None

    def blocks(self, chunks: set[int] | None) -> Iterator[_Block]:
        """Each block; only of the row chunks `chunks`, if given. Items are the outer loop: asked for once."""
        users, grid = self.users, self.grid
        extra = None if self.extra is None else _PairsByBlock(self.extra.rows, self.extra.items, grid)
        room, marks = (users.new_empty(grid.rows * grid.columns, dtype=kind) for kind in (users.dtype, torch.float32))
        for column, first in enumerate(grid.column_starts()):
            item_ids = torch.arange(first, min(first + grid.columns, grid.n_items), device=users.device)
            vectors = self.items.vectors(item_ids)
            for number, rows in enumerate(grid.row_slices()):
                if chunks is not None and number not in chunks:
                    continue
                shape = rows.stop - rows.start, len(item_ids)
                scores = torch.mm(users[rows], vectors.T, out=room[: shape[0] * shape[1]].view(shape))
                if self.extra is not None and extra is not None:
                    here, places_in_block = extra.within((number, column), rows.start, first)
                    scores[places_in_block] += self.extra.values[extra.order[here]].to(scores.dtype)
                yield _Block((number, column), rows, first, scores, scores.amax(dim=1), marks)

    def of_targets(self, rows: slice, target: Tensor) -> Tensor:
        """The score of each user's target, from a product shaped like a block's where that costs little: shape (b,).

        Libraries sum in an order that depends on the shapes of the matrices (but, from some size on, not on the place
        in them): one inner product alone is often off by a bit.
        """
        grid = self.grid
        n_more = max(0, grid.columns - len(target)) if len(grid.column_starts()) >= _MANY else 0
        vectors = self.items.vectors(torch.cat([target, target[:1].expand(n_more)]))
        scores = (self.users[rows] @ vectors.T).diagonal().clone()
        if self.extra is None:
            return scores
        users = torch.arange(rows.start, rows.stop, device=target.device)
        return scores + self.extra.at(users, target, grid.n_items).to(scores.dtype)


def _walk(scores: _Scores, consumers: Sequence[_Consumer], chunks: set[int] | None = None) -> None:
    """Show each block of scores to the consumers; only of the row chunks `chunks`, if given."""
    if chunks is not None and not chunks:
        return
    has_nan = torch.zeros(len(scores.users), dtype=torch.bool, device=scores.users.device)
    for block in scores.blocks(chunks):
        has_nan[block.rows] |= torch.isnan(block.highest)
        for consumer in consumers:
            consumer.see(block)
    refuse_nan(has_nan)


class _PairsByBlock:
    """Distinct (row, item) pairs in the order in which the blocks come: by row chunk, then by item.

    Attributes:
        order: places of the given pairs, in this order; shape (h,).
    """

    def __init__(self, rows: Tensor, items: Tensor, grid: _Grid) -> None:
        chunk = torch.div(rows, grid.rows, rounding_mode="floor")
        key, self.order = torch.sort(chunk * grid.n_items + items)
        self.rows, self.items = rows[self.order], items[self.order]  # each shape (h,)
        n_chunks = len(grid.row_slices())
        starts = torch.tensor([*grid.column_starts(), grid.n_items], device=key.device)
        bounds = torch.arange(n_chunks, device=key.device)[:, None] * grid.n_items + starts
        self._bounds: list[list[int]] = torch.searchsorted(key, bounds).tolist()

    def within(self, number: tuple[int, int], first_row: int, first_item: int) -> tuple[slice, tuple[Tensor, Tensor]]:
        """Which pairs lie in a block, and where: (row, column) of each."""
        chunk, column = number
        here = slice(self._bounds[chunk][column], self._bounds[chunk][column + 1])
        return here, (self.rows[here] - first_row, self.items[here] - first_item)


def _history_pairs(history: History, grid: _Grid) -> _PairsByBlock:
    check_history(*history)
    return _PairsByBlock(*distinct_pairs(*history, grid.n_items), grid)


class _TargetCounts:
    """Counts what is above each target, and keeps the scores of the targets and of the histories.

    A target's score must be known before its block is reached. It is foretold, by a product of the same kind, and
    compared with the block's own at the end: row chunks in which one is off by a bit are counted again (`restart`).
    """

    def __init__(self, scores: _Scores, target: Tensor, history: History | None) -> None:
        users, items, grid = scores.users, scores.items, scores.grid
        if users.dim() != 2 or target.shape != users.shape[:1]:
            raise ValueError(f"expected users (U, w), target (U,); got {tuple(users.shape)} and {tuple(target.shape)}")
        refuse_bad_targets(target, items.n_items)
        self._target, self._grid = target, grid
        self._pairs = None if history is None else _history_pairs(history, grid)
        self._pair_scores = None if self._pairs is None else users.new_empty(len(self._pairs.rows))
        self._counts = torch.zeros(2, len(users), dtype=torch.float64, device=users.device)
        self._own = users.new_full((len(users),), math.nan)  # taken from the blocks
        self._foretold = self._own.clone()
        if len(grid.column_starts()) > 1:
            for rows in grid.row_slices():
                self._foretold[rows] = scores.of_targets(rows, target[rows])

    def see(self, block: _Block) -> None:
        """Count in one block."""
        column = self._target[block.rows] - block.first_item
        is_here = (column >= 0) & (column < block.scores.size(1))
        own = block.scores.gather(1, column.clamp(0, block.scores.size(1) - 1)[:, None])
        self._own[block.rows] = torch.where(is_here, own[:, 0], self._own[block.rows])
        if len(self._grid.column_starts()) == 1:
            self._foretold[block.rows] = self._own[block.rows]
        if self._pairs is not None and self._pair_scores is not None:
            here, places_in_block = self._pairs.within(block.number, block.rows.start, block.first_item)
            self._pair_scores[here] = block.scores[places_in_block]
        self._counts[:, block.rows] += count_above(block.scores, self._foretold[block.rows, None], block.marks)

    def restart(self) -> set[int]:
        """Forget the counts of row chunks in which a target's score was foretold wrongly: their numbers."""
        wrong = (self._own != self._foretold).nonzero().squeeze(1)
        chunks = set(torch.div(wrong, self._grid.rows, rounding_mode="floor").tolist())
        for rows in (rows for number, rows in enumerate(self._grid.row_slices()) if number in chunks):
            self._foretold[rows] = self._own[rows]
            self._counts[:, rows] = 0
        return chunks

    def ranks(self) -> tuple[Tensor, Tensor]:
        """(rank among all items, rank among the items outside the history)."""
        everything = places(self._counts)
        if self._pairs is None or self._pair_scores is None:
            return everything, everything.clone()
        pairs = self._pairs.rows, self._pairs.items
        return everything, masked_ranks(everything, self._own, self._target, *pairs, self._pair_scores)


class _RunningTopK:
    """The k best items of each user so far."""

    def __init__(self, users: Tensor, k: int, history: History | None, grid: _Grid) -> None:
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self._pairs = None if history is None else _history_pairs(history, grid)
        self._scores = users.new_full((len(users), k), -math.inf)
        self._items = torch.zeros(len(users), k, dtype=torch.int64, device=users.device)

    def see(self, block: _Block) -> None:
        """Merge in what is better; the scores of the history are overwritten."""
        if self._pairs is not None:
            _, places_in_block = self._pairs.within(block.number, block.rows.start, block.first_item)
            block.scores[places_in_block] = -math.inf
        kth = self._scores[block.rows, -1]
        better = (block.highest > kth).nonzero().squeeze(1)
        if not len(better):
            return
        scores = block.scores if len(better) == len(kth) else block.scores[better]
        k = self._scores.size(1)
        new, column = scores.topk(min(k, scores.size(1)), dim=1)
        rows = better + block.rows.start
        self._scores[rows], place = torch.cat([self._scores[rows], new], dim=1).topk(k, dim=1)
        self._items[rows] = torch.cat([self._items[rows], column + block.first_item], dim=1).gather(1, place)

    def lists(self) -> tuple[Tensor, Tensor]:
        """(scores, item ids), best first; a score of -inf stands for no item."""
        return self._scores, self._items.masked_fill(self._scores == -math.inf, 0)
