"""The moving average of weights: against a literal loop, and what of a phase is averaged and what is not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import recbole.trainer.trainer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_pad import checkpoint
from recbole_pad.averaging import WeightAverage
from recbole_pad.checkpoint import RunFolder
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS, PhaseTrainer
from recbole_pad.rivals.trainer import RivalTrainer

PHASES = ("pretrain", "align", "finetune")
DECAY = 0.9
Build = Callable[..., SimpleNamespace]
State = dict[str, Tensor]


def literal_average(start: float, weights: list[float], decay: float) -> float:
    """a_t = d_t a_(t-1) + (1 - d_t) w_t, d_t = min(decay, (1 + t) / (10 + t))."""
    average = start
    for t, weight in enumerate(weights, start=1):
        share = min(decay, (1 + t) / (10 + t))
        average = share * average + (1 - share) * weight
    return average


# --- alone -------------------------------------------------------------------------------------------------


def steps_of(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradients: list[float]) -> list[float]:
    """The weights after each step of gradient descent."""
    weights = []
    for gradient in gradients:
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        weights.append(parameter.item())
    return weights


@settings(deadline=None, max_examples=60)
@given(
    start=st.floats(-2, 2, width=32),
    gradients=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=40),
    decay=st.sampled_from([0.1, 0.5, 0.9, 0.999]),
)
def test_it_is_the_average_of_the_loop(start: float, gradients: list[float], decay: float):
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    average = WeightAverage([parameter], optimizer, decay)
    weights = steps_of(parameter, optimizer, gradients)
    average.enter()
    assert parameter.item() == pytest.approx(literal_average(start, weights, decay), rel=1e-9, abs=1e-9)
    average.leave()
    assert parameter.item() == weights[-1]


def test_training_goes_on_from_the_trained_weights_and_the_average_from_the_average():
    parameter = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    average = WeightAverage([parameter], optimizer, DECAY)
    weights: list[float] = []
    for gradients in ([1.0, 2.0], [3.0], [-1.0, 4.0, 0.5]):
        weights += steps_of(parameter, optimizer, gradients)
        for _ in range(2):  # to enter twice is to enter once
            average.enter()
            assert parameter.item() == pytest.approx(literal_average(1.0, weights, DECAY))
        for _ in range(2):
            average.leave()
            assert parameter.item() == weights[-1]
    expected = 1.0
    for gradient in (1.0, 2.0, 3.0, -1.0, 4.0, 0.5):
        expected -= 0.1 * gradient
    assert parameter.item() == pytest.approx(expected)


def test_it_begins_with_the_weights_that_the_first_step_finds():
    """Weights may be loaded between the building of a trainer and its first step."""
    parameter = nn.Parameter(torch.tensor([50.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    average = WeightAverage([parameter], optimizer, DECAY)
    parameter.data.fill_(1.0)
    average.enter()  # before any step there is nothing to enter
    assert parameter.item() == 1.0
    weights = steps_of(parameter, optimizer, [1.0, 1.0])
    average.enter()
    assert parameter.item() == pytest.approx(literal_average(1.0, weights, DECAY))
    average.restart()
    kept = parameter.item()
    average.leave()
    average.enter()
    assert parameter.item() == kept
    weights = steps_of(parameter, optimizer, [2.0])
    average.enter()
    assert parameter.item() == pytest.approx(literal_average(kept, weights, DECAY))


def test_a_stored_state_goes_on_as_if_not_interrupted():
    def run(cut: bool) -> tuple[float, float]:
        parameter = nn.Parameter(torch.tensor([1.0]))
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        average = WeightAverage([parameter], optimizer, DECAY)
        steps_of(parameter, optimizer, [1.0, -3.0, 2.0])
        if cut:
            state, weight = average.state(), parameter.item()
            parameter = nn.Parameter(torch.tensor([weight]))
            optimizer = torch.optim.SGD([parameter], lr=0.1)
            average = WeightAverage([parameter], optimizer, DECAY)
            average.load_state(state)
        steps_of(parameter, optimizer, [4.0, 0.5])
        trained = parameter.item()
        average.enter()
        return trained, parameter.item()

    assert run(cut=True) == run(cut=False)


def test_without_decay_nothing_is_averaged():
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    average = WeightAverage([parameter], optimizer, 0.0)
    (weight,) = steps_of(parameter, optimizer, [1.0])
    average.enter()
    assert parameter.item() == weight
    assert average.state() == {"steps": 0, "averages": []}


# --- in a phase --------------------------------------------------------------------------------------------


@pytest.fixture
def build(build: Build) -> Build:
    return partial(build, epochs=3, stopping_step=9, weight_average=DECAY)


def copy_of(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def force_scores(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """The validation scores that RecBole's loop sees, epoch by epoch."""
    left = iter(scores)
    monkeypatch.setattr(recbole.trainer.trainer, "calculate_valid_score", lambda result, metric: next(left))


