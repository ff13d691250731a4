"""Config keys `precision` and `compile`: the same losses, gradients and scores within stated tolerances."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from recbole_pad.backbones import BACKBONES
from recbole_pad.config import PADConfig
from recbole_pad.errors import InputError
from recbole_pad.model import compiling
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS

PHASES = ["pretrain", "align", "finetune"]
# every name that some backbone of RecBole gives to a dropout probability
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attn_dropout_prob", "dropout_prob", "sess_dropout", "item_dropout"), 0.0)  # fmt: skip # noqa: E501
NO_DROPOUT |= {"dropout_probs": [0.0, 0.0], "adapter_dropout": 0.0, "fusion_dropout": 0.0, "id_dropout": 0.0}
BFLOAT16 = 2e-2  # relative, of losses and scores; bfloat16 has 8 bits
GRADIENT = 0.15  # relative, of the norm of a parameter's gradient: roundings of all layers add up
# ... which of saturated attention is the small difference of large numbers: at least this share of the largest gradient
LEAST = 1e-2
Build = Callable[..., tuple[PAD, Any, Any]]


@pytest.fixture(autouse=True)
def old_distutils(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's compiler imports setuptools, which asserts that nobody has imported Python's own distutils before."""
    monkeypatch.setenv("SETUPTOOLS_USE_DISTUTILS", "stdlib")


@pytest.fixture
def build(prepared: Callable[..., Any]) -> Build:
    """``build(**changes)``: (model with weights away from their start, a training batch, an evaluation batch)."""

    def make(**changes: Any) -> tuple[PAD, Any, Any]:
        config, _, train, _, test = prepared(**changes)
        config.final_config_dict.update({key: value for key, value in NO_DROPOUT.items() if key in config})
        model = PAD(config, train._dataset)
        torch.manual_seed(5)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return model, next(iter(train)), next(iter(test))[0]

    return make


def loss_and_gradients(model: PAD, phase: str, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Parts of the loss, and the gradients of their sum; the same negatives in every call."""
    model.train()
    model.phase = phase
    model.zero_grad()
    torch.manual_seed(9)
    loss = model.calculate_loss(batch)
    parts = torch.stack(loss) if isinstance(loss, tuple) else loss[None]
    parts.sum().backward()
    return parts.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def scores(model: PAD, phase: str, batch: Any) -> Tensor:
    model.eval()
    model.phase = phase
    with torch.no_grad():
        return model.full_sort_predict(batch)


# --- bfloat16 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{}, {"loss": "bce", "expert_loss": "joint", "experts": ["rec", "align", "llm", "match"], "adapter_layers": 2,
          "adapter_activation": "gelu"},
     {"loss": "sampled_softmax", "n_negatives": 9}, {"backbone": "GRU4Rec"}, {"backbone": "BERT4Rec"}],
    ids=str,
)  # fmt: skip
def test_bfloat16_is_float32_within_its_eight_bits(build: Build, changes: dict[str, Any]):
    plain, batch, test = build(**changes)
    short, *_ = build(precision="bfloat16", **changes)
    for phase in PHASES:
        expected, gradients = loss_and_gradients(plain, phase, batch)
        got, rounded = loss_and_gradients(short, phase, batch)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=BFLOAT16, atol=1e-3)
        assert not torch.equal(got, expected)  # it was computed in another precision
        assert gradients.keys() == rounded.keys()
        least = LEAST * max(gradient.norm().item() for gradient in gradients.values())
        for name, gradient in gradients.items():
            assert rounded[name].dtype == torch.float32
            assert rounded[name].isfinite().all()
            error = (rounded[name] - gradient).norm() / gradient.norm().clamp(min=least)
            assert error < GRADIENT, name
        all_scores = scores(plain, phase, test)
        own_scores = scores(short, phase, test)
        assert own_scores.dtype == torch.float32
        scale = all_scores.abs().max().item()
        torch.testing.assert_close(own_scores, all_scores, rtol=0, atol=BFLOAT16 * scale)
        assert not torch.equal(own_scores, all_scores)


def test_bfloat16_scores_are_multiplied_and_ranked_in_float32(build: Build):
    """Scores rounded to bfloat16 would tie, and ties count against the target."""
    model, _, test = build(precision="bfloat16")
    got = scores(model, "finetune", test)
    assert (got != got.bfloat16().float()).float().mean() > 0.9
    with torch.no_grad():
        products = model.user_vectors(test) @ model.item_vectors().T
        assert torch.equal(model.pair_scores(test).add_to(products), got)


def test_bfloat16_leaves_parameters_optimizer_and_the_mmd_in_float32(build: Build, prepared, monkeypatch):
    config, _, train, *_ = prepared(precision="bfloat16", phases=["pretrain", "align"], epochs=1, adapter_layers=1)
    model = PAD(config, train._dataset)
    model.phase = "align"
    trainer = PHASE_TRAINERS["align"](config, model)
    types: set[torch.dtype] = set()
    import recbole_pad.nn.mmd as mmd

    own = mmd.at_least_float32
    monkeypatch.setattr(mmd, "at_least_float32", lambda rows: types.add(own(rows).dtype) or own(rows))
    trainer._train_epoch(train, 0)
    assert types == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    state = [value for entry in trainer.optimizer.state.values() for value in entry.values()]
    assert {value.dtype for value in state} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_recboles_enable_amp_keeps_its_effect(build: Build, precision: str):
    """RecBole wraps the loss in its own autocast, bfloat16 on a CPU."""
    model, batch, _ = build(precision=precision)
    plain, _ = loss_and_gradients(build()[0], "pretrain", batch)
    with torch.autocast("cpu"):
        inside, gradients = loss_and_gradients(model, "pretrain", batch)
    assert not torch.equal(inside, plain)
    torch.testing.assert_close(inside.float(), plain, rtol=BFLOAT16, atol=1e-3)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_an_unknown_precision_is_refused(config):
    with pytest.raises(InputError, match="precision: 'float16' is not known"):
        PADConfig.read(config(precision="float16"))


# --- compile -----------------------------------------------------------------------------------------------


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compilation as torch does it, but without generating machine code: quick, and enough to see what is traced."""
    torch._dynamo.reset()
    compile_in_place = compiling.compile_in_place
    monkeypatch.setattr(
        "recbole_pad.model.experts.compile_in_place", lambda core: compile_in_place(core, backend="aot_eager")
    )
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_traced_backbone_gives_the_same_loss_gradients_and_scores(build: Build, traced, backbone: str):
    changes = {"backbone": backbone, "phases": ["pretrain"]}
    plain, batch, test = build(**changes)
    compiled, *_ = build(compile=True, **changes)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    expected, gradients = loss_and_gradients(plain, "pretrain", batch)
    got, own = loss_and_gradients(compiled, "pretrain", batch)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-4)
    before = scores(plain, "pretrain", test)
    tolerance = 1e-5 * before.abs().max().item()
    torch.testing.assert_close(scores(compiled, "pretrain", test), before, rtol=1e-4, atol=tolerance)
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0  # it was traced at all


