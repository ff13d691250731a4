import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pad.errors import InputError
from recbole_pad.nn.gate import GATE_NORMS, USER_GATES, FrequencyGate, Gate, LogFrequencyGate, NewestItemGate
from tests.reference import scores_loops

EXPERTS = ("rec", "align", "llm")
PUBLISHED = {"rec": (1, 0), "align": (-4, -5), "llm": (0, 1)}


@settings(deadline=None, max_examples=60)
@given(
    logits=st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=5),
    norm=st.sampled_from(["sigmoid", "softmax"]),
)
def test_gate_weights_of_an_item_lie_between_0_and_1_and_sum_to_1(logits: list[float], norm: str):
    weights = GATE_NORMS[norm](torch.tensor(logits))
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert ((weights >= 0) & (weights <= 1)).all()


def test_gate_norms_by_the_formula():
    logits = [1.0, -4.0, 0.3]
    sigmoid = [1 / (1 + math.exp(-a)) for a in logits]
    exp = [math.exp(a) for a in logits]
    as_tensor = torch.tensor([logits, logits], dtype=torch.float64)
    for norm, raw in (("sigmoid", sigmoid), ("softmax", exp)):
        weights = GATE_NORMS[norm](as_tensor)
        assert weights.shape == (2, 3)
        assert weights[1].tolist() == pytest.approx([value / sum(raw) for value in raw])


@settings(deadline=None, max_examples=60)
@given(logits=st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=5))
def test_softplus_weights_are_positive_and_grow_with_their_logit_alone(logits: list[float]):
    weights = GATE_NORMS["softplus"](torch.tensor(logits, dtype=torch.float64))
    expected = [math.log2(1 + math.exp(a)) / len(logits) for a in logits]
    assert weights.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (weights > 0).all()


def test_log_frequency_gate_runs_linearly_between_its_ends():
    gate = LogFrequencyGate(10, EXPERTS, "sigmoid", PUBLISHED)
    bins = torch.zeros(3, dtype=torch.long)
    weights = gate(bins, torch.tensor([1.0, 0.0, -1.0]))  # one deviation above the mean, the mean, one below
    for row, logits in enumerate([(1.0, -4.0, 0.0), (0.5, -4.5, 0.5), (0.0, -5.0, 1.0)]):
        sigmoid = [1 / (1 + math.exp(-a)) for a in logits]
        assert weights[row].tolist() == pytest.approx([value / sum(sigmoid) for value in sigmoid], rel=1e-5)


def test_log_frequency_gate_has_two_numbers_per_expert_however_many_bins():
    assert sum(p.numel() for p in LogFrequencyGate(1000, EXPERTS, "softplus", "equal").parameters()) == 6


def test_published_start_runs_linearly_over_the_bins():
    gate = FrequencyGate(11, EXPERTS, "sigmoid", PUBLISHED)
    assert gate.logits.shape == (12, 3)
    assert gate.logits.dtype == torch.float32
    for q in range(11):
        step = q / 10
        assert gate.logits[q + 1].tolist() == pytest.approx([1 - step, -4 - step, step], abs=1e-6)


def test_published_start_gives_the_aligned_expert_about_one_percent():
    share = FrequencyGate(10, EXPERTS, "sigmoid", PUBLISHED)(torch.arange(1, 11))[:, 1]
    assert 0.004 < share.min() < share.max() < 0.015


def test_equal_start_gives_every_expert_the_same_weight():
    for norm in GATE_NORMS:
        weights = FrequencyGate(4, EXPERTS, norm, "equal")(torch.arange(5))
        assert torch.allclose(weights, torch.full((5, 3), 1 / 3))


def test_gate_looks_at_the_bin_alone_and_keeps_the_shape():
    gate = FrequencyGate(5, EXPERTS, "sigmoid", PUBLISHED)
    bins = torch.tensor([[1, 5], [5, 2]])
    weights = gate(bins)
    assert weights.shape == (2, 2, 3)
    assert torch.equal(weights[0, 1], weights[1, 0])
    assert not torch.allclose(weights[0, 0], weights[1, 1])