class Recorder:
    """Weights as each step leaves them, in the order of the steps."""

    def __init__(self, trainer: Any) -> None:
        self._model = trainer.model
        self.start = copy_of(trainer.model)
        self.after: list[State] = []
        trainer.optimizer.register_step_post_hook(lambda *_: self.after.append(copy_of(self._model)))

    def average(self, name: str) -> Tensor:
        """The literal average so far of a parameter, number by number."""
        columns = torch.stack([state[name].flatten() for state in self.after]).double().T.tolist()
        starts = self.start[name].flatten().double().tolist()
        numbers = [literal_average(start, column, DECAY) for start, column in zip(starts, columns, strict=True)]
        return torch.tensor(numbers).view(self.start[name].shape)


@pytest.mark.parametrize("phase", PHASES)
def test_averages_are_validated_and_saved_while_training_goes_on_from_the_trained_weights(
    phase: str, build: Build, tmp_path: Path
):
    """The gate is not averaged: it is fitted, or has a rate of its own."""
    run = build(epochs=2, gate_fit="none")
    folder = RunFolder(tmp_path / "run")
    trainer = PHASE_TRAINERS[phase](run.config, run.model, folder)
    recorder = Recorder(trainer)
    trained = [name for name, parameter in run.model.named_parameters() if parameter.requires_grad]
    n_steps = len(run.train)
    seen: list[int] = []

    def after_epoch(epoch: int, score: float) -> None:
        assert len(recorder.after) == (epoch + 1) * n_steps
        seen.append(epoch)
        state = copy_of(run.model)  # as it was validated
        learning = tuple(f"experts.{name}." for name in run.model.learning_experts())
        for name in trained:
            expected = recorder.average(name) if name.startswith(learning) else recorder.after[-1][name]
            torch.testing.assert_close(state[name], expected, rtol=1e-5, atol=1e-6)
        if trainer.record.best_epoch == epoch:
            saved = checkpoint.load(folder.phase_file(phase))["modules"]
            for module, values in saved.items():
                for name, value in values.items():
                    assert torch.equal(value, state[f"{module}.{name}"])
        last = checkpoint.load(folder.last_file)
        before = recorder.start if epoch == 0 else recorder.after[epoch * n_steps - 1]
        for module, values in last["modules"].items():  # written as the epoch began
            for name, value in values.items():
                assert torch.equal(value, before[f"{module}.{name}"]), name
        assert last["average"]["steps"] == epoch * n_steps

    trainer.fit(run.train, run.valid, callback_fn=after_epoch)
    assert seen == [0, 1]
    moved = [name for name in trained if not torch.equal(recorder.after[-1][name], recorder.start[name])]
    assert any(not torch.allclose(copy_of(run.model)[name], recorder.after[-1][name]) for name in moved)


@pytest.mark.parametrize("phase", PHASES)
def test_the_average_does_not_change_what_is_trained(phase: str, build: Build):
    losses, lasts = [], []
    for decay in (0, DECAY):
        run = build(weight_average=decay, gate_fit="none")
        trainer = PHASE_TRAINERS[phase](run.config, run.model)
        recorder = Recorder(trainer)
        trainer.fit(run.train, run.valid)
        losses.append(trainer.record.train_loss)
        lasts.append(recorder.after[-1])
    assert losses[0] == losses[1]
    assert all(torch.equal(value, lasts[1][name]) for name, value in lasts[0].items())


def test_without_it_the_trained_weights_are_kept(build: Build):
    run = build(weight_average=0)
    trainer = PHASE_TRAINERS["pretrain"](run.config, run.model)
    recorder = Recorder(trainer)
    trainer.fit(run.train, None)
    assert all(torch.equal(value, recorder.after[-1][name]) for name, value in copy_of(run.model).items())


