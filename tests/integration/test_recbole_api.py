"""PAD through RecBole's own functions, in fresh processes and in this one, and what `quick_start` reports."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recbole.trainer.trainer
import torch
import yaml
from recbole.quick_start import load_data_and_model
from recbole.trainer import HyperTuning
from recbole.utils import get_trainer

import recbole_pad
import recbole_pad.quick_start
from recbole_pad.quick_start import run_recbole

Settings = Callable[..., dict[str, Any]]
STOCK = {"train_neg_sample_args": None}  # RecBole wants it for a model that is trained with loss_type CE


# --- fresh processes ------------------------------------------------------------------------------

WITH_PLUGIN = """
import json, pathlib, sys
settings = json.loads(sys.argv.pop(1))

import recbole_pad
import torch
from recbole.quick_start import load_data_and_model, objective_function, run_recbole
from recbole.utils import get_trainer

found = {"anomaly": torch.is_anomaly_enabled()}
found["run"] = run_recbole(model="PAD", dataset="tiny", config_dict=dict(settings["PAD"]))["test_result"]
(file,) = pathlib.Path("saved").glob("PAD-*/model.pth")
config, model, dataset, train, valid, test = load_data_and_model(str(file))
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
found["loaded"] = trainer.evaluate(test, load_best_model=False)
found["evaluated file"] = trainer.evaluate(test, model_file=str(file))
asked = {"model": "PAD", "dataset": "tiny", **settings["PAD"]}
found["objective"] = objective_function(config_dict=asked, saved=False)["test_result"]
found["SASRec"] = run_recbole(model="SASRec", dataset="tiny", config_dict=settings["SASRec"])["test_result"]
print(json.dumps(found, default=float))
"""

WITHOUT_PLUGIN = """
import json, pathlib, sys
settings = json.loads(sys.argv.pop(1))

import numpy as np
for old, new in {"float_": "float64", "complex_": "complex128", "unicode_": "str_", "bool8": "bool_"}.items():
    if not hasattr(np, old):
        setattr(np, old, getattr(np, new))
import recbole.quick_start, torch
from recbole.quick_start import run_recbole
from recbole.utils import get_trainer

found = {}
asked = dict(settings["SASRec"])
found["SASRec"] = run_recbole(model="SASRec", dataset="tiny", config_dict=asked, saved=False)["test_result"]
found["anomaly"] = torch.is_anomaly_enabled()
found["plugin before"] = "recbole_pad" in sys.modules
(file,) = pathlib.Path("saved").glob("PAD-*/model.pth")
found["model"] = torch.load(file, weights_only=False)["config"]["model"]
found["plugin after"] = "recbole_pad" in sys.modules
config, model, dataset, train, valid, test = recbole.quick_start.load_data_and_model(str(file))
trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
found["loaded"] = trainer.evaluate(test, load_best_model=False)
print(json.dumps(found, default=float))
"""


def fresh(code: str, settings: dict[str, Any], cwd: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(settings)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.slow
def test_recboles_own_functions_run_pad_after_import_and_reload_it_without(settings: Settings, tmp_path: Path):
    """One run of PAD gives one test result, whichever of RecBole's functions asks for it, in any process."""
    columns = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "topk": [5, 10]}
    asked = {"PAD": settings(), "SASRec": settings("SASRec", epochs=1, **STOCK, **columns)}
    asked["PAD"]["text_vectors_dir"] = str(tmp_path / "vectors")
    plugin = fresh(WITH_PLUGIN, asked, tmp_path)
    assert len(plugin["run"]) == 9
    for way in ("loaded", "evaluated file", "objective"):
        assert plugin[way] == plugin["run"], way
    assert plugin["anomaly"] is False

    alone = fresh(WITHOUT_PLUGIN, asked, tmp_path)
    assert alone["anomaly"] is True, "RecBole no longer switches anomaly mode on; compat can drop its repair"
    assert (alone["plugin before"], alone["plugin after"], alone["model"]) == (False, True, "PAD")
    assert alone["loaded"] == plugin["run"]
    assert alone["SASRec"] == plugin["SASRec"], "the plugin changed a stock model"


# --- tuning ---------------------------------------------------------------------------------------


