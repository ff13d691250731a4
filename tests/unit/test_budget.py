"""The limit on training time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_pad.budget import Budget, BudgetSpent
from recbole_pad.quick_start import run_recbole


def test_a_budget_ends_at_the_first_validation_after_its_seconds():
    now = [100.0]
    budget = Budget(10, clock=lambda: now[0])
    now[0] = 109.9
    budget(0, 0.5)
    now[0] = 110.0
    with pytest.raises(BudgetSpent):
        budget(1, 0.5)


def test_no_budget_never_ends():
    budget = Budget(None, clock=lambda: 1e12)
    budget(10**6, 0.0)


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
