"""Cross entropy in blocks: equal to the loops and to the plain function, within the memory it is given."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_pad.model.objectives import OBJECTIVES, Step
from recbole_pad.model.pad import PAD
from recbole_pad.nn import blocked_softmax
from recbole_pad.nn.blocked_softmax import blocked_softmax_ce
from recbole_pad.nn.blocks import even_blocks
from tests.reference import losses_loops
from tests.reference.plain_softmax import softmax_ce

BYTES = 8  # of a float64 score
M, N = 7, 11


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(m: int = M, n: int = N, width: int = 5, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """States, vectors and targets; the targets are spread from the first item to the last."""
    states, vectors = 2 * normal(m, width, seed=seed), normal(n, width, seed=seed + 1)
    return states.requires_grad_(), vectors.requires_grad_(), torch.linspace(0, n - 1, m).round().long()


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.fixture(params=["tiles", "positions"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`tiles` stays as it is: of 7 x 11 scores some must be missing; `positions` takes any number of whole rows."""
    if request.param == "positions":
        monkeypatch.setattr(blocked_softmax, "FEWEST_POSITIONS", 1)
    return request.param


SCORES = {"tiles": [1, 2, 5, 20, 50, 76], "positions": [11, 25, 35, 76, 77, 1000]}


@pytest.mark.parametrize("place", range(6))
def test_value_and_gradients_equal_the_plain_function(way: str, place: int):
    states, vectors, target = problem()
    value = blocked_softmax_ce(states, vectors, target, SCORES[way][place] * BYTES)
    block = type(value.grad_fn).__name__
    assert block.startswith("_ByItems" if way == "tiles" else "_ByPositions")
    scores = (states @ vectors.T).tolist()
    assert value.item() == pytest.approx(losses_loops.softmax_ce(scores, target.tolist(), [True] * N), rel=1e-12)
    plain = torch.autograd.grad(3 * softmax_ce(states @ vectors.T, target), (states, vectors))
    for got, expected in zip(torch.autograd.grad(3 * value, (states, vectors)), plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-11, atol=1e-14)


def test_gradients_by_finite_differences(way: str):
    states, vectors, target = problem(m=4, n=5, width=2)
    bytes_ = (3 if way == "tiles" else 10) * BYTES
    assert torch.autograd.gradcheck(lambda s, v: blocked_softmax_ce(s, v, target, bytes_), (states, vectors))


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 9), n=st.integers(1, 9), scores=st.integers(0, 90), seed=st.integers(0, 1000), data=st.data())
def test_any_sizes_targets_and_memory(m: int, n: int, scores: int, seed: int, data: st.DataObject):
    states, vectors, _ = problem(m, n, seed=seed)
    target = torch.tensor(data.draw(st.lists(st.integers(0, n - 1), min_size=m, max_size=m)))
    value = blocked_softmax_ce(states, vectors, target, scores * BYTES)
    plain = softmax_ce(states @ vectors.T, target)
    assert value.item() == pytest.approx(plain.item(), rel=1e-10, abs=1e-12)
    expected = torch.autograd.grad(plain, (states, vectors))
    for a, b in zip(torch.autograd.grad(value, (states, vectors)), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_one_position_and_one_item_have_no_loss(way: str):
    states, vectors, target = problem(1, 1)
    value = blocked_softmax_ce(states, vectors, target, BYTES)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-14)
    assert states.grad is not None
    assert states.grad.abs().max() < 1e-14


@pytest.mark.parametrize("order", [1, -1])
def test_huge_scores_rising_or_falling_over_the_blocks_stay_finite(way: str, order: int):
    vectors = torch.arange(N, dtype=torch.float64)[::order, None] if order == 1 else torch.arange(N).flip(0)[:, None]
    states, target = torch.tensor([[1e4], [-1e4]], dtype=torch.float64), torch.tensor([0, 10])
    value = blocked_softmax_ce(states, vectors.double(), target, (3 if way == "tiles" else N) * BYTES)
    highest = 1e4 * (N - 1)
    assert value.item() == pytest.approx(highest if order == 1 else 0.0)


