import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recbole_pad.errors import InputError
from recbole_pad.nn import mmd
from recbole_pad.nn.kernels import KERNELS, squared_distances
from recbole_pad.nn.mmd import ALIGN_LOSSES, ALPHAS, info_nce, matrix_mmd, mk_mmd
from tests.reference import mmd_loops

FLOAT64 = 1e-9
FLOAT32 = 2e-5


def rows(n: int, seed: int, width: int = 4, shift: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) + shift).to(dtype)


def test_gaussian_kernel_by_hand():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert KERNELS["gaussian"](x, y, 12.5).tolist()[0] == pytest.approx([math.exp(-1), 1.0])


def test_laplacian_kernel_by_hand():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, -4.0], [0.0, 0.0]])
    assert KERNELS["laplacian"](x, y, 7.0).tolist()[0] == pytest.approx([math.exp(-1), 1.0])


def test_linear_and_cosine_kernels_by_hand():
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [-1.0, -2.0], [0.0, 0.0]])
    assert KERNELS["linear"](x, y).tolist()[0] == pytest.approx([4.0, -5.0, 0.0])
    assert KERNELS["cosine"](x, y).tolist()[0] == pytest.approx([0.8, -1.0, 0.0])


def test_cosine_kernel_is_largest_for_equal_directions():
    """The published kernel is 1 - cos, which is smallest there."""
    x = rows(5, seed=1)
    assert torch.allclose(KERNELS["cosine"](x, 3 * x).diagonal(), torch.ones(5, dtype=torch.float64))


def test_squared_distances_have_an_exact_zero_diagonal_and_are_never_negative():
    x = rows(50, seed=1, width=64, shift=100.0, dtype=torch.float32)
    sq_dist = squared_distances(x, x)
    assert (sq_dist.diagonal() == 0).all()
    assert (sq_dist >= 0).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n", [2, 3, 9])
def test_mk_mmd_equals_the_double_sum(kernel: str, n: int):
    text, ids = rows(n, seed=1), rows(n, seed=2, shift=0.5)
    expected = mmd_loops.mk_mmd(kernel, text.tolist(), ids.tolist(), ALPHAS)
    assert mk_mmd(text, ids, kernel).item() == pytest.approx(expected, rel=FLOAT64, abs=FLOAT64)


@pytest.mark.parametrize("alphas", [(1.0,), (0.3, 0.7), (4.0, 1.0, 2.0), (0.5, 0.5)])
@pytest.mark.parametrize("kernel", ["gaussian", "laplacian"])
def test_mk_mmd_takes_any_bandwidths_in_any_order(kernel: str, alphas: tuple[float, ...]):
    text, ids = rows(5, seed=3), rows(5, seed=4, shift=1.0)
    expected = mmd_loops.mk_mmd(kernel, text.tolist(), ids.tolist(), alphas)
    assert mk_mmd(text, ids, kernel, alphas).item() == pytest.approx(expected, rel=FLOAT64, abs=FLOAT64)


def test_mk_mmd_by_hand_for_two_points_against_two():
    """t = e = (0, 2): the mean of the 16 squared distances is 2, so k = exp(-d / (4 alpha))."""
    sample = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    far = math.exp(-1)  # d = 4, alpha = 1
    expected = 2 * far - (1 + far)
    assert mk_mmd(sample, sample.clone(), alphas=(1.0,)).item() == pytest.approx(expected)


@pytest.mark.parametrize("kernel", KERNELS)
def test_float32_agrees_with_the_double_sum_also_far_from_zero(kernel: str):
    shift = 0.0 if kernel == "linear" else 20.0
    text, ids = (rows(9, s, shift=shift, dtype=torch.float32) for s in (1, 2))
    expected = mmd_loops.mk_mmd(kernel, text.tolist(), ids.tolist(), ALPHAS)
    assert mk_mmd(text, ids, kernel).item() == pytest.approx(expected, abs=FLOAT32)
    assert mk_mmd(text, ids, kernel).dtype == torch.float32


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 8), kernel=st.sampled_from(sorted(KERNELS)))
def test_mk_mmd_ignores_row_order_and_which_sample_is_which(seed: int, n: int, kernel: str):
    text, ids = rows(n, seed), rows(n, seed + 1, shift=0.3)
    generator = torch.Generator().manual_seed(seed)
    value = mk_mmd(text, ids, kernel).item()
    shuffled = mk_mmd(text[torch.randperm(n, generator=generator)], ids, kernel).item()
    assert shuffled == pytest.approx(value, rel=1e-8, abs=1e-10)
    assert mk_mmd(ids, text, kernel).item() == pytest.approx(value, rel=1e-8, abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100), kernel=st.sampled_from(["gaussian", "laplacian"]))
