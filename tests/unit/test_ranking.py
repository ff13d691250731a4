"""Ranks and top-k in blocks against the whole score matrix, one row at a time, and `torch.topk`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_pad.evaluation import ranking
from recbole_pad.evaluation.ranking import Items, rank_and_top_k, rank_targets, top_k
from recbole_pad.evaluation.ranks import target_ranks
from recbole_pad.nn.score_pairs import ScorePairs
from tests.reference import ranks_loops

BLOCKS = [(1, 1), (2, 3), (3, 1000), (1000, 1000), (2, 100)]  # (users, scores) of a block at most


@contextmanager
def blocks_of(rows: int, scores: int) -> Iterator[None]:
    """Blocks of at most so many users and scores."""
    with mock.patch.dict(ranking._BLOCK, {"cpu": (rows, scores)}):
        yield


@st.composite
def cases(draw: st.DrawFn):
    """Vectors of small whole numbers (products are exact, ties many), targets, and histories with repeats."""
    n_users, n_items, width = draw(st.integers(1, 5)), draw(st.integers(2, 12)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2)
    rows = [draw(st.lists(numbers, min_size=width, max_size=width)) for _ in range(n_users + n_items)]
    users, items = torch.tensor(rows[:n_users]), torch.tensor(rows[n_users:])
    target = torch.tensor(draw(st.lists(st.integers(1, n_items - 1), min_size=n_users, max_size=n_users)))
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    return users, items, target, draw(st.lists(pair, max_size=20))


def as_history(pairs: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    rows, items = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    return rows, items


@settings(deadline=None, max_examples=200)
@given(
    case=cases(),
    block=st.tuples(st.integers(1, 6), st.integers(1, 40)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_ranks_equal_counting_one_by_one(case, block: tuple[int, int], dtype: torch.dtype):
    users, items, target, pairs = case
    scores = (users @ items.T).tolist()
    with blocks_of(*block):
        plain, masked = rank_targets(users.to(dtype), Items.of_table(items.to(dtype)), target, as_history(pairs))
    assert plain.dtype == masked.dtype == torch.float64
    for user, own in enumerate(target.tolist()):
        history = {item for row, item in pairs if row == user and item != 0}
        assert plain[user].item() == ranks_loops.rank(scores[user], own, set())
        assert masked[user].item() == ranks_loops.rank(scores[user], own, history)


@settings(deadline=None, max_examples=200)
@given(case=cases(), block=st.tuples(st.integers(1, 6), st.integers(1, 40)), k=st.integers(1, 15))
def test_top_k_has_the_scores_of_a_sorted_list_without_the_history(case, block: tuple[int, int], k: int):
    users, items, _, pairs = case
    with blocks_of(*block):
        scores, found = top_k(users.float(), Items.of_table(items.float()), k, as_history(pairs))
    assert scores.shape == found.shape == (len(users), k)
    for user in range(len(users)):
        left = set(range(1, len(items))) - {item for row, item in pairs if row == user}
        of_item = {item: float(users[user] @ items[item]) for item in left}
        best = sorted(of_item.values(), reverse=True)[:k]
        assert scores[user].tolist() == best + [-math.inf] * (k - len(best))
        named = found[user].tolist()[: len(best)]
        assert len(set(named)) == len(named)
        assert [of_item[item] for item in named] == best
        assert found[user].tolist()[len(best) :] == [0] * (k - len(best))


def random_case(n_users: int, n_items: int, width: int, n_copies: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Users, items of which some are copies of item 3 (far apart), targets (of copies too), and histories."""
    generator = torch.Generator().manual_seed(n_users)
    users, items = (torch.randn(n, width, generator=generator) for n in (n_users, n_items))
    copies = torch.linspace(3, n_items - 1, n_copies).long()
    items[copies] = items[3].clone()
    target = torch.randint(1, n_items, (n_users,), generator=generator)
    if n_copies:
        target[::2] = copies[torch.randint(0, n_copies, (len(target[::2]),), generator=generator)]
    rows = torch.arange(n_users).repeat_interleave(6)
    return users, items, target, torch.stack([rows, torch.randint(0, n_items, (len(rows),), generator=generator)])