def test_recboles_hyper_tuning_runs_trials_of_pad(settings: Settings, tmp_path: Path):
    """Each trial's score is that of a run with the trial's settings, dotted keys included."""
    fixed = settings(epochs=1, phases=["pretrain", "align"]) | {"model": "PAD", "dataset": "tiny"}
    (tmp_path / "fixed.yaml").write_text(yaml.safe_dump(fixed))
    (tmp_path / "params.txt").write_text(
        "align.learning_rate loguniform -6,-2\nmmd_kernel choice ['gaussian','cosine']\n"
    )
    tuning = HyperTuning(
        recbole_pad.quick_start.objective_function,
        params_file=str(tmp_path / "params.txt"),
        fixed_config_file_list=[str(tmp_path / "fixed.yaml")],
        algo="random",
        max_evals=2,
    )
    tuning.run()
    assert len(tuning.params2result) == len(tuning.score_list) == 2
    assert tuning.best_score == max(tuning.score_list)
    assert set(tuning.best_params) == {"align.learning_rate", "mmd_kernel"}
    again = run_recbole("PAD", "tiny", [str(tmp_path / "fixed.yaml")], dict(tuning.best_params), saved=False)
    assert again["best_valid_score"] == tuning.best_score


# --- what quick_start reports ---------------------------------------------------------------------

KEYS = {
    "format", "model", "backbone", "dataset", "seed", "protocol", "text", "repeat_term", "n_parameters", "command",
    "machine", "best_valid_result", "test_result", "phases", "items", "total_seconds", "versions",
}  # fmt: skip
PHASE_KEYS = {
    "seconds", "peak_memory_mb", "epochs", "best_epoch", "best_valid_result", "train_loss", "valid_curve",
    "reused_from", "valid", "test", "diagnostics",
}  # fmt: skip
MODELS = [("PAD", {}), ("SASRec", STOCK), ("GRU4Rec", {**STOCK, "num_layers": 1})]
METRICS = {f"{name}@{k}" for name in ("hit", "ndcg", "mrr") for k in (5, 10, 20)}


def asked_of(model: str, changes: dict[str, Any], settings: Settings) -> dict[str, Any]:
    asked = settings(model, **changes)
    if model == "GRU4Rec":
        for key in ("inner_size", "hidden_dropout_prob", "attn_dropout_prob"):
            asked.pop(key, None)
    return asked


