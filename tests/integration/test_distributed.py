"""Several processes: they train as one does, one of them writes, and when one dies the end is clear and resumable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from recbole.quick_start import load_data_and_model
from recbole.utils import get_trainer

from recbole_pad import checkpoint, launch, optimizers
from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.item_texts import ItemFile
from recbole_pad.distributed import Processes, single
from recbole_pad.errors import InputError
from recbole_pad.keys import PROCESS_KEYS
from recbole_pad.launch import Mailbox, ProcessError, process_settings, run_processes, torchrun_settings
from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PretrainTrainer
from recbole_pad.process_group import require_shared, runs_on_gpus
from recbole_pad.quick_start import run_recbole
from tests.integration.in_processes import collect, rank_1_raises
from tests.unit.test_encode_text import item_file, tiny_model  # noqa: F401 - a fixture

Settings = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent  # the console scripts of this environment
# Nothing is random in a step; 39 rows in batches of 19: of the last batch, one process gets a row, the other none.
EXACT = {
    "hidden_dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "id_dropout": 0.0,
    "train_batch_size": 19,
    "stopping_step": 9,
}


def finished(words: list[Any], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output ends only when every process that it started has ended."""
    process = subprocess.Popen(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


def report_of(folder: Path) -> Any:
    return json.loads((folder / "result.json").read_text())


def assert_close(found: Any, expected: Any, place: str = "") -> None:
    """Equal but for rounding; clocks, memory and the command may differ."""
    assert type(found) is type(expected), place
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in set(expected) - {"seconds", "total_seconds", "peak_memory_mb", "command"}:
            assert_close(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for number, entry in enumerate(expected):
            assert_close(found[number], entry, f"{place}/{number}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-5), place
    else:
        assert found == expected, place


def assert_same_weights(found: Path, expected: Path, phase: str) -> None:
    """Softmax does not see the bias of attention's keys: its gradient is rounding, and Adam makes steps of it."""
    modules, others = (checkpoint.load(folder / f"{phase}.pth")["modules"] for folder in (found, expected))
    assert modules.keys() == others.keys()
    for name, state in others.items():
        for key in set(state) - {key for key in state if key.endswith("key.bias")}:
            torch.testing.assert_close(modules[name][key], state[key], atol=1e-4, rtol=0, msg=f"{phase} {name} {key}")


# --- the same training ----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_and_rank_as_one_does_and_one_writes(settings: Settings, tmp_path: Path):
    """37 rows of validation are two unequal shares; each process makes its own share of every batch."""
    asked = settings(**EXACT)
    one = Path(run_recbole("PAD", "tiny", config_dict={**asked, "checkpoint_dir": "one"})["run_folder"])
    home = tmp_path / "home"
    home.mkdir()
    done = finished([SCRIPTS / "run_recbole", "-d", "tiny", "--nproc=2", *flags(asked)], home)
    assert done.returncode == 0, done.stderr
    (two,) = (home / "saved").iterdir()
    report = report_of(two)
    assert_close(report, report_of(one))
    assert [phase["epochs"] for phase in report["phases"].values()] == [2, 2, 2]
    for phase in report["phases"]:
        assert_same_weights(two, one, phase)
        n_rows = [report["phases"][phase][split]["masked"]["all"]["n"] for split in ("valid", "test")]
        assert n_rows == [37, 38]

    assert done.stdout.count("run folder: ") == 1
    assert len(list((home / "log" / "PAD").iterdir())) == 1
    events = [path.name for path in (home / "log_tensorboard").rglob("events*")]
    assert len({name.split(".")[-2] for name in events}) == 1, "two processes wrote TensorBoard files"
    assert not list(home.rglob("*.tmp"))
    assert set(PROCESS_KEYS).isdisjoint(yaml.safe_load((two / "config.yaml").read_text()))

    config, network, *_, test = load_data_and_model(str(two / "model.pth"))
    assert config["single_spec"] is True
    alone = get_trainer(config["MODEL_TYPE"], "PAD")(config, network).evaluate(test, load_best_model=False)
    assert_close({name: float(value) for name, value in alone.items()}, report["test_result"])


def fixed_draw(self: NegativeSampler, *shape: int) -> torch.Tensor:
    number = torch.arange(torch.Size(shape).numel())
    return self.pool[number % len(self.pool)].view(*shape)


def fixed_draw_unseen_by(self: NegativeSampler, users: torch.Tensor, n_negatives: int) -> torch.Tensor:
    return self.pool[(7 * users[:, None] + torch.arange(n_negatives)) % len(self.pool)]


WITH_FIXED_NEGATIVES = """
import sys
from recbole_pad import optimizers
from recbole_pad.__main__ import main
from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PretrainTrainer
from tests.integration.test_distributed import fixed_draw, fixed_draw_unseen_by

optimizers.SPARSE_FROM = 1
NegativeSampler.draw, NegativeSampler.draw_unseen_by = fixed_draw, fixed_draw_unseen_by
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""
# Each phase has another loss: shared negatives; own negatives and the published rows of the MMD; full softmax of the
# mixture, with a gate that learns. Where negatives are sampled, tables are updated by rows.
LOSSES = {
    "n_negatives": 3,
    "pretrain.loss": "sampled_softmax",
    "align.loss": "bce",
    "mmd_rows": "all",
    "expert_loss": "joint",
    "experts": ["rec", "align", "llm", "match"],
    "gate_fit": "train",
    "retrain_experts": True,
}


@pytest.mark.slow
def test_processes_of_torchrun_train_as_one_does_with_every_loss(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Negatives depend on the user alone here: else each process would draw its own."""
    monkeypatch.setattr(optimizers, "SPARSE_FROM", 1)
    monkeypatch.setattr(NegativeSampler, "draw", fixed_draw)
    monkeypatch.setattr(NegativeSampler, "draw_unseen_by", fixed_draw_unseen_by)
    asked = settings(**EXACT, **LOSSES)
    one = Path(run_recbole("PAD", "tiny", config_dict={**asked, "checkpoint_dir": "one"})["run_folder"])
    (tmp_path / "script.py").write_text(WITH_FIXED_NEGATIVES)
    words = ["script.py", "run", "--model=PAD", "--dataset=tiny", "--checkpoint_dir=two", *flags(asked)]
    done = finished([SCRIPTS / "torchrun", "--nproc_per_node=2", "--master_port", free_port(), *words], tmp_path)
    assert done.returncode == 0, done.stderr
    (two,) = (tmp_path / "two").iterdir()
    assert_close(report_of(two), report_of(one))
    for phase in ("pretrain", "align", "finetune"):
        assert_same_weights(two, one, phase)
    assert done.stdout.count("run folder: ") == 1


@pytest.mark.slow
def test_a_stock_model_trains_on_two_machines_of_one_process_each_as_in_one_process(settings: Settings, tmp_path: Path):
    """Without shuffling, and with an even number of rows, RecBole's shares of a batch are the batch."""
    asked = settings("SASRec", train_neg_sample_args=None, shuffle=False, hidden_dropout_prob=0, attn_dropout_prob=0)
    one = Path(run_recbole("SASRec", "chain", config_dict={**asked, "checkpoint_dir": "one"})["run_folder"])
    words = ["-m", "SASRec", "-d", "chain", "--world_size=2", f"--port={free_port()}", "--checkpoint_dir=two"]
    other = subprocess.Popen(
        [SCRIPTS / "run_recbole", *words, "--group_offset=1", *flags(asked)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        done = finished([SCRIPTS / "run_recbole", *words, *flags(asked)], tmp_path)
        assert done.returncode == 0, done.stderr
        printed, _ = other.communicate(timeout=60)
    finally:
        other.kill()
    assert (other.returncode, printed) == (0, "")
    (two,) = (tmp_path / "two").iterdir()
    assert_close(report_of(two), report_of(one))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@pytest.mark.slow
def test_processes_get_what_the_others_have_and_encode_texts_together(tmp_path: Path, tiny_model: Path):  # noqa: F811
    texts = ["red apple", "green apple", "car engine", "red apple", "oil for a car engine"]
    items = item_file(tmp_path, [f"i{number}\t{text}" for number, text in enumerate(texts)])
    places = process_settings(2, -1, "localhost", "5678", 0)
    boxes: list[Mailbox] = []

    def arguments(mailbox: Mailbox) -> tuple[Any, ...]:
        (tmp_path / "box").mkdir()
        boxes.append(Mailbox(tmp_path / "box"))
        return places["port"], items, tmp_path / "two", str(tiny_model), boxes[0]

    assert run_processes(collect, arguments, places, str) is None
    common = {
        "from_first": "made by 0",
        "objects": [0, 1],
        "concatenated": [0, 3, 4],
        "of nothing": [0],
        "means": (0.5, 1.0),
        "same_values": [0.0, 0.0],
    }
    first, second = boxes[0].found("0"), boxes[0].found("1")
    assert {key: first[key] for key in common} == {key: second[key] for key in common} == common
    assert (first["objects_at_first"], second["objects_at_first"]) == ([0, 1], None)
    assert (first["weight"], second["weight"]) == (pytest.approx(2 / 3), pytest.approx(4 / 3))  # of 1 and 2 values
    assert len(first["files"]) == len(second["files"]) == 2

    one = encode_items(ItemFile(items), tmp_path / "one", "toy", text_encoder=str(tiny_model), show_progress=False)
    np.testing.assert_allclose(np.load(tmp_path / "two" / one.name), np.load(one), atol=1e-6)


# --- a process that dies --------------------------------------------------------------------------

RANK_1_DIES = """
import os, signal, sys
import torch
from recbole_pad.__main__ import main
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PretrainTrainer

original, calls = PAD.calculate_loss, []

def calculate_loss(self, interaction):
    calls.append(None)
    if len(calls) == 5 and torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, interaction)

PAD.calculate_loss = calculate_loss
if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_it_is_resumed_to_the_same_numbers(settings: Settings, tmp_path: Path):
    """The fifth step is in the second of three epochs. Dropout and negatives are random, in each process for itself."""
    asked = settings(phases=["pretrain"], experts=["rec"], loss="bce", epochs=3, stopping_step=9)
    words = ["--dataset=tiny", "--nproc=2", *flags(asked)]
    (tmp_path / "script.py").write_text(RANK_1_DIES)
    broken = finished([sys.executable, "script.py", "--checkpoint_dir=broken", *words], tmp_path)
    (folder,) = (tmp_path / "broken").iterdir()
    assert broken.returncode == 2
    assert broken.stdout == ""
    (message,) = [line for line in broken.stderr.splitlines() if line.startswith("error: ")]
    assert message == (
        "error: the process of rank 1 of 2 was killed by signal SIGKILL (often: the machine is out of memory); this "
        f"ended the run. To continue, give the same command and --resume=broken/{folder.name}"
    )
    assert "Traceback" not in broken.stderr
    assert checkpoint.load(folder / "last.pth")["epoch"] == 1
    by_one = tmp_path / "by one" / folder.name
    shutil.copytree(folder, by_one)

    run = [SCRIPTS / "run_recbole", *words]
    resumed = finished([*run, "--checkpoint_dir=broken", f"--resume=broken/{folder.name}"], tmp_path)
    whole = finished([*run, "--checkpoint_dir=whole"], tmp_path)
    assert (resumed.returncode, whole.returncode) == (0, 0), resumed.stderr + whole.stderr
    (expected,) = (tmp_path / "whole").iterdir()
    found = checkpoint.load(folder / "pretrain.pth")["modules"]
    for name, state in checkpoint.load(expected / "pretrain.pth")["modules"].items():
        for key, value in state.items():
            assert torch.equal(found[name][key], value), key
    losses, others = (report_of(path)["phases"]["pretrain"]["train_loss"] for path in (folder, expected))
    assert losses == others
    assert not (folder / "last.pth").exists()

    # another number of processes: the epochs that were trained stay, the rest goes on with other random numbers
    report = run_recbole("PAD", "tiny", config_dict={**asked, "resume": str(by_one)})["report"]
    continued = report["phases"]["pretrain"]["train_loss"]
    assert len(continued) == 3
    assert continued[0] == losses[0]
    assert continued[1:] == pytest.approx(losses[1:], abs=0.2)
    assert continued[1:] != losses[1:]


def run_raising(error: str, folder: Path) -> None:
    def arguments(mailbox: Mailbox) -> tuple[str]:
        mailbox.run_folder(folder)
        return (error,)

    run_processes(rank_1_raises, arguments, process_settings(2, 6, "localhost", "99", 2), "in {}".format)


@pytest.mark.slow
def test_a_process_that_raises_is_named_with_its_traceback(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    """Its rank is counted over all machines: this one has ranks 2 and 3."""
    with pytest.raises(ProcessError) as info:
        run_raising("failure", tmp_path)
    message = f"the process of rank 3 of 6 failed: ZeroDivisionError: on purpose; this ended the run. in {tmp_path}"
    assert str(info.value) == message
    assert "in rank_1_raises" in capfd.readouterr().err


@pytest.mark.slow
def test_a_refusal_in_a_process_is_the_refusal_of_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(InputError) as info:
        run_raising("refusal", tmp_path)
    assert str(info.value) == "loss: 'bec' is unknown"
    assert "Traceback" not in capfd.readouterr().err


LOST = "Traceback\nRuntimeError: [gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:51920."
OWN = "Traceback\nValueError: Training loss is nan"


@pytest.mark.parametrize(
    ("exits", "first"),
    [
        ([(1, LOST), (-signal.SIGKILL, "")], 1),
        ([(1, LOST), (1, OWN)], 1),
        ([(-signal.SIGTERM, ""), (1, OWN)], 1),
        ([(-signal.SIGTERM, ""), (3, "")], 1),
        ([(15, ""), (-signal.SIGKILL, "")], 1),
        ([(-signal.SIGTERM, ""), (1, LOST)], 1),
        ([(-signal.SIGSEGV, ""), (1, LOST)], 0),
        ([(0, ""), (-signal.SIGKILL, "")], 1),
    ],
)
def test_the_process_that_is_blamed_is_the_one_that_died_first(exits: list[tuple[int, str]], first: int):
    """Whichever the parent looks at first: the others lose their connection, or are stopped by the parent."""
    guilt = [launch._guilt(exitcode, trace) for exitcode, trace in exits]
    assert guilt.index(min(guilt)) == first


def test_a_lost_connection_is_not_told_as_an_own_failure():
    assert launch._cause(1, LOST) == "lost another process of the run, which died before it (Connection closed by peer)"
    assert launch._cause(1, OWN) == "failed: ValueError: Training loss is nan"
    assert launch._cause(-11, "") == "was killed by signal SIGSEGV"
    assert launch._cause(3, "") == "ended with exit code 3"


# --- who runs where -------------------------------------------------------------------------------


def test_torchruns_variables_are_recboles_settings():
    given = {
        "RANK": "5",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "1.2.3.4",
        "MASTER_PORT": "99",
    }
    expected = {"local_rank": 1, "nproc": 4, "world_size": 8, "offset": 4, "ip": "1.2.3.4", "port": "99"}
    assert torchrun_settings(given) == expected
    assert torchrun_settings({**given, "WORLD_SIZE": "1"}) is None, "one process needs no group"
    for name in given:
        assert torchrun_settings({key: value for key, value in given.items() if key != name}) is None


def test_one_machine_takes_a_free_port_and_several_the_one_that_is_named():
    alone = process_settings(2, -1, "localhost", "5678", 0)
    assert alone.pop("port") not in ("5678", process_settings(2, 2, "localhost", "5678", 0)["port"])
    assert alone == {"nproc": 2, "world_size": 2, "ip": "localhost", "offset": 0}
    assert process_settings(2, -1, "localhost", "99", 0)["port"] == "99"
    assert process_settings(2, 6, "first", "5678", 2)["port"] == "5678"


@pytest.mark.parametrize(("nproc", "world", "offset"), [(2, 2, 1), (4, 3, 0), (0, 2, 0), (1, 2, -1)])
def test_numbers_of_processes_that_do_not_go_together_are_refused(nproc: int, world: int, offset: int):
    with pytest.raises(InputError, match="nproc, world_size, group_offset"):
        process_settings(nproc, world, "localhost", "5678", offset)


@pytest.mark.parametrize(
    ("changes", "n_gpus", "expected"),
    [
        ({"gpu_id": "0,1"}, 2, True),
        ({"gpu_id": "0"}, 2, False),
        ({"gpu_id": "0,1"}, 1, False),
        ({"gpu_id": "0,1", "use_gpu": False}, 2, False),
        ({"gpu_id": ""}, 0, False),
    ],
)
def test_a_gpu_for_each_process_or_the_cpu_for_all(
    changes: dict[str, Any], n_gpus: int, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert runs_on_gpus({"nproc": 2, "use_gpu": True, **changes}) is expected


def test_a_folder_that_only_the_first_machine_sees_is_refused(tmp_path: Path):
    require_shared(tmp_path, Processes(1, 2))
    with pytest.raises(InputError, match=r"checkpoint_dir: .*rank 1 on .* does not see it"):
        require_shared(tmp_path / "elsewhere", Processes(1, 2))


def test_a_single_view_of_a_distributed_config_is_one_of_one_process(config: Callable[..., Any]):
    made = config()
    places = {"nproc": 2, "world_size": 4, "offset": 2, "ip": "first", "port": "99"}
    several = {"single_spec": False, "local_rank": 1, **places}
    made.final_config_dict.update(several)
    assert Processes.of(made) == Processes(3, 4)
    view = single(made)
    assert Processes.of(view) == Processes(0, 1)
    assert (view["single_spec"], view["local_rank"]) == (True, 0)
    assert not set(places) & set(view.final_config_dict)
    assert {key: made[key] for key in several} == several, "the config itself has changed"


def test_the_fingerprint_of_a_run_is_that_of_every_number_of_processes(prepared: Callable[..., Any]):
    """So that it can be resumed by another number, and phases are shared."""
    settings, _, train, *_ = prepared()
    names = [checkpoint.fingerprint(settings, train._dataset, "pretrain")]
    settings.final_config_dict.update(
        single_spec=False, local_rank=1, nproc=2, world_size=2, offset=0, ip="x", port="9", verbose=False, state="error"
    )
    names.append(checkpoint.fingerprint(settings, train._dataset, "pretrain"))
    assert names[0] == names[1]


def test_a_row_of_another_process_does_not_count(prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """39 rows in batches of 37: of the other 2, the third of three processes has none, so it gets the first one."""
    settings, _, train, *_ = prepared(**{**EXACT, "train_batch_size": 37}, train_windows="last", shuffle=False)
    network = PAD(settings, train._dataset)
    network.phase = "pretrain"
    settings.final_config_dict.update(single_spec=False, local_rank=2, offset=0, world_size=3)
    counts: list[int] = []
    monkeypatch.setattr(Processes, "weight_of_mean", lambda self, count, device: counts.append(count) or 1.0)
    full, rest = list(train)
    for batch in (full, rest):
        network.calculate_loss(batch)
    assert (len(full), len(rest)) == (12, 1)
    assert counts == [int(full["item_length"].sum()), 0]


def test_processes_draw_by_themselves_and_the_first_one_as_a_run_of_one_process(prepared: Callable[..., Any]):
    settings, _, train, *_ = prepared(seed=7)
    trainer = PretrainTrainer(settings, PAD(settings, train._dataset))
    seeds = []
    for rank in range(3):
        trainer.processes = Processes(rank, 3)
        trainer._seed()
        seeds.append(torch.initial_seed())
    assert seeds[0] == 8
    assert len(set(seeds)) == 3
