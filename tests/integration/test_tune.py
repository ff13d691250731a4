"""Searches on tiny data: scores, files, pruning, failures, going on after a kill, several processes, stock models."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from optuna.pruners import MedianPruner
from optuna.trial import TrialState

import recbole_pad.quick_start as quick_start
from recbole_pad.__main__ import main
from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.item_texts import ItemFile
from recbole_pad.errors import InputError
from recbole_pad.quick_start import run_recbole
from recbole_pad.tune import engine, tune
from recbole_pad.tune import trial as trial_module
from recbole_pad.tune.engine import Pruning, open_storage
from recbole_pad.tune.phase_pruner import PhasePruner, epoch_of

Settings = Callable[..., dict[str, Any]]
FOLDER = Path("saved/tune-PAD-tiny-search")


def space(text: str) -> str:
    Path("space.yaml").write_text(text)
    return "space.yaml"


def study_of(folder: Path = FOLDER, name: str = "PAD-tiny-search") -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(None, folder))


def lines(folder: Path = FOLDER) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small(settings: Settings) -> dict[str, Any]:
    """PAD, phase 1 alone, one epoch: a trial takes a fraction of a second."""
    return settings(phases=["pretrain"], epochs=1)


# --- scores and files -----------------------------------------------------------------------------


def test_the_best_settings_give_the_best_score_again(settings: Settings, capsys: pytest.CaptureFixture[str]):
    """All phases; the score is the last phase's, and best.yaml is a config file of `run_recbole`."""
    text = "align.learning_rate: {float: [1e-4, 0.1], log: true}\nmmd_kernel: {choice: [gaussian, cosine]}\n"
    found = tune("PAD", "tiny", 3, space=space(text), config_dict=settings(epochs=1))
    assert found["counts"] == {"running": 0, "waiting": 0, "complete": 3, "pruned": 0, "fail": 0}
    assert found["folder"] == str(FOLDER)
    assert sorted(path.name for path in FOLDER.iterdir()) == ["best.yaml", "study.log", "trials.csv"]
    assert not Path("log_tensorboard").exists()
    assert list(Path("saved").iterdir()) == [FOLDER], "a trial leaves no run folder"
    best = FOLDER / "best.yaml"
    again = run_recbole("PAD", "tiny", [str(best)], saved=False)
    assert again["best_valid_score"] == found["best_valid_score"]
    assert again["report"]["phases"]["finetune"]["best_valid_result"]["ndcg@10"] == found["best_valid_score"]
    assert yaml.safe_load(best.read_text()).items() >= found["best_settings"].items()

    rows = lines()
    assert [row["trial"] for row in rows] == ["0", "1", "2"]
    scores = [float(row["score"]) for row in rows]
    assert max(scores) == found["best_valid_score"] == float(rows[found["best_trial"]]["ndcg@10"])
    assert all(row["epochs"] == "3" and row["state"] == "complete" and not row["reason"] for row in rows)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed] == [f"trial {n}: complete" for n in range(3)]
    assert found["table"].splitlines()[2].startswith(f"| {found['best_trial']} | {max(scores):.6f} |")


@pytest.mark.parametrize("model", ["PAD", "SASRec", "GRU4Rec"])
def test_a_trial_never_looks_at_the_test_split(model: str, settings: Settings, monkeypatch: pytest.MonkeyPatch):
    original = quick_start.data_preparation

    class Forbidden:
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(f"the test split was asked for {name}")

    def prepared(*args: Any) -> Any:
        return (*original(*args)[:2], Forbidden())

    monkeypatch.setattr(quick_start, "data_preparation", prepared)
    asked = settings(model, epochs=1)
    if model == "GRU4Rec":
        asked = {key: value for key, value in asked.items() if key not in {"inner_size", "attn_dropout_prob"}}
        asked.pop("hidden_dropout_prob")
    text = "learning_rate: {float: [1e-3, 0.1], log: true}\n"
    found = tune(model, "tiny", 2, space=space(text), config_dict=asked)
    assert found["counts"]["complete"] == 2
    with pytest.raises(AssertionError, match="the test split was asked for"):
        run_recbole(model, "tiny", config_dict=asked, saved=False)


