"""How negatives are drawn; the losses made of them are tested through the model (test_model.py)."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recbole_pad.data.histories import Histories
from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.model.objectives import OBJECTIVES, Step
from recbole_pad.model.pad import PAD

COUNTS = [0, 4, 0, 1, 8, 0, 2, 5]
SEEN, ALL = [1, 3, 4, 6, 7], [1, 2, 3, 4, 5, 6, 7]


def sampler_of(
    sequences: list[list[int]],
    counts: list[int] = COUNTS,
    seen_only: bool = True,
    by_popularity: bool = False,
) -> NegativeSampler:
    keys = sorted({user * len(counts) + item for user, items in enumerate(sequences) for item in items})
    return NegativeSampler(torch.tensor(counts), np.array(keys, dtype=np.int64), seen_only, by_popularity)


def items_of_users(histories: Histories) -> list[set[int]]:
    return [set(histories.items[a:b].tolist()) for a, b in pairwise(histories.offsets)]


# --- which items -------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    sequences=st.lists(st.lists(st.integers(1, 7), max_size=6), min_size=1, max_size=5),
    seen_only=st.booleans(),
    by_popularity=st.booleans(),
    data=st.data(),
)
def test_a_negative_is_never_in_the_users_training_sequence(sequences, seen_only, by_popularity, data):
    pool = SEEN if seen_only or by_popularity else ALL
    mass = {item: COUNTS[item] if by_popularity else 1 for item in pool}
    free = [sum(mass[item] for item in set(pool) - set(items)) / sum(mass.values()) for items in sequences]
    users = [user for user, share in enumerate(free) if share > 0.35]  # else 50 draws may not be enough
    assume(users)
    asked = data.draw(st.lists(st.sampled_from(users), min_size=1, max_size=8))
    sampler = sampler_of([*sequences, [7]], seen_only=seen_only, by_popularity=by_popularity)
    negatives = sampler.draw_unseen_by(torch.tensor(asked, dtype=torch.long), 3)
    assert negatives.shape == (len(asked), 3)
    for user, row in zip(asked, negatives.tolist(), strict=True):
        assert set(row) <= set(pool) - set(sequences[user])


@pytest.mark.parametrize(("seen_only", "pool"), [(True, SEEN), (False, ALL)])
def test_uniform_negatives_are_equally_frequent_over_the_pool(seen_only: bool, pool: list[int]):
    torch.manual_seed(1)
    drawn = Counter(sampler_of([[1]], seen_only=seen_only).draw(100, 400).flatten().tolist())
    assert sorted(drawn) == pool
    expected = 40_000 / len(pool)
    # chi-square: 30 is far in the tail for up to 6 degrees of freedom
    assert sum((n - expected) ** 2 / expected for n in drawn.values()) < 30


def test_negatives_of_a_user_are_uniform_over_the_rest_of_the_pool():
    torch.manual_seed(2)
    users = torch.zeros(400, dtype=torch.long)
    drawn = Counter(sampler_of([[1, 4, 4], [3]]).draw_unseen_by(users, 100).flatten().tolist())
    assert sorted(drawn) == [3, 6, 7]
    assert sum((n - 40_000 / 3) ** 2 / (40_000 / 3) for n in drawn.values()) < 20


def test_popular_negatives_are_as_frequent_as_in_training():
    torch.manual_seed(3)
    drawn = Counter(sampler_of([[1]], seen_only=False, by_popularity=True).draw(40_000).tolist())
    assert sorted(drawn) == SEEN
    expected = {item: 40_000 * COUNTS[item] / sum(COUNTS) for item in SEEN}
    assert sum((drawn[item] - expected[item]) ** 2 / expected[item] for item in SEEN) < 25


@settings(max_examples=50)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_every_interaction_is_one_share_of_the_popular_draws(counts: list[int]):
    """A number in the middle of each of the n equal parts of [0, 1): each item is drawn as often as it was trained."""
    n = sum(counts)
    marks = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand", lambda *shape, **kwargs: marks)
        drawn = sampler_of([[1]], counts=[0, *counts], by_popularity=True).draw(n).tolist()
    assert drawn == [item for item, count in enumerate(counts, start=1) for _ in range(count)]


@pytest.mark.parametrize(("mark", "item"), [(0.0, 2), (0.6, 3), (1.0, 3)])
def test_each_part_of_the_interval_begins_with_its_item(mark: float, item: int, monkeypatch: pytest.MonkeyPatch):
    """[0, 0.6) is item 2, the rest item 3; 1.0 stands for a product that rounding brings to the total."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.tensor([mark], dtype=torch.float64))
    drawn = sampler_of([[1]], counts=[0, 0, 3, 2, 0], by_popularity=True).draw(1).tolist()
    assert drawn == [item]


