"""A run that is killed at any moment and resumed ends bit by bit as one that was not killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import recbole.trainer.trainer
import torch
import yaml
from recbole.trainer import Trainer

from recbole_pad import checkpoint
from recbole_pad import result as result_module
from recbole_pad.errors import InputError
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PhaseTrainer
from recbole_pad.quick_start import run_recbole

PHASES = ("pretrain", "align", "finetune")
# Everything random is on: dropout, sampled negatives, dropped ids; a phase may stop after two epochs.
RANDOM = {"loss": "bce", "n_negatives": 2, "id_dropout": 0.2, "epochs": 3, "stopping_step": 0}
Settings = Callable[..., dict[str, Any]]


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing can catch a kill."""


@pytest.fixture
def asked(settings: Settings, tmp_path: Path) -> Settings:
    def make(**changes: Any) -> dict[str, Any]:
        return settings(**{**RANDOM, "checkpoint_dir": str(tmp_path / "saved"), **changes})

    return make


def start(config: dict[str, Any]) -> dict[str, Any]:
    return run_recbole("PAD", "tiny", config_dict=config)


def outcome(result: dict[str, Any]) -> dict[str, Any]:
    """What must be equal: the weights of every phase and of the final model, result.json less clocks."""
    folder = Path(result["run_folder"])
    report = json.loads((folder / "result.json").read_text())
    for phase in report["phases"].values():
        for key in ("seconds", "peak_memory_mb", "reused_from"):
            del phase[key]
    for key in ("total_seconds", "command"):
        del report[key]
    weights: dict[str, list[float]] = {}
    for phase in report["phases"]:
        content = checkpoint.load(folder / f"{phase}.pth")
        assert content["finished"]
        for module, state in content["modules"].items():
            weights |= {f"{phase}/{module}/{name}": value.tolist() for name, value in state.items()}
    final = torch.load(folder / "model.pth", weights_only=False)
    weights |= {f"model/{name}": value.tolist() for name, value in final["state_dict"].items()}
    return {"report": report, "weights": weights, "phase": final["other_parameter"]}


_REFERENCES: dict[str, Any] = {}


@pytest.fixture
def reference(settings: Settings, tmp_path: Path) -> dict[str, Any]:
    """The outcome of the run that is not killed; computed once."""
    if not _REFERENCES:
        _REFERENCES.update(outcome(start(settings(**RANDOM, checkpoint_dir=str(tmp_path / "reference")))))
    return _REFERENCES


@pytest.fixture
def trained_phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The phases of which an epoch was trained."""
    seen: list[str] = []
    original = PhaseTrainer._train_epoch

    def spy(self: PhaseTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.phase not in seen:
            seen.append(self.phase)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PhaseTrainer, "_train_epoch", spy)
    return seen


def run_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "saved").iterdir())


def leftovers(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "saved").rglob("*") if path.name.endswith(".tmp")]


def killed(config: dict[str, Any], owner: Any, name: str, dies: Callable[..., bool], after: bool = False) -> None:
    """Run until `dies`, asked with the arguments of each call, says yes; die before or after it."""
    original = getattr(owner, name)

    def deadly(*args: Any, **kwargs: Any) -> Any:
        now = dies(*args, **kwargs)
        if now and not after:
            raise Killed
        result = original(*args, **kwargs)
        if now:
            raise Killed
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, deadly)
        with pytest.raises(Killed):
            start(config)


def at_call(number: int) -> Callable[..., bool]:
    """The call of that number, counted from 1."""
    calls = iter(range(1, 10**6))
    return lambda *args, **kwargs: next(calls) == number


def at_step(phase: str, number: int) -> Callable[..., bool]:
    """The training step of that number, counted from 1, of a phase; an epoch has three."""
    steps = at_call(number)
    return lambda model, interaction: model.phase == phase and steps()


def at_write(file: str, number: int) -> Callable[..., bool]:
    """The write of that number, counted from 1, of a file of that name."""
    writes = at_call(number)
    return lambda temporary, path: path.name == file and writes()


def test_the_reference_run_trains_all_phases(reference: dict[str, Any]):
    """If phases had a single epoch or step, there would be nothing to interrupt."""
    report = reference["report"]
    assert list(report["phases"]) == list(PHASES)
    assert all(phase["epochs"] >= 2 for phase in report["phases"].values())
    assert reference["phase"] == {"phase": "finetune"}


@pytest.mark.parametrize("step", [1, 6])
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_in_a_training_step_ends_as_if_it_had_not_been(
    phase: str, step: int, asked: Settings, reference: dict[str, Any], tmp_path: Path
):
    """The first step of the first epoch, and the last of the second."""
    killed(asked(), PAD, "calculate_loss", at_step(phase, step))
    result = start(asked(resume=True))
    assert outcome(result) == reference
    assert [str(path) for path in run_folders(tmp_path)] == [result["run_folder"]]
    assert not (Path(result["run_folder"]) / "last.pth").exists()


@pytest.mark.parametrize(
    ("file", "number", "after"),
    [
        ("last.pth", 1, False),
        ("last.pth", 2, True),
        ("pretrain.pth", 1, False),
        ("pretrain.pth", 1, True),
        ("align.pth", 2, False),
        ("last.pth", 6, False),
        ("finetune.pth", 1, True),
        ("model.pth", 1, False),
        ("result.json", 1, True),
        ("config.yaml", 1, False),
    ],
)
def test_a_run_killed_around_the_renaming_of_a_file_ends_as_if_it_had_not_been(
    file: str, number: int, after: bool, asked: Settings, reference: dict[str, Any], tmp_path: Path
):
    """The file is written but not yet renamed, or has just been renamed."""
    killed(asked(), Path, "replace", at_write(file, number), after=after)
    assert outcome(start(asked(resume=True))) == reference
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_between_phases_does_not_train_the_finished_ones_again(
    phase: str, asked: Settings, reference: dict[str, Any], trained_phases: list[str]
):
    """The phase's file is finished, nothing else has happened yet."""
    killed(asked(), PhaseTrainer, "_finish", lambda trainer: trainer.phase == phase, after=True)
    trained_phases.clear()
    assert outcome(start(asked(resume=True))) == reference
    assert trained_phases == list(PHASES[PHASES.index(phase) + 1 :])