def test_gradients_can_be_taken_twice_but_not_differentiated(way: str):
    states, vectors, target = problem()
    value = blocked_softmax_ce(states, vectors, target, (20 if way == "tiles" else 25) * BYTES)
    first = torch.autograd.grad(value, (states, vectors), retain_graph=True)
    second = torch.autograd.grad(value, (states, vectors), retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    second = torch.autograd.grad(value**2, (states, vectors), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second[0].sum().backward()


def test_only_what_asks_for_a_gradient_gets_one(way: str):
    states, vectors, target = problem()
    bytes_ = (20 if way == "tiles" else 25) * BYTES
    both = torch.autograd.grad(blocked_softmax_ce(states, vectors, target, bytes_), (states, vectors))
    (alone,) = torch.autograd.grad(blocked_softmax_ce(states, vectors.detach(), target, bytes_), states)
    assert torch.equal(alone, both[0])
    (alone,) = torch.autograd.grad(blocked_softmax_ce(states.detach(), vectors, target, bytes_), vectors)
    assert torch.equal(alone, both[1])
    assert not blocked_softmax_ce(states.detach(), vectors.detach(), target, bytes_).requires_grad


def test_float32_is_near_float64(way: str):
    states, vectors, target = problem(50, 300, 16)
    bytes_ = 4 * (250 if way == "tiles" else 3000)
    plain = softmax_ce(states @ vectors.T, target)
    value = blocked_softmax_ce(states.float(), vectors.float(), target, bytes_)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    exact = torch.autograd.grad(plain, (states, vectors))
    for got, expected in zip(torch.autograd.grad(value, (states, vectors)), exact, strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("width", [32, 5])
def test_float32_in_blocks_of_padded_positions_is_near_float64(way: str, width: int):
    """150 positions: on some CPUs they are padded to 160 and go through another library."""
    states, vectors, target = problem(150, 400, width)
    states, vectors = ((each / 2).detach().requires_grad_() for each in (states, vectors))
    plain = softmax_ce(states @ vectors.T, target)
    value = blocked_softmax_ce(states.float(), vectors.float(), target, 4 * 20_000)
    assert value.item() == pytest.approx(plain.item(), rel=1e-6)
    exact = torch.autograd.grad(plain, (states, vectors))
    for got, expected in zip(torch.autograd.grad(value, (states, vectors)), exact, strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


# --- half precision ----------------------------------------------------------------------------------------


def test_sums_are_float32_where_the_vectors_are_bfloat16(way: str):
    """Adding up 4096 ones in bfloat16 would end at 256."""
    states, vectors = (torch.zeros(3, 2, dtype=torch.bfloat16).requires_grad_(), torch.zeros(4096, 2).bfloat16())
    value = blocked_softmax_ce(states, vectors, torch.tensor([0, 9, 4095]), (999 if way == "tiles" else 4096) * 8)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(math.log(4096), rel=1e-6)
    value.backward()
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16


def test_gradients_of_bfloat16_vectors_add_up_in_float32(way: str):
    """300 positions pull at item 0, each by 1/2 of 1/300; in bfloat16 sums of the blocks would stall."""
    states = torch.ones(300, 1).bfloat16()
    vectors = torch.zeros(2, 1).bfloat16().requires_grad_()
    value = blocked_softmax_ce(states, vectors, torch.zeros(300, dtype=torch.long), 16 if way == "positions" else 8)
    value.backward()
    assert vectors.grad is not None
    assert vectors.grad.dtype == torch.bfloat16
    assert vectors.grad.flatten().tolist() == pytest.approx([-0.5, 0.5], rel=2**-8)


def test_under_autocast_it_agrees_with_the_plain_function_under_autocast(way: str):
    states, vectors, target = problem(20, 40, 8)
    states, vectors = (each.detach().float().requires_grad_() for each in (states, vectors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = blocked_softmax_ce(states, vectors, target, (90 if way == "tiles" else 200) * 8)
        plain = softmax_ce(states @ vectors.T, target)
    exact = softmax_ce(states @ vectors.T, target)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(plain.item(), rel=1e-2)
    assert value.item() != exact.item()  # products were made in bfloat16
    expected = torch.autograd.grad(plain, (states, vectors))
    for a, b in zip(torch.autograd.grad(value, (states, vectors)), expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 2e-2 * b.abs().max()


# --- memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_scores", [1, 100, 4000, 20_000])
def test_no_tensor_is_larger_than_the_memory_for_scores(max_scores: int):
    """150 x 400 = 60,000 scores; `vectors`, 400 x 3, is the largest of the rest."""
    states, vectors, target = problem(150, 400, 3)
    if max_scores == 1:  # one score at a time is slow
        states, vectors, target = states[:5], vectors[:9], target[:5] % 9
    with LargestTensor() as largest:
        blocked_softmax_ce(states, vectors, target, max_scores * BYTES).backward()
    assert max_scores / 3 <= largest.numel <= max(max_scores, 1200)


def test_a_bfloat16_score_takes_eight_bytes():
    """Itself, in float32, and the slope in bfloat16: one score fits where two float32 ones would."""
    states, vectors, target = problem(64, 30, 3)
    with LargestTensor() as largest:
        blocked_softmax_ce(states.bfloat16(), vectors.bfloat16(), target, 400 * 8).backward()
    assert 200 <= largest.numel <= 400


@given(
    m=st.integers(1, 10_000),
    n=st.integers(1, 10_000_000),
    max_scores=st.integers(1, 10**10),
    in_cache=st.booleans(),
)
def test_a_block_is_within_the_memory(m: int, n: int, max_scores: int, in_cache: bool):
    _, (positions, items) = blocked_softmax._block_shape(m, n, max_scores, in_cache)
    assert 1 <= positions <= m
    assert 1 <= items <= n
    assert positions * items <= max_scores


@given(start=st.integers(0, 50), length=st.integers(0, 200), largest=st.integers(1, 60), unit=st.integers(1, 40))
def test_even_blocks_cut_a_range_into_the_fewest_nearly_equal_parts(start: int, length: int, largest: int, unit: int):
    blocks = even_blocks(start, start + length, largest, unit)
    assert [row for block in blocks for row in range(block.start, block.stop)] == list(range(start, start + length))
    sizes = [block.stop - block.start for block in blocks]
    assert all(size % unit == 0 for size in sizes[:-1])
    units = [math.ceil(size / unit) for size in sizes]
    most = max(1, largest // unit)
    assert len(units) == math.ceil(sum(units) / most)
    assert not units or (min(units) > 0 and max(units) <= most and max(units) - min(units) <= 1)


# --- where it is used --------------------------------------------------------------------------------------


@pytest.mark.parametrize("softmax_ids", [[1, 2, 3, 4], [1, 3, 4]], ids=["all", "seen"])
def test_the_full_softmax_is_over_its_items_only(softmax_ids: list[int]):
    states, vectors, _ = problem(3, 5)
    target_ids = torch.tensor([4, 1, 3])
    allowed = torch.tensor([item in softmax_ids for item in range(5)])
    step = Step(states, vectors, target_ids, None, target_ids, None, torch.tensor(softmax_ids), None, 1)
    value = OBJECTIVES["ce"].loss(step)
    plain = softmax_ce(states @ vectors.T, target_ids, allowed)
    assert value.item() == pytest.approx(plain.item(), rel=1e-12)
    expected = torch.autograd.grad(plain, (states, vectors))
    for a, b in zip(torch.autograd.grad(value, (states, vectors)), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-14)


def test_score_memory_mb_bounds_the_full_softmax():
    """300 x 999 float32 scores take 1.2 MB."""
    states, vectors, _ = problem(300, 1000, 2)
    ids, target = torch.arange(1, 1000), torch.full((300,), 5)
    largest = {}
    for megabytes in (1, 2):
        step = Step(states.float(), vectors.float(), target, None, target, None, ids, None, megabytes)
        with LargestTensor() as recorded:
            OBJECTIVES["ce"].loss(step).backward()
        largest[megabytes] = recorded.numel
    assert largest[1] <= 2**20 / 4
    assert largest[2] >= 300 * 999


def test_the_model_hands_its_setting_to_the_loss(prepared):
    config, _, train, *_ = prepared(loss="ce", score_memory_mb=7)
    model = PAD(config, train._dataset)
    steps = model._steps(model._positions(next(iter(train))), None, None)
    assert {step.score_memory_mb for step in steps} == {7}


def test_shapes_that_do_not_fit_are_refused():
    states, vectors, target = problem()
    for wrong in [
        (states[0], vectors, target),
        (states, vectors[:, :4], target),
        (states, vectors, target[:3]),
        (states[:0], vectors, target[:0]),
        (states, vectors[:0], target),
    ]:
        with pytest.raises(ValueError, match=r"expected states \(M, w\)"):
            blocked_softmax_ce(*wrong, 1000)
