"""Packed sequences, attention over them, dropout masks and linear layers: what makes a step fast."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_pad.nn import linear as linear_module
from recbole_pad.nn.dropout import Dropout, keep_mask
from recbole_pad.nn.fast_layers import use_fast_layers
from recbole_pad.nn.linear import ROWS, Linear, linear, pad_rows
from recbole_pad.nn.packed_attention import HeadLayout, packed_attention
from recbole_pad.nn.packing import Packing
from tests.reference import attention_loops

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=12)

# --- packing -----------------------------------------------------------------------------------------------


@given(lengths=LENGTHS)
def test_packing_takes_the_tokens_row_by_row_and_puts_them_back(lengths: list[int]):
    n_columns = max(lengths) + 2
    padded = torch.zeros(len(lengths), n_columns, 3)
    for row, length in enumerate(lengths):
        padded[row, :length] = torch.arange(1.0, length + 1)[:, None] + 100 * row
    packing = Packing.of(torch.tensor(lengths))
    tokens = packing.pack(padded)
    expected = [100 * row + t + 1 for row, length in enumerate(lengths) for t in range(length)]
    assert tokens[:, 0].tolist() == expected
    assert packing.position.tolist() == [t for length in lengths for t in range(length)]
    assert [tokens[end - 1, 0].item() for end in packing.end] == [100 * row + n for row, n in enumerate(lengths)]
    assert [tokens[start, 0].item() for start in packing.start] == [100 * row + 1 for row in range(len(lengths))]
    assert torch.equal(packing.unpack(tokens, n_columns), padded)


@given(lengths=LENGTHS)
def test_each_row_is_in_one_group_of_rows_of_similar_length(lengths: list[int]):
    groups = Packing.of(torch.tensor(lengths)).groups
    assert sorted(row for group in groups for row in group.rows.tolist()) == list(range(len(lengths)))
    for group in groups:
        of_group = [lengths[row] for row in group.rows]
        assert group.length == max(of_group)
        assert max(of_group) <= 8 or max(of_group) < 2 * min(of_group) + 1


# --- attention ---------------------------------------------------------------------------------------------


def random_qkv(lengths: list[int], n_heads: int, width: int, n_more: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(lengths))
    n = sum(lengths) + n_more
    return torch.randn(n, 3 * n_heads * width, dtype=torch.float64, generator=generator)


@settings(deadline=None, max_examples=30)
@given(lengths=LENGTHS, n_heads=st.integers(1, 3), n_more=st.integers(0, 2))
def test_attention_is_that_of_each_row_alone(lengths: list[int], n_heads: int, n_more: int):
    qkv = random_qkv(lengths, n_heads, 2, n_more)
    layout = HeadLayout.of(Packing.of(torch.tensor(lengths)), n_heads, len(qkv))
    got = packed_attention(qkv, layout)
    rows = [row.tolist() for row in qkv[: sum(lengths)].split(lengths)]
    expected = torch.tensor(attention_loops.attention(rows, n_heads), dtype=torch.float64)
    torch.testing.assert_close(got[: sum(lengths)], expected)
    assert not got[sum(lengths) :].any()


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_of_attention_is_that_of_its_value(dropout: float):
    lengths = [3, 1, 10, 5]
    qkv = random_qkv(lengths, 2, 3, n_more=2).requires_grad_()
    layout = HeadLayout.of(Packing.of(torch.tensor(lengths)), 2, len(qkv))
    assert len(layout.shapes) == 2

    def attend(values: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same mask in every call
        return packed_attention(values, layout, dropout)

    assert torch.autograd.gradcheck(attend, (qkv,))
    attend(qkv).sum().backward()
    assert not qkv.grad[sum(lengths) :].any()


def test_dropout_of_attention_weights_keeps_their_mean():
    lengths = [12] * 30
    qkv = random_qkv(lengths, 2, 3)
    layout = HeadLayout.of(Packing.of(torch.tensor(lengths)), 2)
    torch.manual_seed(0)
    drawn = torch.stack([packed_attention(qkv, layout, 0.3) for _ in range(400)])
    expected = packed_attention(qkv, layout)
    assert not torch.equal(drawn[0], drawn[1])
    error = (drawn.mean(dim=0) - expected) / (drawn.std(dim=0) / math.sqrt(len(drawn)))
    assert error.square().mean().item() == pytest.approx(1.0, abs=0.15)


# --- dropout -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_mask_drops_with_its_probability_and_has_mean_one(p: float, dtype: torch.dtype):
    torch.manual_seed(1)
    mask = keep_mask(torch.empty(499, 1001, dtype=dtype), p)
    assert mask.dtype == dtype
    dropped = (mask == 0).double()
    assert dropped.mean().item() == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / mask.numel()) + 1e-5)
    kept = mask[mask > 0]
    assert (kept == kept[0]).all()
    assert kept[0].item() == pytest.approx(1 / (1 - p), rel=1e-3 if dtype != torch.bfloat16 else 1e-2)
    for shift in (1, 2, 3, 4, 7):  # four entries come from one random number: no correlation of neighbours
        flat = dropped.flatten() - p
        correlation = (flat[shift:] * flat[:-shift]).mean() / (p * (1 - p))
        assert abs(correlation.item()) < 4 / math.sqrt(mask.numel())


def test_the_expectation_of_a_mask_is_exactly_one():
    """The kept share is the rounded one: a mask's value times its probability, in 16-bit levels."""
    for p in (0.1, 0.3, 1 / 3, 0.7):
        mask = keep_mask(torch.empty(100_000, dtype=torch.float64), p)
        levels = 65_536 / mask.max().item()
        assert levels == pytest.approx(round(levels), abs=1e-6)
        assert levels / 65_536 == pytest.approx(1 - p, abs=1 / 65_536)