def read_strictly(file: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def assert_plain(value: Any) -> None:
    assert type(value) in (dict, list, str, int, float, bool, type(None)), repr(value)
    for entry in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        assert_plain(entry)


def held_out(data_path: Path) -> dict[str, list[tuple[str, int]]]:
    """Counted from the file itself: (target, its train frequency) of each held-out row.

    A user's last item is tested and the one before validated, as long as two interactions are left before.
    """
    sequences: dict[str, list[str]] = {}
    for line in (data_path / "tiny" / "tiny.inter").read_text().splitlines()[1:]:
        user, item, _ = line.split("\t")
        sequences.setdefault(user, []).append(item)
    counts: Counter[str] = Counter()
    targets: dict[str, list[str]] = {"valid": [], "test": []}
    for items in sequences.values():
        n_held_out = min(max(len(items) - 2, 0), 2)
        if len(items) > 1:
            counts.update(items[: len(items) - n_held_out])
        if n_held_out:
            targets["test"].append(items[-1])
        if n_held_out == 2:
            targets["valid"].append(items[-2])
    return {split: [(item, counts[item]) for item in items] for split, items in targets.items()}


@pytest.mark.parametrize(("model", "changes"), MODELS)
def test_the_result_file_has_one_form_for_pad_and_stock_models(model: str, changes: dict[str, Any], settings: Settings):
    result = run_recbole(model, "tiny", config_dict=asked_of(model, changes, settings))
    folder = Path(result["run_folder"])
    report = read_strictly(folder / "result.json")
    assert report == result["report"]
    assert_plain(result["report"])
    assert set(report) == KEYS
    assert list(report["phases"]) == (["pretrain", "align", "finetune"] if model == "PAD" else ["train"])
    for phase in report["phases"].values():
        assert set(phase) == PHASE_KEYS
        assert phase["epochs"] == len(phase["train_loss"]) == 2
        assert phase["best_epoch"] in (0, 1)
        assert [epoch for epoch, _ in phase["valid_curve"]] == [0, 1]
        assert set(phase["best_valid_result"]) == METRICS
        assert phase["seconds"] > 0
        assert phase["peak_memory_mb"] > 100
    assert (report["text"] is not None) == (model == "PAD")
    assert (report["backbone"], report["model"]) == ("SASRec" if model == "PAD" else None, model)
    assert report["protocol"]["mask_history"] is True
    assert report["versions"]["recbole"] == "1.2.1"
    assert report["versions"]["recbole-pad"] == recbole_pad.__version__
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"] == model


@pytest.mark.parametrize(("model", "changes"), MODELS)
def test_groups_and_bins_hold_every_held_out_row_once(
    model: str, changes: dict[str, Any], settings: Settings, data_path: Path
):
    result = run_recbole(model, "tiny", config_dict=asked_of(model, {**changes, "epochs": 1}, settings))
    limits = {"0": 0, "1-5": 5, "6-10": 10, "11-20": 20, "21-50": 50, "51-100": 100, ">100": 10**9}
    for phase in result["report"]["phases"].values():
        for split, rows in held_out(data_path).items():
            assert len(rows) > 30
            expected = Counter(next(name for name, last in limits.items() if count <= last) for _, count in rows)
            assert len(expected) >= 3, "too few groups to tell them apart"
            for protocol in ("masked", "unmasked"):
                found = phase[split][protocol]
                assert set(found) == {"all", "frequency", "bins"}
                assert found["all"]["n"] == len(rows)
                assert {name: group["n"] for name, group in found["frequency"].items()} == {
                    name: expected[name] for name in limits
                }
                for groups in (found["frequency"], found["bins"]):
                    assert sum(group["n"] for group in groups.values()) == len(rows)
                    for metric in METRICS:
                        total = sum(group["n"] * group[metric] for group in groups.values() if group["n"])
                        assert total / len(rows) == pytest.approx(found["all"][metric])
                assert all(set(group) == {"n"} for group in found["frequency"].values() if not group["n"])


def test_masking_the_history_never_hurts_a_target_outside_it(settings: Settings):
    """Fewer rivals, better ranks. In `tiny` targets may repeat the history; cold ones do not."""
    report = run_recbole("PAD", "tiny", config_dict=settings(epochs=1))["report"]
    test = report["phases"]["finetune"]["test"]
    masked, unmasked = (test[protocol]["frequency"]["0"] for protocol in ("masked", "unmasked"))
    assert masked["n"] == unmasked["n"] == 2  # i24 and i25, which nobody had before
    assert masked["mrr@20"] > unmasked["mrr@20"]


@pytest.mark.parametrize("protocol", ["pad", "recbole"])
@pytest.mark.parametrize(("model", "changes"), MODELS[:2])
def test_recboles_test_result_is_the_reports_last_phase(
    protocol: str, model: str, changes: dict[str, Any], settings: Settings
):
    """RecBole's own evaluator agrees, to its 4 digits; with `recbole` it does not mask the history.

    Masked lists of 20 are left out: `tiny` has 25 items, so RecBole fills them up with masked ones.
    """
    result = run_recbole(model, "tiny", config_dict=asked_of(model, {**changes, "protocol": protocol}, settings))
    last = list(result["report"]["phases"].values())[-1]
    name, other = ("masked", "unmasked") if protocol == "pad" else ("unmasked", "masked")
    for split, printed in (("test", result["test_result"]), ("valid", result["best_valid_result"])):
        compared = {metric for metric in printed if name == "unmasked" or not metric.endswith("@20")}
        assert len(compared) >= 6
        for metric in compared:
            assert float(printed[metric]) == pytest.approx(last[split][name]["all"][metric], abs=0.5001e-4)
        assert last[split][name]["all"] != last[split][other]["all"], "masking changes nothing here"


@pytest.mark.parametrize("model", ["BPR", "Pop"])
def test_a_model_that_is_not_sequential_runs_too(model: str, settings: Settings):
    asked = {key: value for key, value in settings("SASRec").items() if "dropout" not in key and key != "inner_size"}
    result = run_recbole(model, "tiny", config_dict=asked)
    report = read_strictly(Path(result["run_folder"]) / "result.json")
    assert set(report) == KEYS - {"items"}
    assert set(report["phases"]["train"]) == PHASE_KEYS - {"valid", "test", "diagnostics"}
    assert report["test_result"] == {name: float(value) for name, value in result["test_result"].items()}
    assert report["test_result"]["recall@10"] > 0
    assert (Path(result["run_folder"]) / "model.pth").is_file()


@pytest.mark.parametrize("model", ["SASRecF", "FDSA", "GRU4RecF"])
def test_a_model_of_item_features_runs_on_a_dataset_of_ones_own(model: str, settings: Settings):
    changes = settings(model, selected_features=["kind"], protocol="pad", train_neg_sample_args=None)
    result = run_recbole(model, "tiny", config_dict=changes, saved=False)
    assert result["report"]["phases"]["train"]["epochs"] == 2
    assert result["test_result"]["hit@10"] > 0


def test_models_of_item_features_are_tested_on_the_same_rows(settings: Settings, data_path: Path, tmp_path: Path):
    """Also where items have no line in `.item`: RecBole would drop their interactions."""
    (tmp_path / "gaps").mkdir()
    for kind in ("inter", "item"):
        lines = (data_path / "tiny" / f"tiny.{kind}").read_text().splitlines()
        kept = [line for line in lines if kind == "inter" or line.split("\t")[0] not in ("i01", "i02", "i03")]
        (tmp_path / "gaps" / f"gaps.{kind}").write_text("\n".join(kept) + "\n")
    rows = []
    for model in ("SASRec", "SASRecF"):
        changes = settings(model, protocol="pad", train_neg_sample_args=None, epochs=1, data_path=str(tmp_path))
        result = run_recbole(model, "gaps", config_dict={**changes, "selected_features": ["kind"]}, saved=False)
        rows.append(result["report"]["phases"]["train"]["test"]["masked"]["all"]["n"])
    assert rows[0] == rows[1] > 0


def test_ready_made_rows_are_ranked_and_not_reported_by_groups(settings: Settings, tmp_path: Path):
    """They do not say what histories they were cut from, so neither masks nor train frequencies are known."""
    folder = tmp_path / "data" / "ready"
    folder.mkdir(parents=True)
    for part, users in (("train", range(20)), ("valid", range(20, 25)), ("test", range(25, 30))):
        rows = [f"s{user}\ti{user % 7} i{(user + 1) % 7}\ti{(user + 2) % 7}" for user in users]
        header = "session_id:token\titem_id_list:token_seq\titem_id:token"
        (folder / f"ready.{part}.inter").write_text("\n".join([header, *rows]) + "\n")
    changes = {
        "data_path": str(folder.parent), "benchmark_filename": ["train", "valid", "test"], "protocol": "recbole",
        "USER_ID_FIELD": "session_id", "load_col": {"inter": ["session_id", "item_id_list", "item_id"]},
        "alias_of_item_id": ["item_id_list"], "train_neg_sample_args": None, "n_layers": 1, "epochs": 1,
    }  # fmt: skip
    result = run_recbole("SASRec", "ready", config_dict=settings("SASRec", **changes))
    assert result["test_result"]["hit@10"] == 1.0  # of seven items
    assert "test" not in result["report"]["phases"]["train"]
    assert not (Path(result["run_folder"]) / "ranks.npz").exists()


@pytest.mark.parametrize(("model", "changes"), MODELS[:2])
def test_a_run_that_is_not_saved_leaves_no_file(
    model: str, changes: dict[str, Any], settings: Settings, tmp_path: Path
):
    asked = asked_of(model, {**changes, "epochs": 1}, settings)
    if model == "PAD":
        asked["text_vectors_dir"] = str(tmp_path / "log" / "vectors")
    result = run_recbole(model, "tiny", config_dict=asked, saved=False)
    assert result["run_folder"] is None
    assert result["test_result"]["hit@20"] > 0
    written = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert written <= {"log", "log_tensorboard"}


@pytest.mark.parametrize(("model", "changes"), MODELS[:2])
def test_the_saved_model_is_reloaded_with_its_numbers(model: str, changes: dict[str, Any], settings: Settings):
    result = run_recbole(model, "tiny", config_dict=asked_of(model, changes, settings))
    config, network, *_, test = load_data_and_model(str(Path(result["run_folder"]) / "model.pth"))
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, network)
    assert trainer.evaluate(test, load_best_model=False) == result["test_result"]


@pytest.mark.parametrize(("eval_step", "scores"), [(1, [0.1, 0.5, 0.3, 0.2]), (2, [0.5, 0.3])])
def test_the_best_epoch_of_a_stock_model_is_its_checkpoints(
    eval_step: int, scores: list[float], settings: Settings, monkeypatch: pytest.MonkeyPatch
):
    left = iter(scores)
    monkeypatch.setattr(recbole.trainer.trainer, "calculate_valid_score", lambda result, metric: next(left))
    changes = {**STOCK, "epochs": 4, "stopping_step": 9, "eval_step": eval_step}
    result = run_recbole("SASRec", "tiny", config_dict=asked_of("SASRec", changes, settings))
    stored = torch.load(Path(result["run_folder"]) / "model.pth", weights_only=False)
    phase = result["report"]["phases"]["train"]
    assert phase["best_epoch"] == stored["epoch"] == 1
    assert phase["epochs"] == 4


def test_two_runs_of_one_second_have_a_folder_each(settings: Settings):
    asked = asked_of("SASRec", {**STOCK, "epochs": 1}, settings)
    folders = {run_recbole("SASRec", "tiny", config_dict=dict(asked))["run_folder"] for _ in range(3)}
    assert len(folders) == 3
