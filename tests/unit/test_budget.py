"""The limit on training time, and the patience of early stopping."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import recbole.trainer.trainer

from recbole_pad.budget import Budget, BudgetSpent, patience
from recbole_pad.quick_start import run_recbole, train


def test_a_budget_ends_at_the_first_validation_after_its_seconds():
    now = [100.0]
    budget = Budget(10, clock=lambda: now[0])
    now[0] = 109.9
    budget(0, 0.5)
    now[0] = 110.0
    with pytest.raises(BudgetSpent):
        budget(1, 0.5)


@pytest.mark.parametrize(
    ("stopping_step", "eval_step", "steps_of_epoch", "evaluations"),
    [
        (7, 1, 10, 7),
        (0, 1, 10, 0),
        ("auto", 1, 10, 30),  # 30 epochs of 10 steps are 300
        ("auto", 1, 11, 28),  # 28 of 11 are 308, 27 are 297
        ("auto", 3, 10, 10),  # an evaluation every 30 steps
        ("auto", 1, 200, 4),
        ("auto", 1, 75, 4),
        ("auto", 0, 10, 300),  # no evaluation at all: of no consequence
    ],
)
def test_patience(stopping_step: int | str, eval_step: int, steps_of_epoch: int, evaluations: int):
    assert patience(stopping_step, eval_step, steps_of_epoch) == evaluations


@pytest.mark.parametrize("model", ["PAD", "IDRec"])
def test_a_small_dataset_gets_its_steps_before_training_stops(
    model: str, settings: Any, prepared: Any, monkeypatch: pytest.MonkeyPatch
):
    """Scores that only fall: training stops in the first epoch in which more than 300 steps were in vain."""
    scores = iter(range(0, -1000, -1))
    monkeypatch.setattr(recbole.trainer.trainer, "calculate_valid_score", lambda result, metric: float(next(scores)))
    changes = {"stopping_step": "auto", "epochs": 400, "train_batch_size": 16}
    changes |= {"phases": ["pretrain"]} if model == "PAD" else {}
    folder = Path(run_recbole(model, "tiny", None, settings(model, **changes))["run_folder"])
    n_epochs = next(iter(json.loads((folder / "result.json").read_text())["phases"].values()))["epochs"]
    steps = len(prepared(train_batch_size=16)[2])
    in_vain = n_epochs - 1  # all but the first
    assert (in_vain - 1) * steps >= 300 > (in_vain - 2) * steps
    assert in_vain > 4


def test_no_budget_never_ends():
    budget = Budget(None, clock=lambda: 1e12)
    budget(10**6, 0.0)


@pytest.mark.parametrize("model", ["PAD", "MoRec"])
def test_a_trial_of_a_search_keeps_the_budget(model: str, settings: Any):
    found = train(model, "tiny", config_dict={**settings("PAD"), "train_seconds": 1e-9, "epochs": 5})
    assert {phase["epochs"] for phase in found["phases"].values()} == {1}
    assert found["best_valid_score"] > 0


@pytest.mark.parametrize(("model", "phases"), [("PAD", ["pretrain", "align", "finetune"]), ("GRU4Rec", ["train"])])
def test_a_spent_budget_leaves_one_epoch_to_each_phase_and_its_weights(model: str, phases: list[str], settings: Any):
    asked = settings(model, train_seconds=1e-9, epochs=5)
    if model == "GRU4Rec":
        for key in ("inner_size", "hidden_dropout_prob", "attn_dropout_prob"):
            asked.pop(key, None)
        asked["train_neg_sample_args"] = None
    result = run_recbole(model, "tiny", config_dict=asked)
    report = result["report"]
    assert list(report["phases"]) == phases
    for phase in report["phases"].values():
        assert (phase["epochs"], phase["best_epoch"]) == (1, 0)
        assert [epoch for epoch, _ in phase["valid_curve"]] == [0]
    assert result["best_valid_score"] > 0
    assert (Path(result["run_folder"]) / "model.pth").is_file()