def test_dropout_is_torchs_layer_in_all_but_the_draw():
    values = torch.randn(50, 40, requires_grad=True)
    layer = Dropout(0.3)
    out = layer(values)
    out.sum().backward()
    scale = values.grad
    assert set(scale.unique().tolist()) == {0.0, scale.max().item()}
    torch.testing.assert_close(out, values * scale)
    assert torch.equal(layer.eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)
    torch.manual_seed(5)
    first = Dropout(0.3)(values)
    torch.manual_seed(5)
    assert torch.equal(Dropout(0.3)(values), first)


# --- linear layers -----------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(linear_module, "prefers_onednn", lambda: request.param)
    return request.param


@pytest.mark.parametrize("shape", [(1, 5), (ROWS, 7), (70, 8), (3, 11, 16), (0, 4)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_is_torchs(library: bool, shape: tuple[int, ...], has_bias: bool):
    torch.manual_seed(0)
    plain = nn.Linear(shape[-1], 9, bias=has_bias)
    ours = Linear(shape[-1], 9, bias=has_bias)
    ours.load_state_dict(plain.state_dict())
    values = torch.randn(shape, requires_grad=True)
    again = values.detach().clone().requires_grad_()
    upstream = torch.randn(*shape[:-1], 9)
    expected, got = plain(values), ours(again)
    torch.testing.assert_close(got, expected)
    expected.backward(upstream)
    got.backward(upstream)
    torch.testing.assert_close(again.grad, values.grad)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_asked_for_are_made(library: bool):
    values, weight = torch.randn(6, 4), torch.randn(3, 4, requires_grad=True)
    linear(values, weight).sum().backward()
    torch.testing.assert_close(weight.grad, values.sum(dim=0).expand(3, 4))
    moving = values.requires_grad_()
    linear(moving, weight.detach()).sum().backward()
    torch.testing.assert_close(moving.grad, weight.detach().sum(dim=0).expand(6, 4))


def test_other_types_and_autocast_are_torchs_own(library: bool):
    values, weight = torch.randn(6, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    assert torch.equal(linear(values, weight), F.linear(values, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(values.float(), weight.float()).dtype == torch.bfloat16


def test_rows_are_padded_to_a_multiple_with_zeros():
    values = torch.randn(ROWS + 1, 3)
    padded = pad_rows(values)
    assert padded.shape == (2 * ROWS, 3)
    assert torch.equal(padded[: ROWS + 1], values)
    assert not padded[ROWS + 1 :].any()
    assert pad_rows(values[:ROWS]).data_ptr() == values.data_ptr()


def test_layers_are_replaced_in_place_and_keep_their_parameters_and_names():
    class Own(nn.Linear):
        pass

    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Sequential(nn.Linear(4, 2, bias=False), Own(2, 2)))
    before = copy.deepcopy(module).eval()
    parameters = dict(module.named_parameters())
    module.eval()
    use_fast_layers(module)
    layers = module[0], module[1], module[2][0], module[2][1]
    assert [type(layer) for layer in layers] == [Linear, Dropout, Linear, Own]
    assert module[1].p == 0.2
    assert all(not part.training for part in module.modules())
    assert dict(module.named_parameters()).keys() == parameters.keys()
    assert all(module.get_parameter(name) is parameter for name, parameter in parameters.items())
    values = torch.randn(5, 3)
    torch.testing.assert_close(module(values), before(values))