def test_an_expert_left_out_needs_no_other_change():
    gate = FrequencyGate(3, ["llm", "rec"], "softmax", PUBLISHED)
    assert gate.logits[1].tolist() == [0.0, 1.0]


def test_padding_row_stays_zero_while_training():
    gate = FrequencyGate(3, EXPERTS, "sigmoid", PUBLISHED)
    optimizer = torch.optim.AdamW(gate.parameters(), lr=0.1, weight_decay=0.1)
    before = gate.logits.detach().clone()
    gate(torch.tensor([0, 0, 2]))[:, 0].sum().backward()
    optimizer.step()
    assert (gate.logits[0] == 0).all()
    assert (gate.logits[2] != before[2]).all()


@pytest.mark.parametrize("norm", GATE_NORMS)
def test_gate_has_the_right_gradient(norm: str):
    gate = FrequencyGate(3, EXPERTS, norm, PUBLISHED).double()
    bins = torch.tensor([1, 3, 3, 2])

    def weights(logits: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(gate, {"logits": logits}, (bins,))

    assert torch.autograd.gradcheck(weights, (gate.logits.detach().requires_grad_(),))


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="'llm'"):
        FrequencyGate(3, EXPERTS, "sigmoid", {"rec": (1, 0), "align": (0, 0)})
    with pytest.raises(InputError, match="two numbers"):
        FrequencyGate(3, ["rec"], "sigmoid", {"rec": (1, 0, 3)})
    with pytest.raises(InputError, match="gate_norm"):
        FrequencyGate(3, EXPERTS, "sigmoids", PUBLISHED)
    with pytest.raises(InputError, match="gate_start"):
        FrequencyGate(3, EXPERTS, "sigmoid", "equals")
    with pytest.raises(InputError, match="at least one"):
        FrequencyGate(0, EXPERTS, "sigmoid", "equal")


def test_user_weights_by_hand():
    """softplus(log(e - 1) + slope * z): 1 at the start, and always where the newest item is of mean frequency."""
    gate = NewestItemGate(3)
    log_frequency = torch.tensor([1.0, 0.0, -2.0])
    assert gate(log_frequency).flatten().tolist() == pytest.approx([1.0] * 9)
    with torch.no_grad():
        gate.slope.copy_(torch.tensor([1.0, -0.5, 0.0]))
    weights = gate(log_frequency)
    assert weights.shape == (3, 3)
    assert weights[0].tolist() == pytest.approx([1.7353, 0.7140, 1.0], abs=1e-4)
    assert weights[1].tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert weights[2].tolist() == pytest.approx([0.2091, 1.7353, 1.0], abs=1e-4)


@settings(deadline=None, max_examples=60)
@given(
    slopes=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=5),
    frequencies=st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=4),
)
def test_user_weights_are_positive_and_those_of_the_loops(slopes: list[float], frequencies: list[float]):
    gate = NewestItemGate(len(slopes)).double()
    gate.slope.data = torch.tensor(slopes, dtype=torch.float64)
    weights = gate(torch.tensor(frequencies, dtype=torch.float64))
    for row, frequency in zip(weights.tolist(), frequencies, strict=True):
        assert row == pytest.approx(scores_loops.user_weights(slopes, frequency), rel=1e-6, abs=1e-30)
        assert all(weight > 0 for weight in row)


def test_the_published_gate_gives_every_user_the_weight_1_and_learns_nothing_of_users():
    gate = Gate(FrequencyGate(4, EXPERTS, "sigmoid", PUBLISHED), USER_GATES["none"](3))
    assert gate.users(torch.tensor([3.0, -1.0])).tolist() == [[1.0] * 3] * 2
    assert [name for name, _ in gate.named_parameters()] == ["items.logits"]
    both = Gate(FrequencyGate(4, EXPERTS, "sigmoid", PUBLISHED), USER_GATES["newest"](3))
    assert [name for name, _ in both.named_parameters()] == ["items.logits", "users.slope"]