def test_popular_draws_of_a_large_catalogue_reach_all_of_it():
    """A million items, one of them with half of the interactions: float32 sums would not tell the others apart."""
    torch.manual_seed(5)
    counts = torch.ones(1_000_001, dtype=torch.long)
    counts[0], counts[1] = 0, 10**9
    sampler = NegativeSampler(counts, np.array([1]), True, True)
    drawn = sampler.draw(2_000_000)
    rest = drawn[drawn > 1]
    assert abs(len(rest) - 2_000_000 * 1e6 / (1e9 + 1e6)) < 250  # 5.6 standard deviations
    assert len(torch.unique(rest)) > 0.99 * len(rest)


@pytest.mark.parametrize("by_popularity", [True, False])
@pytest.mark.parametrize("seen_only", [True, False])
def test_log_probabilities_are_those_of_the_draws(seen_only: bool, by_popularity: bool):
    sampler = sampler_of([[1]], seen_only=seen_only, by_popularity=by_popularity)
    mass = {item: COUNTS[item] if by_popularity else 1 for item in (ALL if not seen_only else SEEN)}
    expected = [mass.get(item, 0) / sum(mass.values()) for item in range(8)]
    assert sampler.log_probability.exp().tolist() == pytest.approx(expected, abs=1e-6)
    assert sampler.log_probability[0] == -torch.inf


def test_a_user_who_has_every_item_gets_negatives_all_the_same():
    sampler = sampler_of([SEEN, [1]])
    negatives = sampler.draw_unseen_by(torch.tensor([0, 1, 0]), 4)
    assert negatives.shape == (3, 4)
    assert set(negatives.flatten().tolist()) <= set(SEEN)
    assert 1 not in negatives[1].tolist()


def test_a_user_who_has_all_but_one_item_gets_that_one():
    sampler = sampler_of([[1, 3, 4, 6]], counts=COUNTS)
    assert set(sampler.draw_unseen_by(torch.zeros(20, dtype=torch.long), 2).flatten().tolist()) == {7}


def test_draws_follow_the_global_seed_and_go_on():
    """A resumed run restores the generator, and with it the negatives."""
    sampler = sampler_of([[1]])
    torch.manual_seed(4)
    first, second = sampler.draw(50), sampler.draw(50)
    torch.manual_seed(4)
    assert torch.equal(sampler.draw(50), first)
    assert not torch.equal(first, second)


def test_the_sampler_is_not_part_of_a_checkpoint():
    assert sampler_of([[1]]).state_dict() == {}


# --- through the model -------------------------------------------------------------------------------------


@pytest.mark.parametrize("negatives", ["seen", "all"])
def test_the_model_draws_for_each_position_outside_the_training_part_of_its_user(prepared, negatives: str):
    """Held-out items of the user may be drawn, items that she has in training may not."""
    config, whole, train, *_ = prepared(loss="bce", phases=["pretrain"], negatives=negatives)
    model = PAD(config, train._dataset)
    sampler = model.samplers["pretrain"]
    own = items_of_users(whole.train_histories)
    held_out = [every - train for every, train in zip(items_of_users(whole.histories), own, strict=True)]
    drawn = set()
    for user in range(1, whole.user_num):
        row = set(sampler.draw_unseen_by(torch.full((300,), user), 1).flatten().tolist())
        assert not row & own[user]
        drawn |= {(user, item) for item in row & held_out[user]}
    unseen = {item for item in range(1, whole.item_num) if whole.train_counts[item] == 0}
    assert drawn
    assert bool({item for _, item in drawn} & unseen) == (negatives == "all")


def test_phases_draw_by_their_own_settings(prepared):
    config, _, train, *_ = prepared(
        **{
            "loss": "bce",
            "pretrain.loss": "ce",
            "align.negatives": "all",
            "finetune.negative_sampling": "popularity",
        }
    )
    samplers = PAD(config, train._dataset).samplers
    assert set(samplers) == {"align", "finetune"}
    assert len(samplers["align"].pool) > len(samplers["finetune"].pool)
    assert samplers["finetune"].by_popularity
    assert not samplers["align"].by_popularity


