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


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_of_mk_mmd_is_right_when_the_bandwidth_is_held(kernel: str):
    text, ids = rows(4, seed=1).requires_grad_(), rows(4, seed=2, shift=0.5).requires_grad_()
    mean = torch.tensor(3.0, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda t, e: mk_mmd(t, e, kernel, ALPHAS, mean), (text, ids))


def test_closed_form_gradient_equals_autograd_on_the_whole_matrix(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mmd, "ROWS_PER_BLOCK", 3)  # 7 rows: blocks of 3, 3 and 1 in each sample
    text, ids = rows(7, seed=1).requires_grad_(), rows(7, seed=2, shift=0.5).requires_grad_()
    fused = mk_mmd(text, ids)
    plain = matrix_mmd(torch.cat([text, ids]), KERNELS["gaussian"], ALPHAS)
    assert fused.item() == pytest.approx(plain.item(), rel=1e-12)
    for a, b in zip(
        torch.autograd.grad(2 * fused, (text, ids)), torch.autograd.grad(2 * plain, (text, ids)), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-13)


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
    text, ids = rows(400, seed=1), 3 * rows(400, seed=2)
    for name, kernel in KERNELS.items():
        if kernel.is_characteristic:
            assert mk_mmd(text, ids, name).item() > 0.1
    assert abs(mk_mmd(text, ids, "cosine").item()) < 0.02


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
    assert value["none"].item() == 0
    assert not value["none"].requires_grad
