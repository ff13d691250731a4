import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_pad.model.objectives import OBJECTIVES
from recbole_pad.nn.losses import LOSSES, bce, sampled_softmax
from tests.reference import losses_loops
from tests.reference.plain_softmax import softmax_ce


def normal(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 5), k=st.integers(1, 4))
def test_bce_equals_the_loops(seed: int, m: int, k: int):
    pos, neg = normal(m, seed=seed), normal(m, k, seed=seed + 1)
    assert bce(pos, neg).item() == pytest.approx(losses_loops.bce(pos.tolist(), neg.tolist()), rel=1e-9)


def test_bce_takes_two_separate_means():
    """Three times the negatives at the same score: the same loss."""
    assert bce(torch.zeros(2), torch.zeros(2, 1)).item() == pytest.approx(2 * math.log(2))
    assert bce(torch.zeros(2), torch.zeros(2, 3)).item() == pytest.approx(2 * math.log(2))


def test_bce_stays_finite_for_huge_scores():
    assert bce(torch.tensor([-500.0]), torch.tensor([[500.0]])).item() == pytest.approx(1000.0)


@pytest.mark.parametrize("corrected", [False, True])
def test_sampled_softmax_equals_the_loops(corrected: bool):
    pos, neg = normal(3, seed=1), normal(3, 4, seed=2)
    hit = torch.tensor([[False, True, False, False], [False] * 4, [True, False, False, True]])
    neg_count = normal(3, 4, seed=3).exp() if corrected else torch.ones(3, 4)
    expected = losses_loops.sampled_softmax(*(x.tolist() for x in (pos, neg, hit, neg_count)))
    assert sampled_softmax(pos, neg, hit, neg_count.log() if corrected else None).item() == pytest.approx(
        expected, rel=1e-9
    )


def test_sampled_softmax_over_all_other_items_is_the_full_softmax():
    scores, target = normal(3, 5), torch.tensor([0, 3, 4])
    pos = scores.gather(1, target[:, None])[:, 0]
    hit = torch.arange(5)[None, :] == target[:, None]
    assert sampled_softmax(pos, scores, hit).item() == pytest.approx(softmax_ce(scores, target).item())


def test_log_q_correction_makes_many_popularity_samples_approach_the_full_softmax():
    n_items, n_draws = 6, 40_000
    scores, target = normal(1, n_items), torch.tensor([2])
    popularity = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0, 0.5], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(popularity, n_draws, replacement=True, generator=generator)[None, :]
    log_expected = (popularity / popularity.sum() * n_draws).log()
    hit = draws == target[:, None]
    value = sampled_softmax(scores[:, 2], scores.gather(1, draws), hit, log_expected[draws])
    assert value.item() == pytest.approx(softmax_ce(scores, target).item(), rel=0.02)


def test_sampled_softmax_of_hits_only_is_zero_with_zero_gradient():
    pos, neg = torch.zeros(1, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    value = sampled_softmax(pos, neg, torch.ones(1, 2, dtype=torch.bool))
    value.backward()
    assert value.item() == 0
    assert neg.grad is not None
    assert (neg.grad == 0).all()


def test_bce_and_sampled_softmax_have_the_right_gradient():
    pos, neg = normal(3, seed=1).requires_grad_(), normal(3, 2, seed=2).requires_grad_()
    hit = torch.tensor([[True, False], [False, False], [False, True]])
    log_expected = normal(3, 2, seed=3)
    assert torch.autograd.gradcheck(bce, (pos, neg))
    assert torch.autograd.gradcheck(lambda p, n: sampled_softmax(p, n, hit, log_expected), (pos, neg))


def test_losses_of_half_precision_scores_are_float32():
    half = torch.zeros(2, 3, dtype=torch.bfloat16)
    hit = torch.zeros(2, 3, dtype=torch.bool)
    assert bce(half[:, 0], half).dtype == torch.float32
    assert sampled_softmax(half[:, 0], half, hit).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    pos, neg = torch.zeros(2), torch.zeros(2, 3)
    hit = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="not empty"):
        bce(torch.zeros(0), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="neg_score"):
        bce(pos, torch.zeros(2))
    with pytest.raises(ValueError, match="neg_is_target"):
        sampled_softmax(pos, neg, hit[:, :2])
    with pytest.raises(ValueError, match="log_expected_count"):
        sampled_softmax(pos, neg, hit, pos)


def test_every_word_of_the_key_has_an_objective():
    assert set(LOSSES) == set(OBJECTIVES)