def test_phases_that_draw_alike_share_a_sampler(prepared):
    config, _, train, *_ = prepared(**{"loss": "bce", "align.negatives": "all"})
    samplers = PAD(config, train._dataset).samplers
    assert samplers["pretrain"] is samplers["finetune"]
    assert samplers["pretrain"] is not samplers["align"]


# --- one step by hand --------------------------------------------------------------------------------------


def step(negatives: torch.Tensor | None, negative_ids: torch.Tensor | None) -> Step:
    """One position of state (1, 0); items 5, 6, 9 with first components 2, 1, 0; the target is item 5."""
    return Step(
        states=torch.tensor([[1.0, 0.0]]),
        vectors=torch.tensor([[2.0, 7.0], [1.0, 7.0], [0.0, 7.0]]),
        target=torch.tensor([0]),
        negatives=negatives,
        target_ids=torch.tensor([5]),
        negative_ids=negative_ids,
        softmax_ids=torch.tensor([5, 6, 9]),
        sampler=sampler_of([[1]], counts=[0, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    )


def test_bce_by_hand():
    """Scores 2 against 1 and 0: log(1 + e^-2) + (log(1 + e) + log 2) / 2."""
    loss = OBJECTIVES["bce"].loss(step(torch.tensor([[1, 2]]), torch.tensor([[6, 9]])))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-2)) + (np.log1p(np.e) + np.log(2)) / 2, rel=1e-6)


def test_sampled_softmax_by_hand():
    """Two draws of nine items: a negative stands for 9/2; the one that is the target is left out."""
    loss = OBJECTIVES["sampled_softmax"].loss(step(torch.tensor([1, 0]), torch.tensor([6, 5])))
    assert loss.item() == pytest.approx(np.log1p(4.5 * np.exp(-1)), rel=1e-6)


@pytest.mark.parametrize("by_popularity", [False, True])
def test_sampled_softmax_with_the_whole_pool_is_the_full_softmax(by_popularity: bool):
    """Scores 2 (target), 1, 0 of the three items in the pool, each once, however often it would be drawn."""
    sampler = sampler_of([[1]], counts=[0, 0, 0, 0, 0, 4, 2, 0, 0, 1], by_popularity=by_popularity)
    negatives = OBJECTIVES["sampled_softmax"].draw(sampler, torch.tensor([1]), 3)
    assert negatives is not None
    assert negatives.tolist() == [5, 6, 9]
    whole = replace(step(torch.tensor([0, 1, 2]), negatives), sampler=sampler)
    assert OBJECTIVES["sampled_softmax"].loss(whole).item() == pytest.approx(
        np.log1p(np.exp(-1) + np.exp(-2)), rel=1e-6
    )


def test_sampled_softmax_estimates_the_full_one_without_bias():
    """The mean over many draws of sum_k exp(s_k) / (K q_k) is the sum over all other items (here 8, of score 0)."""
    torch.manual_seed(0)
    sampler = sampler_of([[1]], counts=[0, 1, 9, 1, 4, 1, 1, 1, 30, 1], by_popularity=True)
    sums = []
    for _ in range(4000):
        drawn = sampler.draw_shared(8)
        kept = drawn != 5  # the target
        sums.append(torch.exp(-sampler.log_expected_count(drawn)[kept]).sum().item())
    assert np.mean(sums) == pytest.approx(8, abs=4 * np.std(sums) / np.sqrt(len(sums)))


def test_sampled_softmax_takes_out_how_often_popular_items_are_drawn():
    """Counts 4 (target), 2, 1 of 7; two draws: negatives of scores 1, 0 less log(2 * 2/7), log(2 * 1/7)."""
    counts = [0, 0, 0, 0, 0, 4, 2, 0, 0, 1]
    drawn = step(torch.tensor([1, 2]), torch.tensor([6, 9]))
    popular = replace(drawn, sampler=sampler_of([[1]], counts=counts, by_popularity=True))
    loss = OBJECTIVES["sampled_softmax"].loss(popular)
    scores = [2, 1 - np.log(4 / 7), 0 - np.log(2 / 7)]
    assert loss.item() == pytest.approx(np.log(np.exp(scores).sum()) - scores[0], rel=1e-6)