def test_the_first_trial_has_the_configs_own_values(small: dict[str, Any]):
    """A value that the space does not hold is the config's in that trial, and searched in the others."""
    text = "learning_rate: {float: [1e-3, 0.1], log: true}\nhidden_size: {choice: [8, 16]}\nn_heads: {choice: [1, 4]}\n"
    tune("PAD", "tiny", 2, space=space(text), config_dict=small)
    first, second = study_of().trials
    assert first.params == {"learning_rate": small["learning_rate"], "hidden_size": 16}
    assert set(second.params) == {"learning_rate", "hidden_size", "n_heads"}
    assert first.value == run_recbole("PAD", "tiny", config_dict=small, saved=False)["best_valid_score"]


def test_keys_that_no_phase_reads_are_not_searched(small: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    text = "learning_rate: {float: [1e-3, 0.1]}\nmmd_weight: {float: [0, 1]}\nmatch_decay: {float: [0, 1]}\n"
    text += "align.learning_rate: {float: [1e-3, 0.1]}\npretrain.epochs: {int: [1, 2]}\n"
    tune("PAD", "tiny", 1, space=space(text), config_dict=small)
    assert set(study_of().trials[0].params) == {"learning_rate", "pretrain.epochs"}
    assert "reads them: mmd_weight, match_decay, align.learning_rate\n" in capsys.readouterr().out
    two = {**small, "phases": ["pretrain", "align"]}
    tune("PAD", "tiny", 1, space=space(text), config_dict=two, study="two")
    assert "reads them: match_decay\n" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"none of its keys is read with phases: \['pretrain'\]"):
        tune("PAD", "tiny", 1, space=space("mmd_weight: {float: [0, 1]}\n"), config_dict=small, study="none")


def test_trials_train_with_the_configs_seed(small: dict[str, Any]):
    """Equal settings, equal scores: what differs between trials is what the space says."""
    text = "learning_rate: {choice: [0.01, 0.02]}\n"
    tune("PAD", "tiny", 5, space=space(text), config_dict=small, sampler="random")
    scores: dict[str, set[str]] = {}
    for row in lines():
        scores.setdefault(row["learning_rate"], set()).add(row["score"])
    assert len(lines()) > len(scores) == 2
    assert all(len(values) == 1 for values in scores.values())


def test_another_metric_is_the_score_and_stops_the_training(small: dict[str, Any]):
    text = "learning_rate: {float: [1e-3, 0.1], log: true}\n"
    found = tune("PAD", "tiny", 1, space=space(text), config_dict=small, metric="Hit@5")
    assert float(lines()[0]["hit@5"]) == found["best_valid_score"] != float(lines()[0]["ndcg@10"])
    for metric in ("Recall@10", "NDCG@7"):
        with pytest.raises(InputError, match=f"valid_metric: {metric} is not computed.*another valid_metric"):
            tune("PAD", "tiny", 1, space=space(text), config_dict=small, metric=metric)


# --- pruning and phases ---------------------------------------------------------------------------


def test_a_bad_curve_is_stopped_in_its_phase(settings: Settings, monkeypatch: pytest.MonkeyPatch):
    """The align phase alone differs: a rate of 1e-9 leaves it where pretrain ended, which the others leave behind."""
    eager = Pruning(lambda: PhasePruner(MedianPruner(n_startup_trials=1)), engine.PRUNERS["median"].step)
    monkeypatch.setitem(engine.PRUNERS, "median", eager)
    asked = settings(epochs=4, stopping_step=4, phase_cache="phases", learning_rate=0.003, weight_average=0)
    text = "align.learning_rate: {choice: [0.01, 0.02, 1e-9]}\n"
    tune("PAD", "chain", 6, space=space(text), config_dict={**asked, "align.learning_rate": 0.01}, sampler="random")
    trials = study_of(Path("saved/tune-PAD-chain-search"), "PAD-chain-search").trials
    bad = [trial for trial in trials if trial.params["align.learning_rate"] == 1e-9]
    good = [trial for trial in trials if trial.params["align.learning_rate"] != 1e-9]
    assert len(bad) >= 1
    assert len(good) >= 2
    assert trials[0] in good, "the pruner needs one complete trial first"
    for trial in bad:
        assert trial.state == TrialState.PRUNED
        assert trial.user_attrs["reason"].startswith("stopped in phase align after epoch ")
        assert {epoch_of(step)[0] for step in trial.intermediate_values} == {1}, "pretrain came from the cache"
    assert {epoch_of(step)[0] for step in trials[0].intermediate_values} == {0, 1, 2}
    assert {trial.state for trial in good} >= {TrialState.COMPLETE}
    rows = lines(Path("saved/tune-PAD-chain-search"))
    assert all(rows[trial.number]["score"] == "" and "phase align" in rows[trial.number]["reason"] for trial in bad)