def test_a_compiled_model_is_copied_saved_and_loaded_as_any_other(build: Build, traced):
    """RecBole deep-copies models to count their operations, and writes `state_dict` into model.pth."""
    compiled, batch, test = build(compile=True, phases=["pretrain"])
    loss_and_gradients(compiled, "pretrain", batch)
    expected = scores(compiled, "pretrain", test)
    torch.testing.assert_close(scores(copy.deepcopy(compiled), "pretrain", test), expected, rtol=1e-5, atol=1e-5)
    file = io.BytesIO()
    torch.save(compiled.state_dict(), file)
    file.seek(0)
    plain, *_ = build(phases=["pretrain"])
    torch.nn.init.zeros_(next(plain.parameters()))
    plain.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(scores(plain, "pretrain", test), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_computes_the_same(build: Build):
    """With machine code; batches of several shapes, so that a graph for one shape alone would not do."""
    torch._dynamo.reset()
    plain, *_ = build(phases=["pretrain"])
    compiled, batch, test = build(compile=True, phases=["pretrain"])
    order = torch.argsort(batch["item_length"])
    for rows in (order, order[:5], order[3:]):
        expected, gradients = loss_and_gradients(plain, "pretrain", batch[rows])
        got, own = loss_and_gradients(compiled, "pretrain", batch[rows])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(own[name], gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        scores(compiled, "pretrain", test), scores(plain, "pretrain", test), rtol=1e-5, atol=1e-5
    )
    torch._dynamo.reset()


def test_compiling_without_a_compiler_is_refused(build: Build, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"compile: True needs a C\+\+ compiler, but none of g\+\+"):
        build(compile=True, phases=["pretrain"])
    monkeypatch.setenv("CXX", "nothing-here")
    with pytest.raises(InputError, match="CXX names, 'nothing-here', is not there; install one, or set compile: False"):
        build(compile=True, phases=["pretrain"])