@pytest.mark.parametrize("block", [ranking._BLOCK["cpu"], (64, 64 * 100)])
@pytest.mark.parametrize("width", [5, 64, 200])
def test_equal_vectors_tie_whatever_block_they_lie_in(block: tuple[int, int], width: int):
    """Rounding depends on the shape of a product: a score that is computed apart would win or lose all of its ties."""
    users, items, target, history = random_case(300, 9000, width, n_copies=1000)
    expected = target_ranks(users.double() @ items.double().T, target, *history)
    with blocks_of(*block):
        plain, masked = rank_targets(users, Items.of_table(items), target, (history[0], history[1]))
    # rounding moves a target by a place, a lost tie by hundreds
    assert (plain - expected[0]).abs().max() <= 2
    assert torch.equal(masked.isinf(), expected[1].isinf())
    assert (masked - expected[1])[masked.isfinite()].abs().max() <= 2


@pytest.mark.parametrize("block", BLOCKS)
def test_a_target_score_foretold_wrongly_is_counted_again(block: tuple[int, int], monkeypatch: pytest.MonkeyPatch):
    users, items, target, history = random_case(9, 50, 8, n_copies=20)
    users, items = users.mul(4).round(), items.mul(4).round()  # exact products
    expected = target_ranks(users @ items.T, target, *history)
    right = ranking._Scores.of_targets

    def off_by_a_bit(self: object, *arguments: object) -> Tensor:
        scores = right(self, *arguments)
        scores[:2] = torch.nextafter(scores[:2], torch.tensor(math.inf))
        return scores

    monkeypatch.setattr(ranking._Scores, "of_targets", off_by_a_bit)
    with blocks_of(*block):
        found = rank_targets(users, Items.of_table(items), target, (history[0], history[1]))
        both, _ = rank_and_top_k(users, Items.of_table(items), target, 3, (history[0], history[1]))
    for one, two, three in zip(found, both, expected, strict=True):
        assert torch.equal(one, three)
        assert torch.equal(two, three)


