"""The rivals of PAD through RecBole's trainer, our commands and a search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

from recbole_pad.preflight import settled_config
from recbole_pad.quick_start import data_and_model, run_recbole, train
from recbole_pad.registration import MODELS
from recbole_pad.tune import tune

NAMES = [name for name, model in MODELS.items() if model.trainer.endswith("RivalTrainer")]
SMALL = {
    "state": "ERROR", "show_progress": False, "MAX_ITEM_LIST_LENGTH": 8, "epochs": 2, "train_batch_size": 16,
    "eval_batch_size": 64, "text_encoder": "tfidf", "hidden_size": 16, "inner_size": 32, "n_layers": 1,
    "learning_rate": 0.01, "seed": 7,
}  # fmt: skip


@pytest.fixture
def asked(data_path: Path) -> Callable[..., dict[str, Any]]:
    return lambda **changes: {**SMALL, "data_path": str(data_path), **changes}


@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_lower_the_loss_and_the_saved_model_scores_the_same(name: str, asked: Callable[..., Any]):
    result = run_recbole(name, "chain", config_dict=asked())
    phase = result["report"]["phases"]["train"]
    assert len(phase["train_loss"]) == phase["epochs"] == 2
    assert phase["train_loss"][1] < phase["train_loss"][0]
    folder = Path(result["run_folder"])
    report = json.loads((folder / "result.json").read_text())
    assert (report["model"], report["backbone"], report["protocol"]["positions"]) == (name, "SASRec", "auto")
    config, network, *_, test = load_data_and_model(str(folder / "model.pth"))
    network.load_state_dict(torch.load(folder / "model.pth", weights_only=False)["state_dict"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]
    again = run_recbole(name, "chain", config_dict=asked())
    assert again["test_result"] == result["test_result"]
    assert again["report"]["phases"]["train"]["train_loss"] == phase["train_loss"]


@pytest.mark.parametrize("name", NAMES)
def test_the_ring_is_learned(name: str, asked: Callable[..., Any]):
    """Item k is always followed by k + 1: ids say so, and so do the numbers in the titles."""
    changes = {"epochs": 30, "stopping_step": 30, "hidden_dropout_prob": 0.1, "eval_step": 10, "weight_average": 0.9}
    result = run_recbole(name, "chain", config_dict=asked(**changes), saved=False)
    assert result["best_valid_result"]["hit@5"] > 0.9


def test_each_loss_and_the_other_protocol_run(asked: Callable[..., Any]):
    for name, changes in (
        ("UniSRec", {"loss": "bce", "n_negatives": 2}),
        ("LLMESR", {"loss": "sampled_softmax", "n_negatives": 8, "negative_sampling": "popularity"}),
        ("WhitenRec", {"protocol": "recbole", "learner": "sgd"}),
        ("InfoNCEAligned", {"negatives": "all", "backbone": "GRU4Rec"}),
        ("IDTextSum", {"train_rows": "prefixes"}),
    ):
        small = asked(**changes)
        if changes.get("backbone") == "GRU4Rec":
            del small["inner_size"], small["n_layers"]
        result = run_recbole(name, "tiny", config_dict=small, saved=False)
        assert result["report"]["phases"]["train"]["epochs"] == 2


def test_recboles_early_stopping_and_our_budget_end_the_training(asked: Callable[..., Any]):
    asked_for = asked(epochs=50, stopping_step=1, learning_rate=0.05)
    stopped = run_recbole("IDRec", "tiny", config_dict=asked_for, saved=False)["report"]["phases"]["train"]
    assert stopped["epochs"] == stopped["best_epoch"] + 3 < 50  # RecBole stops when more than 1 were no better
    spent = run_recbole("MoRec", "tiny", config_dict=asked(epochs=50, train_seconds=0))
    assert spent["report"]["phases"]["train"]["epochs"] == 1
    assert spent["test_result"]["hit@10"] >= 0


def test_a_killed_run_goes_on_with_recboles_resume(asked: Callable[..., Any], tmp_path: Path):
    result = run_recbole("MoRec", "chain", config_dict=asked())
    file = Path(result["run_folder"]) / "model.pth"
    config, network, _, train_data, valid_data, _ = load_data_and_model(str(file))
    config["epochs"] = 4
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    trainer.resume_checkpoint(file)
    first = trainer.start_epoch
    epochs: list[int] = []
    trainer.fit(train_data, valid_data, saved=False, callback_fn=lambda epoch, score: epochs.append(epoch))
    assert epochs == list(range(first, 4))


def test_a_search_of_a_rival_reads_its_space(asked: Callable[..., Any], tmp_path: Path):
    heard: list[str] = []
    train("UniSRec", "tiny", config_dict=asked(epochs=1), validated=lambda phase, *_: heard.append(phase))
    assert heard == ["train"]
    found = tune("LLMInit", "tiny", 2, config_dict=asked(epochs=1))
    assert {"init_axes", "unseen_items"} <= set(found["best_settings"])


@pytest.mark.parametrize("changes", [{}, {"train_seconds": 0}, {"weight_average": 0}])
def test_the_repeat_term_is_fitted_to_the_saved_weights(changes: dict[str, Any], asked: Callable[..., Any]):
    """Nobody comes back in the ring, but a model that reads text ranks a user's own items high."""
    runs = [
        run_recbole("MoRec", "chain", config_dict=asked(**changes, repeat_term=term))["report"]["phases"]["train"]
        for term in ("valid", "none")
    ]
    fitted, without = ({split: run[split] for split in ("valid", "test")} for run in runs)
    for split in fitted:
        assert fitted[split]["masked"] == without[split]["masked"]
        assert fitted[split]["unmasked"] != without[split]["unmasked"]
    assert fitted["valid"]["unmasked"]["all"]["ndcg@10"] > without["valid"]["unmasked"]["all"]["ndcg@10"]


