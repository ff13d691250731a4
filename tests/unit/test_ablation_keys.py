"""Keys that experiments vary: the anchor's weight, a gate never fitted, random gates, experts taken over."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from recbole_pad import checkpoint
from recbole_pad.config import PADConfig
from recbole_pad.errors import InputError
from recbole_pad.nn.gate import GATES
from recbole_pad.seeding import seed_all
from recbole_pad.trainer import PADTrainer

Build = Callable[..., SimpleNamespace]


def fitted(run: SimpleNamespace) -> PADTrainer:
    trainer = PADTrainer(run.config, run.model)
    trainer.fit(run.train, run.valid)
    return trainer


def align_losses(run: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor]:
    run.model.phase = "align"
    run.model.train()
    seed_all(3)
    recommendation, alignment = run.model.calculate_loss(next(iter(run.train)))
    return recommendation, alignment


def test_the_anchor_weighs_the_recommendation_loss_of_alignment_and_nothing_else(build: Build):
    one, half = build(), build(anchor_weight=0.5)
    half.model.load_state_dict(one.model.state_dict())
    (recommendation, alignment), (halved, same) = align_losses(one), align_losses(half)
    assert halved.item() == pytest.approx(recommendation.item() / 2)
    assert same.item() == pytest.approx(alignment.item())
    for run in (one, half):
        run.model.phase = "pretrain"
        seed_all(3)
    batch = next(iter(one.train))
    losses = []
    for run in (one, half):
        seed_all(3)
        losses.append(run.model.calculate_loss(batch).item())
    assert losses[0] == losses[1]


def test_without_an_anchor_the_user_encoder_stays_as_it_is(build: Build):
    """The alignment loss reads item vectors alone."""
    run = build(
        anchor_weight=0,
        align_start="pretrain",
        phases=["pretrain", "align"],
        weight_decay=0.0,
        **{"align.eval_step": 0},
    )
    trainer = fitted(run)
    rec, align = run.model.experts["rec"], run.model.experts["align"]
    for name, value in rec.backbone.state_dict().items():
        assert torch.equal(align.backbone.state_dict()[name], value), name
    assert not torch.equal(align.items.ids.weight, rec.items.weight)
    assert trainer.records["align"].epochs == 2
    assert trainer.records["align"].valid_curve == []


def test_no_anchor_and_no_alignment_is_refused(config: Callable[..., Any]):
    for changes in ({"align_loss": "none"}, {"mmd_weight": 0}):
        with pytest.raises(InputError, match="anchor_weight: 0 leaves the phase align without a loss"):
            PADConfig.read(config(anchor_weight=0, **changes))
    PADConfig.read(config(anchor_weight=0, align_loss="none", phases=["pretrain"]))


@pytest.mark.parametrize("form", list(GATES))
def test_a_random_gate_depends_on_the_seed_and_differs_between_experts(form: str):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        gate = GATES[form](4, ["rec", "llm"], "softmax", "random")
        return gate(torch.tensor([1, 2, 4]), torch.tensor([1.0, 0.0, -1.0]))

    assert torch.equal(weights(1), weights(1))
    assert not torch.allclose(weights(1), weights(2))
    assert not torch.allclose(weights(1), torch.full((3, 2), 0.5))


@pytest.mark.parametrize("start", ["equal", {"rec": [1, 0], "align": [0, 0], "llm": [0, 2]}])
def test_a_gate_that_is_not_fitted_keeps_its_start_values(start: Any, build: Build):
    run = build(
        gate_fit="none", gate_form="bins", gate_norm="softmax", gate_start=start, experts=["rec", "align", "llm"]
    )
    before = run.model.gate.items.logits.detach().clone()
    fitted(run)
    assert torch.equal(run.model.gate.items.logits, before)


def test_a_gate_that_is_not_fitted_is_no_part_of_the_joint_loss(build: Build):
    run = build(gate_fit="none", expert_loss="joint", experts=["rec", "align", "llm"], phases=["finetune"])
    before = {name: value.clone() for name, value in run.model.gate.state_dict().items()}
    encoder = run.model.experts["llm"].items.adapter.state_dict()
    started = {name: value.clone() for name, value in encoder.items()}
    fitted(run)
    assert all(torch.equal(value, before[name]) for name, value in run.model.gate.state_dict().items())
    assert any(not torch.equal(value, started[name]) for name, value in encoder.items())


def test_experts_are_taken_over_from_a_file_and_the_gate_is_not(build: Build, tmp_path: Any):
    first = build()
    file = str(fitted(first).folder.phase_file("finetune"))
    second = build(init_checkpoint=file, init_experts="[rec,llm]", seed=11)
    start = second.model.gate.state_dict()
    start = {name: value.clone() for name, value in start.items()}
    trainer = PADTrainer(second.config, second.model)
    assert trainer._load_initial() == {"rec", "llm"}
    for name in ("rec", "llm"):
        for key, value in first.model.experts[name].state_dict().items():
            assert torch.equal(second.model.experts[name].state_dict()[key], value), (name, key)
    assert all(torch.equal(value, start[name]) for name, value in second.model.gate.state_dict().items())
    align = [model.experts["align"].state_dict() for model in (first.model, second.model)]
    assert any(not torch.equal(align[0][key], align[1][key]) for key in align[0])


def test_the_taken_experts_are_not_trained_again_in_the_last_phase(build: Build):
    first = build()
    file = str(fitted(first).folder.phase_file("finetune"))
    second = build(init_checkpoint=file, init_experts=["rec", "align", "llm"], phases=["finetune"])
    trainer = fitted(second)
    assert trainer.records["finetune"].epochs == 0
    for key, value in first.model.experts["llm"].state_dict().items():
        assert torch.equal(second.model.experts["llm"].state_dict()[key], value)


def test_an_expert_that_the_file_does_not_hold_is_refused(build: Build):
    first = build(phases=["pretrain"])
    file = str(fitted(first).folder.phase_file("pretrain"))
    second = build(init_checkpoint=file, init_experts=["llm"])
    with pytest.raises(InputError, match=r"init_experts: .*pretrain\.pth holds experts\.rec, not experts\.llm"):
        PADTrainer(second.config, second.model).fit(second.train, second.valid)


def test_phases_without_the_taken_experts_are_those_of_a_run_without_them(prepared: Callable[..., Any], tmp_path: Any):
    """So phases 1 and 2 come from the cache when only the LLM expert is taken over."""
    checkpoint.save(tmp_path / "a.pth", {"modules": {"experts.llm": {"weight": torch.tensor(1.0)}}})

    def prints(**changes: Any) -> list[str]:
        config, _, train, _, _ = prepared(**changes)
        return [checkpoint.fingerprint(config, train._dataset, phase) for phase in ("pretrain", "align", "finetune")]

    plain, taken = prints(), prints(init_checkpoint=str(tmp_path / "a.pth"), init_experts=["llm"])
    assert plain[:2] == taken[:2]
    assert plain[2] != taken[2]
    everything = prints(init_checkpoint=str(tmp_path / "a.pth"))
    assert all(one != other for one, other in zip(plain, everything, strict=True))