@pytest.mark.parametrize("block", BLOCKS)
def test_extra_scores_of_a_few_pairs_count_as_if_they_stood_in_the_matrix(block: tuple[int, int]):
    users, items, target, history = random_case(40, 60, 8)
    users, items = users.mul(4).round(), items.mul(4).round()  # exact products
    place = torch.randperm(40 * 59)[:300].sort().values
    extra = ScorePairs(place // 59, place % 59 + 1, torch.randint(-9, 9, (300,)).float())
    scores = users @ items.T
    for row, item, value in zip(extra.rows.tolist(), extra.items.tolist(), extra.values.tolist(), strict=True):
        scores[row, item] += value
    expected = target_ranks(scores, target, *history)
    scores[:, 0] = -math.inf
    scores[history[0], history[1]] = -math.inf
    pairs = (history[0], history[1])
    with blocks_of(*block):
        found = rank_targets(users, Items.of_table(items), target, pairs, extra=extra)
        both, _ = rank_and_top_k(users, Items.of_table(items), target, 3, pairs, extra=extra)
        best, _ = top_k(users, Items.of_table(items), 5, pairs, extra=extra)
    assert torch.equal(best, scores.topk(5).values)
    for one, two, three in zip(found, both, expected, strict=True):
        assert torch.equal(one, three)
        assert torch.equal(two, three)


@pytest.mark.parametrize("block", [(256, 2**20), (16, 16 * 128), (100, 5000)])
def test_ranks_and_lists_of_random_vectors_equal_those_of_the_whole_matrix(block: tuple[int, int]):
    users, items, target, history = random_case(100, 700, 32)
    users, items = users.double(), items.double()
    scores = users @ items.T
    expected = target_ranks(scores, target, *history)
    scores[:, 0] = -math.inf
    scores[history[0], history[1]] = -math.inf
    best = scores.topk(20)
    table, pairs = Items.of_table(items), (history[0], history[1])
    with blocks_of(*block):
        ranks, lists = rank_and_top_k(users, table, target, 20, pairs)
        alone, list_alone = rank_targets(users, table, target, pairs), top_k(users, table, 20, pairs)
    for found in (ranks, alone):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    for found in (lists, list_alone):
        assert torch.equal(found[1], best.indices)
        torch.testing.assert_close(found[0], best.values)


def test_without_a_history_both_ranks_are_equal_and_separate():
    users, items, target, _ = random_case(5, 40, 4)
    plain, masked = rank_targets(users, Items.of_table(items), target)
    assert torch.equal(plain, masked)
    masked += 1
    assert torch.equal(plain, target_ranks(users @ items.T, target)[0])


@pytest.mark.parametrize("memory_mb", [0.001, 0.01, 2])
def test_item_vectors_are_asked_for_once_in_blocks_that_fit_the_memory(memory_mb: float):
    users, items, target, history = random_case(50, 3000, 4)
    asked: list[Tensor] = []

    def vectors(item_ids: Tensor) -> Tensor:
        asked.append(item_ids)
        return items[item_ids]

    ranks = rank_targets(users, Items(3000, vectors), target, (history[0], history[1]), memory_mb)
    expected = rank_targets(users, Items.of_table(items), target, (history[0], history[1]))
    assert torch.equal(ranks[0], expected[0])
    assert torch.equal(ranks[1], expected[1])
    if memory_mb == 2:  # one block: nothing is foretold, nothing counted again
        assert [item_ids.tolist() for item_ids in asked] == [list(range(1, 3000))]
    asked.clear()
    top_k(users, Items(3000, vectors), 5, score_memory_mb=memory_mb)
    assert torch.cat(asked).tolist() == list(range(1, 3000))  # not padding
    rows = min(50, int(memory_mb * 2**20) // 8)
    assert all(rows * len(item_ids) * 8 <= memory_mb * 2**20 for item_ids in asked)
    assert len(asked) > 1 or memory_mb == 2


def test_nan_scores_are_refused_with_the_number_of_users():
    users, items, target, _ = random_case(6, 40, 4)
    users[1], users[4, 2] = math.nan, math.nan
    for work in (
        lambda: rank_targets(users, Items.of_table(items), target),
        lambda: top_k(users, Items.of_table(items), 3),
    ):
        with blocks_of(2, 10), pytest.raises(ValueError, match="2 of 6 rows"):
            work()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda users, items: rank_targets(users, items, torch.tensor([0, 1])), "padding"),
        (lambda users, items: rank_targets(users, items, torch.tensor([1, 4])), "padding"),
        (lambda users, items: rank_targets(users, items, torch.tensor([1])), "target"),
        (
            lambda users, items: rank_targets(
                users, items, torch.tensor([1, 2]), (torch.tensor([0]), torch.tensor([1, 2]))
            ),
            "together",
        ),
        (lambda users, items: top_k(users, items, 0), "at least 1"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[Tensor, Items], object], message: str):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3), Items.of_table(torch.zeros(4, 3)))


@pytest.mark.gpu
@pytest.mark.parametrize("block", [(4096, 2**26), (64, 64 * 100)])
def test_a_gpu_gives_the_same_ranks_and_lists(block: tuple[int, int]):
    users, items, target, history = random_case(100, 700, 32, n_copies=50)
    users, items = users.mul(4).round(), items.mul(4).round()
    expected = target_ranks(users @ items.T, target, *history)
    on_gpu = (history[0].cuda(), history[1].cuda())
    with mock.patch.dict(ranking._BLOCK, {"cuda": block}):
        ranks, lists = rank_and_top_k(users.cuda(), Items.of_table(items.cuda()), target.cuda(), 20, on_gpu)
    assert torch.equal(ranks[0].cpu(), expected[0])
    assert torch.equal(ranks[1].cpu(), expected[1])
    assert torch.equal(lists[0].cpu(), top_k(users, Items.of_table(items), 20, (history[0], history[1]))[0])