def test_a_run_killed_in_the_final_evaluation_trains_nothing_again(
    asked: Settings, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    killed(asked(), result_module, "write_json", at_call(1))
    monkeypatch.setattr(PhaseTrainer, "_train_epoch", lambda *args, **kwargs: pytest.fail("trained again"))
    assert outcome(start(asked(resume=True))) == reference


def test_a_run_with_a_budget_is_not_resumed(asked: Settings):
    with pytest.raises(InputError, match="resume: the time of train_seconds would begin anew"):
        start(asked(resume=True, train_seconds=9))


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(
    asked: Settings, reference: dict[str, Any], tmp_path: Path
):
    """Each attempt gets five steps further; an epoch has three, so each ends at least one."""
    for attempt in range(20):
        try:
            killed(asked(resume=attempt > 0), PAD, "calculate_loss", at_call(5))
        except pytest.fail.Exception:  # not killed any more: this attempt reached the end
            break
    (folder,) = run_folders(tmp_path)
    assert attempt >= 3
    assert outcome({"run_folder": folder}) == reference


def test_a_resumed_phase_remembers_how_many_epochs_were_worse(asked: Settings, monkeypatch: pytest.MonkeyPatch):
    """Scores 0.5, 0.4, then killed in the third epoch; after it, two were worse, and one is allowed."""
    scores = iter([0.5, 0.4, 0.3, 0.2, 0.1])
    monkeypatch.setattr(recbole.trainer.trainer, "calculate_valid_score", lambda result, metric: next(scores))
    changes = {"phases": ["pretrain"], "epochs": 5, "stopping_step": 1}
    killed(asked(**changes), PAD, "calculate_loss", at_step("pretrain", 8))
    phase = start(asked(**changes, resume=True))["report"]["phases"]["pretrain"]
    assert (phase["epochs"], phase["best_epoch"]) == (3, 0)


def test_the_time_of_all_sessions_is_counted(asked: Settings, monkeypatch: pytest.MonkeyPatch):
    """A clock that goes on one second with each look."""
    import recbole_pad.phase_trainers as trainer_module

    class Clock:
        now = 0.0

        @classmethod
        def monotonic(cls) -> float:
            cls.now += 1.0
            return cls.now

    monkeypatch.setattr(trainer_module, "time", Clock)
    killed(asked(), PAD, "calculate_loss", at_call(5))  # in the second epoch
    (folder,) = Path(asked()["checkpoint_dir"]).iterdir()
    before = checkpoint.load(folder / "last.pth")["record"]["seconds"]
    assert before > 0
    Clock.now = 1000.0
    result = start(asked(resume=True))
    assert before < result["report"]["phases"]["pretrain"]["seconds"] < 1000


HALF_WRITTEN = """
import os, signal, sys
import torch, yaml
from recbole_pad.quick_start import run_recbole

settings = yaml.safe_load(open(sys.argv.pop(1)))
original, calls = torch.save, []

def save(content, file, **kwargs):
    original(content, file, **kwargs)
    calls.append(None)
    if len(calls) == 7:
        with open(file, "r+b") as half:
            half.truncate(os.path.getsize(file) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

torch.save = save
run_recbole("PAD", "tiny", config_dict=settings)
"""


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_nothing_that_is_taken_for_a_checkpoint(
    asked: Settings, reference: dict[str, Any], tmp_path: Path
):
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump(asked()))
    done = subprocess.run(
        [sys.executable, "-c", HALF_WRITTEN, "settings.yaml"], cwd=tmp_path, capture_output=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    (half,) = leftovers(tmp_path)
    with pytest.raises(InputError):
        checkpoint.load(half)
    result = start(asked(resume=True))
    assert [str(path) for path in run_folders(tmp_path)] == [result["run_folder"]]
    assert outcome(result) == reference
    assert leftovers(tmp_path) == [half]


# --- what may be resumed --------------------------------------------------------------------------


def test_resume_without_an_earlier_run_starts_a_new_one(asked: Settings, reference: dict[str, Any], tmp_path: Path):
    result = start(asked(resume=True))
    assert outcome(result) == reference
    assert [str(path) for path in run_folders(tmp_path)] == [result["run_folder"]]


def test_resume_passes_over_runs_of_other_settings(asked: Settings, tmp_path: Path):
    first = start(asked(epochs=1))
    second = start(asked(epochs=1, seed=8, resume=True))
    assert first["run_folder"] != second["run_folder"]
    assert all(not phase["reused_from"] for phase in second["report"]["phases"].values())


def test_a_finished_run_is_resumed_without_training(asked: Settings, monkeypatch: pytest.MonkeyPatch):
    first = start(asked(epochs=1))
    monkeypatch.setattr(Trainer, "_train_epoch", lambda *args, **kwargs: pytest.fail("trained again"))
    second = start(asked(epochs=1, resume=first["run_folder"]))
    assert second["run_folder"] == first["run_folder"]
    assert second["test_result"] == first["test_result"]


@pytest.mark.parametrize(
    ("phase", "step", "changes", "named"),
    [
        ("pretrain", 2, {"seed": 8}, "last.pth"),
        ("pretrain", 5, {"seed": 8}, "pretrain.pth"),
        ("align", 2, {"learning_rate": 0.02}, "pretrain.pth"),
        ("align", 2, {"mmd_weight": 0.3}, "last.pth"),
        ("align", 5, {"mmd_weight": 0.3}, "align.pth"),
        ("finetune", 5, {"gate_learning_rate": 0.5}, "finetune.pth"),
    ],
    ids=str,
)
def test_a_folder_of_other_settings_is_refused_naming_both_fingerprints(
    phase: str, step: int, changes: dict[str, Any], named: str, asked: Settings, tmp_path: Path
):
    killed(asked(epochs=2), PAD, "calculate_loss", at_step(phase, step))
    (folder,) = run_folders(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="was trained with other settings, data or seed") as info:
        start(asked(epochs=2, resume=str(folder), **changes))
    message = str(info.value)
    assert message.startswith(str(folder / named))
    assert checkpoint.load(folder / named)["fingerprint"] in message
    words = message.replace(")", " ").replace(",", " ").split()
    assert len({word for word in words if len(word) == 16 and set(word) <= set("0123456789abcdef")}) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_damaged_state_is_refused_by_name(asked: Settings, tmp_path: Path):
    killed(asked(), PAD, "calculate_loss", at_call(5))
    (folder,) = run_folders(tmp_path)
    (folder / "last.pth").write_bytes((folder / "last.pth").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"last\.pth: cannot be read"):
        start(asked(resume=True))


# --- phases shared between runs -------------------------------------------------------------------


def test_a_second_run_takes_every_phase_from_the_cache(
    asked: Settings, reference: dict[str, Any], trained_phases: list[str], tmp_path: Path
):
    cache = tmp_path / "cache"
    first = start(asked(phase_cache=str(cache)))
    assert outcome(first) == reference
    assert len(list(cache.iterdir())) == 3
    trained_phases.clear()
    second = start(asked(phase_cache=str(cache)))
    assert trained_phases == []
    assert second["run_folder"] != first["run_folder"]
    assert outcome(second) == reference
    for name, phase in second["report"]["phases"].items():
        taken = Path(phase["reused_from"])
        assert taken.parent == cache
        assert taken.name.startswith(f"{name}-")
        assert phase["seconds"] == first["report"]["phases"][name]["seconds"]


def test_a_cached_phase_is_used_by_a_run_that_saves_nothing(
    asked: Settings, reference: dict[str, Any], trained_phases: list[str], tmp_path: Path
):
    start(asked(phase_cache=str(tmp_path / "cache")))
    trained_phases.clear()
    result = run_recbole("PAD", "tiny", config_dict=asked(phase_cache=str(tmp_path / "cache")), saved=False)
    assert trained_phases == []
    assert result["report"]["test_result"] == reference["report"]["test_result"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gate_learning_rate": 0.5}, ["finetune"]),
        ({"experts": ["rec", "llm"]}, ["finetune"]),
        ({"mmd_weight": 0.5}, ["align", "finetune"]),
        ({"seed": 8}, list(PHASES)),
    ],
    ids=str,
)
def test_variants_share_the_phases_that_they_agree_in(
    changes: dict[str, Any], expected: list[str], asked: Settings, trained_phases: list[str], tmp_path: Path
):
    cache = str(tmp_path / "cache")
    start(asked(epochs=1, phase_cache=cache))
    alone = start(asked(epochs=1, **changes))
    trained_phases.clear()
    shared = start(asked(epochs=1, phase_cache=cache, **changes))
    assert trained_phases == expected
    assert outcome(shared) == outcome(alone)
    reused = [name for name, phase in shared["report"]["phases"].items() if phase["reused_from"]]
    assert reused == [name for name in PHASES if name not in expected]