@pytest.mark.parametrize("in_folder", [True, False])
@pytest.mark.parametrize("eval_step", [1, 2])
def test_the_best_weights_stay_while_the_fitted_gate_is_validated(
    eval_step: int, in_folder: bool, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """The last epoch may have no validation: its average must not come in the place of the best weights."""
    run = build(epochs=3, eval_step=eval_step, gate_fit="valid")
    force_scores(monkeypatch, [0.5, 0.1, 0.1, 0.1])
    best: list[State] = []
    trainer = PHASE_TRAINERS["finetune"](run.config, run.model, RunFolder(tmp_path / "run") if in_folder else None)
    trainer.fit(run.train, run.valid, callback_fn=lambda *_: best.append(copy_of(run.model)))
    assert trainer.record.best_epoch == eval_step - 1
    experts = [name for name in best[0] if name.startswith("experts.")]
    assert experts
    assert all(torch.equal(copy_of(run.model)[name], best[0][name]) for name in experts)
    if in_folder:
        saved = checkpoint.load(trainer.folder.phase_file("finetune"))["modules"]
        for module, values in saved.items():
            for name, value in values.items():
                assert torch.equal(value, copy_of(run.model)[f"{module}.{name}"])


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_resumed_after_a_kill_within_an_epoch_ends_with_the_same_bits(
    phase: str, build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, cut, again = build(), build(), build()
    PHASE_TRAINERS[phase](whole.config, whole.model, RunFolder(tmp_path / "whole")).fit(whole.train, whole.valid)
    steps = iter(range(10**6))
    original = PAD.calculate_loss

    def deadly(model: PAD, interaction: Any) -> Any:
        if next(steps) == 2 * len(cut.train) + 1:  # the second step of the third epoch
            raise KeyboardInterrupt
        return original(model, interaction)

    folder = RunFolder(tmp_path / "cut")
    first = PHASE_TRAINERS[phase](cut.config, cut.model, folder)
    with monkeypatch.context() as patch:
        patch.setattr(PAD, "calculate_loss", deadly)
        with pytest.raises(KeyboardInterrupt):
            first.fit(cut.train, cut.valid)
    trainer = PHASE_TRAINERS[phase](again.config, again.model, folder)
    last = checkpoint.load(folder.last_file)
    averages = last["average"]["averages"]
    assert (last["epoch"], last["average"]["steps"]) == (2, 2 * len(cut.train))
    assert averages
    trainer.continue_from(last)
    trainer.fit(again.train, again.valid)
    assert all(torch.equal(value, copy_of(again.model)[name]) for name, value in copy_of(whole.model).items())


def test_it_is_off_where_tables_are_updated_row_by_row(build: Build, caplog: pytest.LogCaptureFixture):
    """And only there; the log says so."""
    run = build(loss="bce", sparse_updates="never")
    assert PHASE_TRAINERS["pretrain"](run.config, run.model).average._parameters
    run = build(loss="bce", sparse_updates="always", state="INFO")
    with caplog.at_level(logging.INFO):
        trainer = PHASE_TRAINERS["pretrain"](run.config, run.model)
    assert "weight_average: off" in caplog.text
    trainer.fit(run.train, None)
    assert trainer.average.state() == {"steps": 0, "averages": []}


def test_a_phase_may_have_a_decay_of_its_own(build: Build):
    run = build(**{"align.weight_average": 0})
    for phase in PHASES:
        trainer: PhaseTrainer = PHASE_TRAINERS[phase](run.config, run.model)
        assert bool(trainer.average._parameters) == (phase != "align")


# --- rivals ------------------------------------------------------------------------------------------------


@pytest.fixture
def rival(config: Callable[..., Any]) -> Build:
    """``rival(**changes)``: as `build`, of a model whose trainer is `RivalTrainer`."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model

    def make(**changes: Any) -> SimpleNamespace:
        settings = config("IDRec", **{"epochs": 2, "text_encoder": "tfidf", "weight_average": DECAY, **changes})
        train, valid, _ = data_preparation(settings, create_dataset(settings))
        torch.manual_seed(3)
        model = get_model("IDRec")(settings, train._dataset)
        return SimpleNamespace(config=settings, model=model, train=train, valid=valid)

    return make


def test_a_rivals_averages_are_validated_and_saved_too(rival: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = rival(checkpoint_dir=str(tmp_path / "saved"))
    force_scores(monkeypatch, [0.1, 0.2, 0.2])  # the last one with the repeat term
    trainer = RivalTrainer(run.config, run.model)
    recorder = Recorder(trainer)
    validated: list[State] = []

    def after_epoch(epoch: int, score: float) -> None:
        validated.append(copy_of(run.model))
        for name, parameter in run.model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(validated[-1][name], recorder.average(name), rtol=1e-5, atol=1e-6)

    trainer.fit(run.train, run.valid, callback_fn=after_epoch)
    assert len(validated) == 2
    saved = torch.load(trainer.saved_model_file, weights_only=False)["state_dict"]
    del saved["repeats.shift"], validated[-1]["repeats.shift"]  # fitted afterwards
    assert saved.keys() == validated[-1].keys()
    assert all(torch.equal(saved[name], value) for name, value in validated[-1].items())
    assert any(not torch.equal(recorder.after[-1][name], value) for name, value in validated[-1].items())


def test_a_resumed_rival_begins_its_average_with_the_resumed_weights(rival: Build, tmp_path: Path):
    run, again = rival(checkpoint_dir=str(tmp_path / "one")), rival(checkpoint_dir=str(tmp_path / "two"), epochs=3)
    first = RivalTrainer(run.config, run.model)
    first.fit(run.train, None)
    trainer = RivalTrainer(again.config, again.model)
    trainer.resume_checkpoint(first.saved_model_file)
    recorder = Recorder(trainer)
    assert trainer.start_epoch == 2
    trainer.fit(again.train, None)
    assert len(recorder.after) == len(again.train)
    for name, parameter in again.model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), recorder.average(name), rtol=1e-5, atol=1e-6)