def test_mk_mmd_with_its_own_bandwidth_ignores_scale_and_shift(seed: int, scale: float, kernel: str):
    text, ids = rows(4, seed), rows(4, seed + 1, shift=0.3)
    moved = mk_mmd(scale * text + 7, scale * ids + 7, kernel).item()
    assert moved == pytest.approx(mk_mmd(text, ids, kernel).item(), rel=1e-7, abs=1e-9)


@pytest.fixture
def held_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean distance is never differentiated: differences of values would see it move."""
    monkeypatch.setattr(mmd, "_usable_scale", lambda mean_dist: torch.full_like(mean_dist, 3.0))


@pytest.mark.usefixtures("held_bandwidth")
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_of_mk_mmd_is_right_when_the_bandwidth_is_held(kernel: str):
    text, ids = rows(4, seed=1).requires_grad_(), rows(4, seed=2, shift=0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, e: mk_mmd(t, e, kernel), (text, ids))


BLOCKS = [1, 3, 4, 100]  # rows; of 7 they make 7, 3, 2 and 1 blocks in each sample
BANDWIDTHS = [ALPHAS, (1.0,), (0.5, 0.3, 1.0, 0.5), (0.1, 0.4)]


@pytest.mark.parametrize("alphas", BANDWIDTHS, ids=str)
@pytest.mark.parametrize("largest", BLOCKS)
def test_value_and_gradient_equal_the_loops_in_blocks_of_any_size(
    monkeypatch: pytest.MonkeyPatch, largest: int, alphas: tuple[float, ...]
):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", largest)
    text, ids = rows(7, seed=1).requires_grad_(), rows(7, seed=2, shift=0.5).requires_grad_()
    value = mk_mmd(text, ids, alphas=alphas)
    expected = mmd_loops.mk_mmd("gaussian", text.tolist(), ids.tolist(), alphas)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    got = torch.cat(torch.autograd.grad(2 * value, (text, ids)))
    grad = mmd_loops.gaussian_mk_mmd_grad(text.tolist(), ids.tolist(), alphas)
    assert torch.allclose(got, 2 * torch.tensor(grad, dtype=torch.float64), rtol=1e-10, atol=1e-13)


def test_value_and_gradient_in_float32_far_from_zero_are_near_the_loops(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", 4)
    text, ids = (rows(11, s, width=16, shift=20.0, dtype=torch.float32).requires_grad_() for s in (1, 2))
    value = mk_mmd(text, ids)
    assert value.item() == pytest.approx(mmd_loops.mk_mmd("gaussian", text.tolist(), ids.tolist(), ALPHAS), abs=FLOAT32)
    got = torch.cat(torch.autograd.grad(value, (text, ids)))
    expected = torch.tensor(mmd_loops.gaussian_mk_mmd_grad(text.tolist(), ids.tolist(), ALPHAS))
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("largest", [32, 64, 320])
@pytest.mark.parametrize("width", [32, 5])
def test_float32_in_blocks_of_padded_rows_is_near_the_whole_matrix_in_float64(
    monkeypatch: pytest.MonkeyPatch, width: int, largest: int
):
    """70 rows: on some CPUs they are padded to 96 and go through another library."""
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", largest)
    text, ids = (rows(70, s, width=width, shift=s / 4).requires_grad_() for s in (1, 2))
    counts = torch.arange(70) % 4
    plain = matrix_mmd(torch.cat([text, ids]), KERNELS["gaussian"], ALPHAS, counts=counts)
    value = mk_mmd(text.float(), ids.float(), counts=counts)
    assert value.item() == pytest.approx(plain.item(), abs=FLOAT32)
    exact = torch.autograd.grad(plain, (text, ids))
    for got, expected in zip(torch.autograd.grad(value, (text, ids)), exact, strict=True):
        assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_closed_form_gradient_equals_autograd_on_the_whole_matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", 3)
    text, ids = rows(7, seed=1).requires_grad_(), rows(7, seed=2, shift=0.5).requires_grad_()
    fused = mk_mmd(text, ids)
    plain = matrix_mmd(torch.cat([text, ids]), KERNELS["gaussian"], ALPHAS)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-12)
    for a, b in zip(torch.autograd.grad(fused, (text, ids)), torch.autograd.grad(plain, (text, ids)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


def test_rows_that_occur_in_both_samples_are_at_distance_zero(monkeypatch: pytest.MonkeyPatch):
    """The pair (t_i, e_i) counts, unlike a row with itself."""
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", 2)
    same = rows(5, seed=1, shift=3.0).requires_grad_()
    value = mk_mmd(same, same.detach().clone())
    assert value.item() == pytest.approx(mmd_loops.mk_mmd("gaussian", same.tolist(), same.tolist(), ALPHAS), rel=1e-10)
    (grad,) = torch.autograd.grad(value, same)
    expected = mmd_loops.gaussian_mk_mmd_grad(same.tolist(), same.tolist(), ALPHAS)[:5]
    assert torch.allclose(grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("n", [3, 7, 11, 100])
def test_equal_rows_whose_sum_is_rounded_are_equal_all_the_same(n: int):
    """The rounding error of their mean must not become a distance of its own."""
    text, ids = (torch.full((n, 3), 0.1).requires_grad_() for _ in range(2))
    value = mk_mmd(text, ids, counts=torch.arange(1, n + 1))
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=2e-6)
    assert text.grad is not None
    assert (text.grad == 0).all()


def test_no_kernel_value_is_above_one_where_rounding_makes_a_distance_negative():
    """At a tiny bandwidth only the n pairs (t_i, e_i), at distance 0, count: at most one each and kernel."""
    same = rows(20, seed=1, width=64, dtype=torch.float32)
    value = mk_mmd(same, same.clone(), alphas=[1e-9 * alpha for alpha in ALPHAS])
    assert -2 * len(ALPHAS) / 20 - 1e-6 <= value.item() < 0


# --- repeated rows -----------------------------------------------------------------------------------------

COUNTS = torch.tensor([3, 1, 0, 5, 2])


@pytest.mark.parametrize("largest", [2, 100])
@pytest.mark.parametrize("kernel", KERNELS)
def test_counts_equal_the_loops_over_repeated_rows(monkeypatch: pytest.MonkeyPatch, kernel: str, largest: int):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", largest)
    text, ids = rows(5, seed=1), rows(5, seed=2, shift=0.5)
    repeated = (each.repeat_interleave(COUNTS, dim=0).tolist() for each in (text, ids))
    expected = mmd_loops.mk_mmd(kernel, *repeated, ALPHAS)
    assert mk_mmd(text, ids, kernel, counts=COUNTS).item() == pytest.approx(expected, rel=FLOAT64, abs=FLOAT64)


@pytest.mark.parametrize("largest", [2, 100])
def test_the_gradient_with_counts_is_the_sum_over_the_repeats(monkeypatch: pytest.MonkeyPatch, largest: int):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK_CPU", largest)
    text, ids = rows(5, seed=1).requires_grad_(), rows(5, seed=2, shift=0.5).requires_grad_()
    repeated = [each.repeat_interleave(COUNTS, dim=0).tolist() for each in (text, ids)]
    slots = mmd_loops.gaussian_mk_mmd_grad(*repeated, ALPHAS)
    place = torch.arange(5).repeat_interleave(COUNTS)
    expected = torch.zeros(10, 4, dtype=torch.float64)
    expected.index_add_(0, torch.cat([place, place + 5]), torch.tensor(slots, dtype=torch.float64))
    got = torch.cat(torch.autograd.grad(mk_mmd(text, ids, counts=COUNTS), (text, ids)))
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.usefixtures("held_bandwidth")
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_with_counts_is_right_when_the_bandwidth_is_held(kernel: str):
    text, ids = rows(5, seed=1).requires_grad_(), rows(5, seed=2, shift=0.5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, e: mk_mmd(t, e, kernel, counts=COUNTS), (text, ids))


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    kernel=st.sampled_from(sorted(KERNELS)),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 1),
)
def test_counts_and_repeated_rows_are_the_same_sample(seed: int, kernel: str, counts: list[int]):
    text, ids, times = rows(len(counts), seed), rows(len(counts), seed + 1, shift=0.3), torch.tensor(counts)
    repeated = mk_mmd(*(each.repeat_interleave(times, dim=0) for each in (text, ids)), kernel)
    assert mk_mmd(text, ids, kernel, counts=times).item() == pytest.approx(repeated.item(), rel=1e-8, abs=1e-10)


def test_a_sample_of_one_row_many_times_by_hand():
    """Within each sample K = 1; d = 4 across and 2 on average over the pairs of the joint sample."""
    text, ids = torch.tensor([[0.0]]).requires_grad_(), torch.tensor([[2.0]])
    value = mk_mmd(text, ids, alphas=(1.0,), counts=torch.tensor([7000]))
    assert value.item() == pytest.approx(2 - 2 * math.exp(-1), rel=1e-6)
    (grad,) = torch.autograd.grad(value, text)
    assert grad.item() == pytest.approx(-2 * math.exp(-1) * 2 / 2, rel=1e-6)


def test_mostly_padding_in_float32_is_near_float64():
    text, ids = rows(40, seed=1, width=16), rows(40, seed=2, width=16, shift=0.5)
    counts = torch.tensor([7000, *range(1, 40)])
    exact = mk_mmd(text, ids, counts=counts).item()
    assert mk_mmd(text.float(), ids.float(), counts=counts).item() == pytest.approx(exact, abs=FLOAT32)


@pytest.mark.parametrize("loss", [mk_mmd, lambda t, e, counts: info_nce(t, e, 0.1, counts)])
def test_bad_counts_are_refused(loss):
    x = rows(3, seed=1)
    with pytest.raises(ValueError, match=r"counts must have shape \(3,\), got \(2,\)"):
        loss(x, x, counts=torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="at least 2 rows, got 1"):
        loss(x, x, counts=torch.tensor([0, 1, 0]))


def test_both_samples_get_gradient_and_only_those_that_ask():
    text, ids = rows(4, seed=1).requires_grad_(), rows(4, seed=2, shift=0.5)
    mk_mmd(text, ids).backward()
    assert text.grad is not None
    assert text.grad.abs().sum() > 0
    assert not mk_mmd(text.detach(), ids).requires_grad


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("level", [0.0, 0.1, 1e4])
def test_equal_rows_give_zero_and_finite_gradients(kernel: str, level: float):
    text, ids = (torch.full((5, 3), level, requires_grad=True) for _ in range(2))
    value = mk_mmd(text, ids, kernel)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-6 * max(1.0, level**2))
    assert text.grad is not None
    assert ids.grad is not None
    assert torch.isfinite(text.grad).all()
    assert torch.isfinite(ids.grad).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_mk_mmd_is_computed_in_float32_under_autocast(kernel: str):
    text, ids = rows(6, 1, dtype=torch.float32), rows(6, 2, shift=0.5, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = mk_mmd(text, ids, kernel)
    assert inside.dtype == torch.float32
    assert inside.item() == pytest.approx(mk_mmd(text, ids, kernel).item(), rel=1e-6)


def test_half_precision_input_gets_gradients_in_its_own_type():
    text, ids = (rows(6, s, dtype=torch.bfloat16).requires_grad_() for s in (1, 2))
    value = mk_mmd(text, ids)
    value.backward()
    assert value.dtype == torch.float32
    assert text.grad is not None
    assert text.grad.dtype == torch.bfloat16


def test_gaussian_mk_mmd_is_large_for_different_and_near_zero_for_equal_distributions():
    text = rows(300, seed=1)
    assert abs(mk_mmd(text, rows(300, seed=2)).item()) < 0.02
    assert mk_mmd(text, rows(300, seed=2, shift=1.0)).item() > 0.5


def test_only_characteristic_kernels_see_a_difference_in_spread():
    """Their MMD is zero only for equal distributions; that of the others for equal means, of rows or of directions."""
    text, ids = rows(400, seed=1), 3 * rows(400, seed=2)
    assert {name for name in KERNELS if abs(mk_mmd(text, ids, name).item()) > 0.1} == {"gaussian", "laplacian"}


@pytest.mark.parametrize("loss", [mk_mmd, lambda t, e: info_nce(t, e, 0.1)])
@pytest.mark.parametrize(("text", "ids"), [((1, 3), (1, 3)), ((3, 2), (3, 4)), ((3, 2), (4, 2)), ((3,), (3,))])
def test_bad_shapes_are_refused(loss, text: tuple[int, ...], ids: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"rows|shape"):
        loss(torch.zeros(text), torch.zeros(ids))


def test_bad_settings_are_refused():
    x = rows(3, seed=1)
    with pytest.raises(ValueError, match="positive"):
        mk_mmd(x, x, alphas=(1.0, 0.0))
    with pytest.raises(ValueError, match="positive"):
        mk_mmd(x, x, alphas=())
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        mk_mmd(x, x, kernel="gausian")
    with pytest.raises(ValueError, match="temperature"):
        info_nce(x, x, temperature=0.0)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_equals_the_loops(temperature: float):
    text, ids = rows(6, seed=1), rows(6, seed=2)
    expected = mmd_loops.info_nce(text.tolist(), ids.tolist(), temperature)
    assert info_nce(text, ids, temperature).item() == pytest.approx(expected, rel=FLOAT64)


def test_info_nce_has_the_right_gradient():
    text, ids = rows(4, seed=1).requires_grad_(), rows(4, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda t, e: info_nce(t, e, 0.5), (text, ids))


def test_info_nce_with_counts_equals_the_loops_over_repeated_rows():
    text, ids = rows(5, seed=1).requires_grad_(), rows(5, seed=2).requires_grad_()
    repeated = [each.repeat_interleave(COUNTS, dim=0) for each in (text, ids)]
    value = info_nce(text, ids, 0.3, COUNTS)
    assert value.item() == pytest.approx(mmd_loops.info_nce(*(each.tolist() for each in repeated), 0.3), rel=FLOAT64)
    plain = torch.autograd.grad(info_nce(*repeated, 0.3), (text, ids))
    for got, expected in zip(torch.autograd.grad(value, (text, ids)), plain, strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-13)


def test_info_nce_depends_on_the_pairing_and_not_on_lengths():
    text = rows(5, seed=1)
    paired, turned = info_nce(text, 3 * text, 0.1).item(), info_nce(text, text.roll(1, 0), 0.1).item()
    assert paired < turned
    assert paired == pytest.approx(info_nce(text, text, 0.1).item())


def test_info_nce_of_rows_that_are_all_equal_is_log_n():
    same = torch.ones(4, 3)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(4))


def test_align_losses_share_one_signature():
    text, ids = rows(4, seed=1, dtype=torch.float32), rows(4, seed=2, dtype=torch.float32)
    value = {
        name: loss(text, ids, kernel="laplacian", alphas=(0.5,), temperature=0.3) for name, loss in ALIGN_LOSSES.items()
    }
    assert value["mmd"].item() == pytest.approx(mk_mmd(text, ids, "laplacian", (0.5,)).item())
    assert value["infonce"].item() == pytest.approx(info_nce(text, ids, 0.3).item())
    assert value["mmd+infonce"].item() == pytest.approx(value["mmd"].item() + value["infonce"].item())
    counts = torch.tensor([2, 0, 1, 1])
    counted = {
        name: loss(text, ids, kernel="laplacian", alphas=(0.5,), temperature=0.3, counts=counts)
        for name, loss in ALIGN_LOSSES.items()
    }
    assert counted["mmd"].item() == pytest.approx(mk_mmd(text, ids, "laplacian", (0.5,), counts=counts).item())
    assert counted["infonce"].item() == pytest.approx(info_nce(text, ids, 0.3, counts).item())
    assert counted["mmd+infonce"].item() == pytest.approx(counted["mmd"].item() + counted["infonce"].item())