def test_hyperband_reports_the_last_phase(settings: Settings):
    text = "learning_rate: {float: [1e-3, 0.1], log: true}\n"
    tune("PAD", "tiny", 2, space=space(text), config_dict=settings(phases=["pretrain", "align"]), pruner="hyperband")
    for trial in study_of().trials:
        assert list(trial.intermediate_values) in ([0], [0, 1])


def test_trials_share_phases_through_the_cache(settings: Settings):
    asked = settings(epochs=1, phase_cache="phases")
    tune("PAD", "tiny", 3, space=space("match_decay: {float: [0.3, 0.9]}\n"), config_dict=asked)
    first, *others = (trial.user_attrs["phases"] for trial in study_of().trials)
    assert all(not phase["reused_from"] for phase in first.values())
    for phases in others:
        assert [bool(phase["reused_from"]) for phase in phases.values()] == [True, True, False]
    assert [row["epochs"] for row in lines()] == ["3", "1", "1"]
    assert len(list(Path("phases").glob("pretrain-*.pth"))) == len(list(Path("phases").glob("align-*.pth"))) == 1


# --- failures -------------------------------------------------------------------------------------


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(small: dict[str, Any]):
    """15 is no multiple of the 2 heads; BERT4Rec gives no causal states, which is seen first."""
    text = "hidden_size: {choice: [16, 15]}\nbackbone: {choice: [SASRec, BERT4Rec]}\n"
    text += "train_rows: {choice: [auto, sequences]}\n"
    found = tune("PAD", "tiny", 8, space=space(text), config_dict=small, sampler="grid")
    assert (found["counts"]["complete"], found["counts"]["fail"]) == (3, 5)
    failed = [row for row in lines() if row["state"] == "fail"]
    assert {row["reason"].split(":")[0] for row in failed} == {"ValueError", "InputError"}
    for row in failed:
        impossible = row["train_rows"] == "sequences" and row["backbone"] == "BERT4Rec"
        assert impossible == row["reason"].startswith("InputError: train_rows: sequences needs a causal state")
        assert impossible or "(15) is not a multiple of the number of attention heads" in row["reason"]


def test_a_loss_that_is_not_a_number_fails_the_trial(settings: Settings):
    text = "learning_rate: {choice: [0.01, 1e30]}\n"
    tune("SASRec", "tiny", 2, space=space(text), config_dict=settings("SASRec", epochs=2), sampler="grid", study="nan")
    rows = {row["learning_rate"]: row for row in lines(Path("saved/tune-SASRec-tiny-nan"))}
    assert rows["0.01"]["state"] == "complete"
    assert rows["1e+30"]["reason"] == "ValueError: Training loss is nan"


def test_a_search_in_which_every_trial_fails_ends_with_the_reason(small: dict[str, Any]):
    with pytest.raises(InputError, match=r"3 trials in a row have failed, .*The hidden size \(1[57]\) is not a mult"):
        tune("PAD", "tiny", 3, space=space("hidden_size: {choice: [15, 17]}\n"), config_dict=small)
    assert [row["state"] for row in lines()] == ["fail"] * 3
    assert not (FOLDER / "best.yaml").exists()


