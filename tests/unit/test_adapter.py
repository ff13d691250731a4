import math

import pytest
import torch
from torch import nn

from recbole_pad.errors import InputError
from recbole_pad.nn.adapter import ACTIVATIONS, FUSIONS, AddFusion, ConcatFusion, TextAdapter


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def linears(module: nn.Module) -> list[nn.Linear]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("n_layers", [0, 1, 4])
def test_adapter_has_a_projection_and_n_hidden_layers(n_layers: int):
    adapter = TextAdapter(6, 3, n_layers, "gelu", dropout=0.1)
    assert [tuple(layer.weight.shape) for layer in linears(adapter)] == [(3, 6)] + [(3, 3)] * n_layers
    assert adapter(torch.randn(2, 5, 6)).shape == (2, 5, 3)


def test_adapter_applies_its_layers_in_the_published_order():
    adapter = TextAdapter(6, 3, 1, "gelu", dropout=0.1)
    names = [type(layer).__name__ for layer in adapter.layers]
    assert names == ["Linear", "GELU", "Dropout", "Linear", "GELU"]
    x = torch.randn(4, 6)
    first, second = linears(adapter)

    def gelu(a: float) -> float:
        return a * (1 + math.erf(a / math.sqrt(2))) / 2

    hidden = (x @ first.weight.T).tolist()
    hidden = torch.tensor([[gelu(a) for a in row] for row in hidden]) @ second.weight.T
    expected = torch.tensor([[gelu(a) for a in row] for row in hidden.tolist()])
    assert torch.allclose(adapter.eval()(x), expected, atol=1e-6)


def test_adapter_starts_xavier_normal_with_zero_bias():
    adapter = TextAdapter(300, 200, 1, "gelu", dropout=0.0)
    for layer in linears(adapter):
        n_out, n_in = layer.weight.shape
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / (n_in + n_out)), rel=0.03)
        assert (layer.bias == 0).all()


@pytest.mark.parametrize("n_layers", [0, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_match_scale_gives_the_wanted_spread(n_layers: int, activation: str, std: float):
    adapter = TextAdapter(8, 6, n_layers, activation, dropout=0.5)
    text_vectors = 5 * torch.randn(200, 8)
    adapter.match_scale(text_vectors, std)
    assert adapter.training
    assert adapter.eval()(text_vectors).std(correction=0).item() == pytest.approx(std, rel=0.05)


def test_match_scale_touches_the_last_layer_only_and_keeps_directions():
    adapter = TextAdapter(8, 6, 1, "linear", dropout=0.0)
    first, last = (layer.weight.clone() for layer in linears(adapter))
    adapter.match_scale(torch.randn(50, 8), 2.0)
    assert torch.equal(linears(adapter)[0].weight, first)
    ratio = linears(adapter)[1].weight / last
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))
    assert all(p.requires_grad and p.grad is None for p in adapter.parameters())


@pytest.mark.parametrize(
    ("activation", "std", "spread"),
    [("tanh", 1.5, 1.0), ("gelu", 0.0, 1.0), ("gelu", -1.0, 1.0), ("gelu", 1.0, 0.0)],
)
def test_match_scale_refuses_what_it_cannot_reach_and_restores_the_weights(activation: str, std: float, spread: float):
    adapter = TextAdapter(8, 6, 0, activation, dropout=0.0)
    before = linears(adapter)[0].weight.clone()
    with pytest.raises(InputError, match="standard deviation"):
        adapter.match_scale(spread * torch.randn(50, 8), std)
    assert torch.equal(linears(adapter)[0].weight, before)


def test_concat_fusion_started_as_sum_adds_like_add_fusion():
    id_emb, text_emb = torch.randn(5, 3), torch.randn(5, 3)
    concat = ConcatFusion(3, "linear", 0.5, init="sum").eval()
    add = AddFusion(3, "linear", 0.5)
    assert torch.allclose(concat(id_emb, text_emb), id_emb + text_emb)
    assert torch.equal(add(id_emb, text_emb), id_emb + text_emb)
    assert not list(add.parameters())
    assert all(p.requires_grad for p in concat.parameters())


def test_concat_fusion_by_hand():
    fusion = ConcatFusion(1, "relu", 0.0)
    with torch.no_grad():
        fusion.linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        fusion.linear.bias.fill_(0.5)
    fused = fusion(torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [3.0]]))
    assert fused.tolist() == [[1.5], [0.0]]  # 2 - 1 + 0.5; relu(2 - 3 + 0.5)


def test_concat_fusion_drops_out_of_its_input_in_training_only():
    fusion = ConcatFusion(4, "linear", 0.5, init="sum")
    ones = torch.ones(100, 4)
    assert set(fusion(ones, ones).unique().tolist()) == {0.0, 2.0, 4.0}
    assert set(fusion.eval()(ones, ones).unique().tolist()) == {2.0}


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="adapter_activation"):
        TextAdapter(4, 2, 1, "gelo", 0.0)
    with pytest.raises(InputError, match="negative"):
        TextAdapter(4, 2, -1, "gelu", 0.0)
    with pytest.raises(InputError, match="fusion_activation"):
        ConcatFusion(2, "gelo", 0.0)
    with pytest.raises(InputError, match="fusion_init"):
        ConcatFusion(2, "gelu", 0.0, init="zero")
    assert FUSIONS == {"concat": ConcatFusion, "add": AddFusion}
