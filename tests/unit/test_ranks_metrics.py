import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pad.evaluation.metrics import grouped_metrics, metrics
from recbole_pad.evaluation.ranks import target_ranks
from tests.reference import ranks_loops

RANKS = st.lists(st.integers(2, 80).map(lambda twice: twice / 2) | st.just(math.inf), min_size=1, max_size=30)


@st.composite
def batches(draw: st.DrawFn):
    """Scores with many ties, targets, and histories that repeat items and may hold the target or padding."""
    n_rows, n_items = draw(st.integers(1, 4)), draw(st.integers(2, 9))
    level = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0])
    scores = draw(st.lists(st.lists(level, min_size=n_items, max_size=n_items), min_size=n_rows, max_size=n_rows))
    targets = draw(st.lists(st.integers(1, n_items - 1), min_size=n_rows, max_size=n_rows))
    pair = st.tuples(st.integers(0, n_rows - 1), st.integers(0, n_items - 1))
    return scores, targets, draw(st.lists(pair, max_size=20))


@settings(deadline=None)
@given(batch=batches(), dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]))
def test_ranks_equal_counting_one_by_one(batch, dtype: torch.dtype):
    scores, targets, pairs = batch
    rows, items = (torch.tensor([pair[i] for pair in pairs], dtype=torch.long) for i in (0, 1))
    given_scores = torch.tensor(scores, dtype=dtype)
    before = given_scores.clone()
    plain, masked = target_ranks(given_scores, torch.tensor(targets), rows, items)
    assert torch.equal(given_scores, before)
    assert plain.dtype == masked.dtype == torch.float64
    for r, target in enumerate(targets):
        history = {item for row, item in pairs if row == r and item != 0}
        assert plain[r].item() == ranks_loops.rank(scores[r], target, set())
        assert masked[r].item() == ranks_loops.rank(scores[r], target, history)


def test_rank_by_hand():
    """Item 0 scores highest and does not count; 1 and 4 beat the target 2, 3 ties with it."""
    scores = torch.tensor([[9.0, 5.0, 1.0, 1.0, 7.0, 0.0]])
    plain, masked = target_ranks(scores, torch.tensor([2]), torch.tensor([0, 0, 0, 0]), torch.tensor([4, 4, 3, 0]))
    assert plain.tolist() == [3.5]
    assert masked.tolist() == [2.0]


def test_a_target_in_the_history_is_a_sure_miss_only_when_masked():
    plain, masked = target_ranks(torch.ones(1, 4), torch.tensor([2]), torch.tensor([0]), torch.tensor([2]))
    assert plain.tolist() == [2.0]
    assert masked.tolist() == [math.inf]


def test_equal_scores_put_the_target_in_the_middle():
    plain, masked = target_ranks(torch.zeros(1, 102), torch.tensor([50]))
    assert plain.tolist() == masked.tolist() == [51.0]


def test_the_two_ranks_are_separate_tensors():
    plain, masked = target_ranks(torch.zeros(1, 4), torch.tensor([1]))
    masked += 1
    assert plain.tolist() == [2.0]


def test_ranks_ignore_the_padding_score_and_batch_mates():
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([1, 3, 5])
    plain, _ = target_ranks(scores, target)
    scores[:, 0] = math.inf
    assert torch.equal(target_ranks(scores, target)[0], plain)
    assert torch.equal(target_ranks(scores[1:2], target[1:2])[0], plain[1:2])


def test_nan_scores_are_refused_with_the_number_of_rows():
    scores = torch.zeros(3, 4)
    scores[0, 1] = scores[0, 2] = scores[2, 0] = math.nan
    with pytest.raises(ValueError, match="2 of 3 rows"):
        target_ranks(scores, torch.tensor([1, 1, 1]))


def test_bad_rank_arguments_are_refused():
    scores = torch.zeros(2, 4)
    for target in ([0, 1], [1, 4]):
        with pytest.raises(ValueError, match="padding"):
            target_ranks(scores, torch.tensor(target))
    with pytest.raises(ValueError, match="target"):
        target_ranks(scores, torch.tensor([1]))
    with pytest.raises(ValueError, match="together"):
        target_ranks(scores, torch.tensor([1, 2]), torch.tensor([0]))


@given(ranks=RANKS, k=st.integers(1, 50))
def test_metrics_equal_the_formulas(ranks: list[float], k: int):
    got = metrics(np.array(ranks), (k,))
    assert list(got) == [f"hit@{k}", f"ndcg@{k}", f"mrr@{k}"]
    assert tuple(got.values()) == pytest.approx(ranks_loops.metrics(ranks, k))
    assert all(type(value) is float for value in got.values())


@given(ranks=RANKS)
def test_metrics_grow_with_k_and_mrr_is_at_most_ndcg_at_most_hit(ranks: list[float]):
    got = metrics(np.array(ranks))
    for name in ("hit", "ndcg", "mrr"):
        assert got[f"{name}@5"] <= got[f"{name}@10"] <= got[f"{name}@20"]
    for k in (5, 10, 20):
        assert 0 <= got[f"mrr@{k}"] <= got[f"ndcg@{k}"] + 1e-12
        assert got[f"ndcg@{k}"] <= got[f"hit@{k}"] + 1e-12


def test_metrics_by_hand():
    got = metrics(np.array([1.0, 3.0, 10.5, math.inf]), (10,))
    assert got == pytest.approx({"hit@10": 2 / 4, "ndcg@10": (1 + 1 / 2) / 4, "mrr@10": (1 + 1 / 3) / 4})


def test_no_row_has_no_metric():
    assert metrics(np.array([])) == {}


def test_impossible_ranks_are_refused():
    for bad in ([0.5], [math.nan], [[1.0]]):
        with pytest.raises(ValueError, match="ranks"):
            metrics(np.array(bad))


@given(ranks=RANKS, seed=st.integers(0, 1000))
def test_group_means_weighted_by_n_give_the_mean_over_all(ranks: list[float], seed: int):
    groups = np.random.default_rng(seed).integers(0, 3, size=len(ranks))
    got = grouped_metrics(np.array(ranks), groups, ["a", "b", "c", "empty"])
    assert list(got) == ["a", "b", "c", "empty"]
    assert got["empty"] == {"n": 0}
    assert sum(group["n"] for group in got.values()) == len(ranks)
    for key, value in metrics(np.array(ranks)).items():
        weighted = sum(group["n"] * group.get(key, 0.0) for group in got.values())
        assert weighted / len(ranks) == pytest.approx(value)


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="differ"):
        grouped_metrics(np.array([1.0]), np.array([0, 0]), ["a"])
    for index in (-1, 1):
        with pytest.raises(ValueError, match="indices"):
            grouped_metrics(np.array([1.0]), np.array([index]), ["a"])