def test_an_unexpected_error_fails_the_trial_only(small: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    original, calls = trial_module.train, []

    def train(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 1:
            raise KeyError("no such column")
        return original(*args)

    monkeypatch.setattr(trial_module, "train", train)
    tune("PAD", "tiny", 2, space=space("learning_rate: {float: [1e-3, 0.1]}\n"), config_dict=small)
    assert [(row["state"], row["reason"]) for row in lines()] == [
        ("fail", "KeyError: 'no such column'"), ("complete", ""), ("complete", ""),
    ]  # fmt: skip


def test_an_interrupted_search_keeps_its_files_and_fails_the_trial(
    data_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def train(*args: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(trial_module, "train", train)
    words = ["tune", "--dataset=tiny", f"--data_path={data_path}", "--trials=2"]
    assert main([*words, f"--space={space('learning_rate: {float: [1e-3, 0.1]}')}"]) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on with the study\n"
    assert [(row["state"], row["reason"]) for row in lines()] == [("fail", "KeyboardInterrupt")]


# --- going on -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", [None, "sqlite:///studies.db"])
def test_a_search_goes_on_where_it_was(storage: str | None, small: dict[str, Any]):
    """2 trials and then one are the trials of one go: settings and scores."""
    text = space("learning_rate: {float: [1e-3, 0.1], log: true}\nhidden_size: {choice: [8, 16]}\n")
    tune("PAD", "tiny", 3, space=text, config_dict=small, study="whole")
    options: dict[str, Any] = {"space": text, "config_dict": small, "storage": storage}
    assert tune("PAD", "tiny", 2, **options)["counts"]["complete"] == 2
    assert tune("PAD", "tiny", 3, **options)["counts"]["complete"] == 3
    assert tune("PAD", "tiny", 2, **options)["counts"]["complete"] == 3, "enough are there"

    def told(folder: Path) -> list[list[str]]:
        return [[row[key] for key in ("trial", "score", "learning_rate", "hidden_size")] for row in lines(folder)]

    assert told(FOLDER) == told(Path("saved/tune-PAD-tiny-whole"))
    assert len(set(map(str, told(FOLDER)))) == 3


def test_a_study_is_not_continued_with_other_settings(small: dict[str, Any], data_path: Path):
    text = space("learning_rate: {float: [1e-3, 0.1]}\n")
    tune("PAD", "tiny", 1, space=text, config_dict=small)
    other = space("learning_rate: {float: [1e-3, 0.2]}\n")
    for changes, message in (
        ({"space": other}, r"space: learning_rate: {'float': \[0.001, 0.1\]}, not {'float': \[0.001, 0.2\]}"),
        ({"config_dict": {**small, "epochs": 3}}, "settings: epochs: 1, not 3"),
        ({"pruner": "none"}, r"another pruner \('median', not 'none'\)"),
        ({"metric": "Hit@5"}, r"another valid_metric \('NDCG@10', not 'Hit@5'\)"),
    ):
        space("learning_rate: {float: [1e-3, 0.1]}\n") if "space" not in changes else space(
            "learning_rate: {float: [1e-3, 0.2]}\n"
        )
        with pytest.raises(InputError, match=f"PAD-tiny-search was begun with {message}.*another --study"):
            tune("PAD", "tiny", 2, **{"space": text, "config_dict": small, **changes})
    space("learning_rate: {float: [1e-3, 0.1]}\n")
    where = {**small, "data_path": os.path.relpath(data_path), "state": "WARNING"}
    assert tune("PAD", "tiny", 2, space=text, config_dict=where, sampler="random")["counts"]["complete"] == 2


@pytest.mark.parametrize("kind", ["inter", "item"])
def test_a_study_is_not_continued_with_other_data(kind: str, small: dict[str, Any], data_path: Path, tmp_path: Path):
    shutil.copytree(data_path, tmp_path / "copy")
    text = space("learning_rate: {float: [1e-3, 0.1]}\n")
    options: dict[str, Any] = {"space": text, "config_dict": {**small, "data_path": str(tmp_path / "copy")}}
    tune("PAD", "tiny", 1, **options)
    file = tmp_path / "copy" / "tiny" / f"tiny.{kind}"
    file.write_bytes(file.read_bytes()[:-2] + b"0\n")
    with pytest.raises(InputError, match=f"PAD-tiny-search was begun with data: {kind}: .*another --study"):
        tune("PAD", "tiny", 2, **options)


@pytest.mark.parametrize("where", ["settings", "space"])
def test_a_study_is_not_continued_with_other_vectors_of_ones_own(
    where: str, settings: Settings, data_path: Path, tmp_path: Path
):
    npy = encode_items(
        ItemFile(data_path / "tiny" / "tiny.item"), tmp_path, "tiny", text_encoder="tfidf", show_progress=False
    )
    name = f"file:{npy}"
    text = "learning_rate: {float: [1e-3, 0.1]}\n"
    if where == "space":
        text += f"text_encoder: {{choice: ['{name}', tfidf]}}\n"
    asked = settings(phases=["align"], align_start="random", epochs=1)
    options: dict[str, Any] = {
        "space": space(text),
        "config_dict": {**asked, "text_encoder": "tfidf" if where == "space" else name},
    }
    assert tune("PAD", "tiny", 1, **options)["counts"]["complete"] == 1
    assert tune("PAD", "tiny", 2, **options)["counts"]["complete"] == 2
    np.save(npy, -np.load(npy))
    with pytest.raises(InputError, match=r"was begun with data: text_encoder file:.*npy: .*another --study"):
        tune("PAD", "tiny", 3, **options)


def test_pruned_trials_count_and_those_of_other_workers_are_waited_for(small: dict[str, Any]):
    options: dict[str, Any] = {"space": space("learning_rate: {float: [1e-3, 0.1]}\n"), "config_dict": small}
    tune("PAD", "tiny", 1, **options)
    study = study_of()
    study.add_trial(optuna.create_trial(state=TrialState.PRUNED))
    other = study.ask()
    other.set_user_attr("worker", {"machine": "another one", "pid": 1, "started": 0.0})
    other.set_user_attr("alive", time.time())
    assert tune("PAD", "tiny", 3, **options)["counts"]["complete"] == 1
    assert tune("PAD", "tiny", 4, **options)["counts"]["complete"] == 2
    other.set_user_attr("alive", 0.0)  # that machine is gone: its trial is run here, which makes four
    found = tune("PAD", "tiny", 4, **options)["counts"]
    assert (found["complete"], found["pruned"], found["fail"], found["running"]) == (3, 1, 1, 0)


def test_after_the_timeout_no_trial_is_started(small: dict[str, Any]):
    found = tune("PAD", "tiny", 2, space=space("learning_rate: {float: [1e-3, 0.1]}\n"), config_dict=small, timeout=0)
    assert sum(found["counts"].values()) == found["counts"]["waiting"] == 1  # the config's own values
    assert found["best_trial"] is None


HANGING = """
import sys, time
from recbole_pad.__main__ import main
import recbole_pad.tune.trial as trial

def train(*args):
    print("training", flush=True)
    time.sleep(600)

trial.train = train
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_search_whose_process_was_killed_goes_on_and_tries_that_trial_again(
    data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    text = space("learning_rate: {float: [1e-3, 0.1], log: true}\n")
    words = f"tune --dataset=tiny --space={text} --trials=2 --data_path={data_path} --hidden_size=16 --epochs=1".split()
    words.append("--phases=['pretrain']")
    process = subprocess.Popen([sys.executable, "-c", HANGING, *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [trial.state for trial in study_of().trials] == [TrialState.RUNNING]

    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "trial 0: was left by a process that is gone; failed" in printed
    rows = lines()
    assert [row["state"] for row in rows] == ["fail", "complete", "complete"]
    assert rows[0]["reason"].startswith("its process ended without a word")
    assert rows[0]["learning_rate"] == rows[1]["learning_rate"] != rows[2]["learning_rate"]
    process.stdout.close()


MEETING = """
import pathlib, sys, time
from recbole_pad.__main__ import main
import recbole_pad.tune.trial as trial

def train(*args):
    pathlib.Path(f"{sys.argv[0]}.here").touch()
    while len(list(pathlib.Path().glob("*.here"))) < 2:  # both processes have a trial at the same time
        time.sleep(0.02)
    return original(*args)

original, trial.train = trial.train, train
sys.argv[0] = sys.argv.pop()
sys.exit(main())
"""


@pytest.mark.slow
def test_two_processes_fill_one_study(data_path: Path, tmp_path: Path):
    text = space("learning_rate: {float: [1e-3, 0.1], log: true}\n")
    words = [
        "tune", "--dataset=tiny", f"--data_path={data_path}", f"--space={text}", "--trials=8", "--storage=shared.log",
        "--phases=['pretrain']", "--hidden_size=16", "--epochs=1", "--pruner=none",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MEETING, *words, name],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    try:
        printed = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    study = optuna.load_study(study_name="PAD-tiny-search", storage=open_storage("shared.log", tmp_path))
    trials = study.trials
    assert 8 <= len(trials) <= 9  # both may see seven at the same moment
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {trial.user_attrs["worker"]["pid"] for trial in trials} == {process.pid for process in processes}
    rates = [trial.params["learning_rate"] for trial in trials]
    assert len(set(rates)) >= len(trials) - 1  # both may queue the config's own values
    assert [row["trial"] for row in lines(tmp_path / FOLDER)] == [str(trial.number) for trial in trials]
    own = [sum(line.startswith("trial ") for line in out.splitlines()) for out, _ in printed]
    assert sum(own) == len(trials)
    assert min(own) >= 1


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--trials=2", "--sampler=tpa"], ["sampler: 'tpa'", "did you mean 'tpe'?"]),
        (["--trials=2", "--pruner=meadian"], ["pruner: 'meadian'", "did you mean 'median'?"]),
        (["--trials=2", "--space=PDA"], ["space: PDA is neither", "did you mean 'PAD'?"]),
        (["--trials=0"], ["trials: 0 must be at least 1"]),
        (["--trials=2", "--study=a/b"], ["study: 'a/b'", "without a slash"]),
        (["--trials=2", "--storage=study"], ["storage: 'study' is not a journal file"]),
        (["--trials=2", "--model=SASRek"], ["did you mean 'SASRec'?"]),
        (["--trials=2", "--model=NARM"], ["space: NARM is neither"]),
        (["--trials=2", "--nproc=2"], ["nproc: a trial runs in one process", "start tune several times"]),
        (["--trials=2", "--epoch=3"], ["unknown config key 'epoch'", "did you mean 'epochs'?"]),
        (["--trials=2", "--config_files=no.yaml"], ["config_files: no.yaml does not exist"]),
        (["--trials=2", "--learning_rate=0.1"], ["learning_rate is searched, but the command line fixes it"]),
        (["--trials=2", "--dataset=tinny"], ["did you mean 'tiny'?"]),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_a_wrong_argument_is_named_before_anything_is_written(
    words: list[str], parts: list[str], data_path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    place = [] if any(word.startswith("--dataset") for word in words) else ["--dataset=tiny"]
    assert main(["tune", f"--data_path={data_path}", *place, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in ["error: ", *parts]:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_settings_files_and_a_shipped_space(
    data_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str]
):
    Path("fixed.yaml").write_text(yaml.safe_dump(settings("SASRec", epochs=1, learning_rate=0.002, n_heads=1)))
    began = time.monotonic()
    words = "tune --model=SASRec --dataset=tiny --trials=2 --storage=none --study=mine --config_files=fixed.yaml"
    assert main([*words.split(), "--seed=11", "--timeout=600"]) == 0
    assert time.monotonic() - began < 600
    folder = Path("saved/tune-SASRec-tiny-mine")
    assert sorted(path.name for path in folder.iterdir()) == ["best.yaml", "trials.csv"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-2:] == ["trials: 2 complete", f"best settings and all trials: {folder}/best.yaml, trials.csv"]
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert (best["model"], best["dataset"], best["seed"], best["epochs"]) == ("SASRec", "tiny", 11, 1)
    assert lines(folder)[0]["learning_rate"] == "0.002", "a config file gives the first trial's values"
    assert {"n_layers", "mask_ratio"} & set(lines(folder)[0]) == {"n_layers"}