@pytest.mark.parametrize("saved", [True, False])
def test_the_repeat_term_moves_the_history_and_nothing_else(saved: bool, asked: Callable[..., Any]):
    scores = []
    for term in ("valid", "none"):
        config = settled_config("MoRec", "chain", None, asked(repeat_term=term))
        _, train_data, valid_data, test_data, network = data_and_model(config)
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
        trainer.fit(train_data, valid_data, saved=saved)
        trainer.evaluate(test_data, load_best_model=saved)
        interaction = next(iter(test_data))[0]
        with torch.no_grad():
            scores.append(network.eval().full_sort_predict(interaction))
        if term == "valid":
            shift = network.repeats.shift.item()
            assert shift != 0
            if saved:
                content = torch.load(trainer.saved_model_file, weights_only=False)
                assert content["state_dict"]["repeats.shift"].item() == shift
                assert not list(Path(trainer.saved_model_file).parent.glob("*.tmp"))
    moved, plain = scores
    for row, items in enumerate(interaction["item_id_list"].tolist()):
        for item in set(items) - {0}:
            plain[row, item] += shift
    torch.testing.assert_close(moved[:, 1:], plain[:, 1:])


def test_with_the_history_unmasked_the_result_is_that_of_the_fitted_term(asked: Callable[..., Any]):
    results = [
        run_recbole("MoRec", "chain", config_dict=asked(protocol="recbole", repeat_term=term))
        for term in ("valid", "none")
    ]
    fitted, without = (run["best_valid_result"]["ndcg@10"] for run in results)
    assert fitted > without
    phase = results[0]["report"]["phases"]["train"]
    assert fitted == pytest.approx(phase["valid"]["unmasked"]["all"]["ndcg@10"], abs=1e-4)


def test_sampled_evaluation_leaves_the_repeat_term_out_and_says_so(
    asked: Callable[..., Any], caplog: pytest.LogCaptureFixture
):
    sampled = {"mode": {"valid": "uni100", "test": "uni100"}, "split": {"LS": "valid_and_test"}, "order": "TO"}
    result = run_recbole("MoRec", "chain", config_dict=asked(eval_args=sampled, protocol="recbole"))
    assert result["test_result"]["hit@10"] >= 0
    assert "repeat_term" in caplog.text


def test_a_resumed_run_chooses_its_epochs_without_the_term(asked: Callable[..., Any]):
    """With a learning rate of 0 every epoch has the score that the first one had, before the term was fitted."""
    still = asked(protocol="recbole", learning_rate=0.0, weight_average=0, epochs=1)
    result = run_recbole("MoRec", "chain", config_dict=still)
    before = result["report"]["phases"]["train"]["valid_curve"][0][1]
    assert result["best_valid_score"] > before
    file = Path(result["run_folder"]) / "model.pth"
    config, network, _, train_data, valid_data, _ = load_data_and_model(str(file))
    config["epochs"] = 3
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    trainer.resume_checkpoint(file)
    scores: list[float] = []
    trainer.fit(train_data, valid_data, saved=False, callback_fn=lambda epoch, score: scores.append(score))
    assert scores == pytest.approx([before] * 2)


@pytest.mark.parametrize("term", ["valid", "none"])
def test_without_a_file_the_model_ends_with_its_best_weights(term: str, asked: Callable[..., Any]):
    changes = {"epochs": 6, "learning_rate": 0.1, "weight_average": 0, "repeat_term": term, "stopping_step": 10}
    saved, not_saved = (
        run_recbole("IDRec", "tiny", config_dict=asked(**changes), saved=saved) for saved in (True, False)
    )
    phase = not_saved["report"]["phases"]["train"]
    assert phase["best_epoch"] < phase["epochs"] - 1
    assert not_saved["test_result"] == saved["test_result"]
    assert not_saved["best_valid_result"] == saved["best_valid_result"]


def test_where_no_epoch_is_validated_the_last_average_is_scored_and_the_term_fitted(asked: Callable[..., Any]):
    """With a file and without one alike; `valid_metric` need not be computed then."""
    changes = {"eval_step": 0, "metrics": ["Hit"], "learning_rate": 0.1, "weight_average": 0.9, "mask_history": False}
    saved, not_saved = (
        run_recbole("MoRec", "tiny", config_dict=asked(**changes), saved=saved) for saved in (True, False)
    )
    assert saved["report"]["phases"]["train"]["epochs"] == 2
    assert saved["report"]["repeat_term"] != 0
    assert not_saved["report"]["repeat_term"] == saved["report"]["repeat_term"]
    assert not_saved["test_result"] == saved["test_result"]
