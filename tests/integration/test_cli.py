"""The commands: in fresh processes, and their refusals in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recbole_pad.launch
import recbole_pad.quick_start
from recbole_pad.__main__ import main, run_recbole_main
from recbole_pad.dataset_prep.header import refuse_open_quotes
from recbole_pad.errors import InputError
from recbole_pad.launch import Mailbox

SCRIPTS = Path(sys.executable).parent  # the console scripts of this environment


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120"}
    return subprocess.run(
        [str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


# --- fresh processes ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes"), [("PAD", {"align.epochs": 1}), ("SASRec", {"train_neg_sample_args": None})]
)
def test_run_recbole_trains_a_model_and_prints_its_table(
    model: str, changes: dict[str, Any], settings: Callable[..., dict[str, Any]], tmp_path: Path
):
    asked = settings(model, checkpoint_dir="runs", **changes)
    done = command(SCRIPTS / "run_recbole", f"--model={model}", "-d", "tiny", *flags(asked), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    report = json.loads((folder / "result.json").read_text())
    assert report["model"] == model
    assert report["seed"] == asked["seed"]
    assert [phase["epochs"] for phase in report["phases"].values()] == ([2, 1, 2] if model == "PAD" else [2])
    assert Path(done.stdout.splitlines()[-1].removeprefix("run folder: ")) == folder.relative_to(tmp_path)
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith(f"| {model}")]
    assert [phase.strip() for _, phase in rows] == list(report["phases"])
    hits = report["phases"][list(report["phases"])[-1]]["test"]["masked"]["all"]["hit@10"]
    assert f"{100 * hits:.2f} / " in done.stdout


@pytest.mark.slow
def test_a_refusal_is_one_line_and_exit_code_2(data_path: Path, tmp_path: Path):
    done = command(
        sys.executable, "-m", "recbole_pad", "run", "--dataset=tiny", f"--data_path={data_path}",
        "--adapter_layer=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown config key 'adapter_layer' (did you mean 'adapter_layers'?)")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_names_the_commands(tmp_path: Path):
    done = command(sys.executable, "-m", "recbole_pad", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == ""
    assert all(f"\n    {name}" in done.stdout for name in ("run", "encode", "quickstart"))


@pytest.mark.slow
def test_encode_makes_the_vectors_that_a_run_then_uses(
    data_path: Path, settings: Callable[..., dict[str, Any]], tmp_path: Path
):
    words = [
        "encode",
        "--dataset=tiny",
        f"--data_path={data_path}",
        "--text_encoder=tfidf",
        "--text_fields=title,kind",
    ]
    done = command(SCRIPTS / "recbole-pad", *words, "--text_vectors_dir=vectors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "vectors").glob("*.npy")
    assert f"text vectors: {file.relative_to(tmp_path)}" in done.stdout
    assert np.load(file).shape[0] == 25
    before = file.stat().st_mtime_ns
    asked = settings(text_vectors_dir="vectors", text_fields=["title", "kind"], epochs=1)
    report = recbole_pad.quick_start.run_recbole("PAD", "tiny", config_dict=asked, saved=False)["report"]
    assert [path.stat().st_mtime_ns for path in (tmp_path / "vectors").glob("*.npy")] == [before]
    assert report["text"]["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert report["text"]["columns"] == ["title", "kind"]


# --- refusals, in this process --------------------------------------------------------------------


@pytest.fixture
def refused(data_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*words)``: `run_recbole` with these arguments ends with code 2; its one line of error."""

    def run(*words: str) -> str:
        quiet = ["--state=ERROR", "--show_progress=False", "--text_encoder=tfidf"]
        place = [] if any(word.startswith("--data_path") for word in words) else [f"--data_path={data_path}"]
        monkeypatch.setattr(sys, "argv", ["run_recbole", *place, *words, *quiet])
        capsys.readouterr()
        code = run_recbole_main()
        printed = capsys.readouterr()
        assert code == 2
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model=PDA"], ["model: 'PDA'", "did you mean 'PAD'?"]),
        (["--model=SASRek"], ["model: 'SASRek'", "did you mean 'SASRec'?"]),
        (["--dataset=tinny"], ["tinny/tinny.inter does not exist", "did you mean 'tiny'?", "chain, tiny"]),
        (["--dataset=tiny", "--data_path=nowhere"], ["nowhere/tiny/tiny.inter", "nowhere holds no dataset"]),
        (["--dataset=tiny", "--backbone=GRU4rec"], ["backbone: 'GRU4rec'", "did you mean 'GRU4Rec'?"]),
        (["--dataset=tiny", "--backbone=TransRec"], ["backbone: TransRec cannot serve", "inner product"]),
        (["--dataset=tiny", "--mmd_wieght=1"], ["'mmd_wieght'", "did you mean 'mmd_weight'?"]),
        (["--dataset=tiny", "--aling.loss=bce"], ["'aling.loss'", "did you mean 'align.loss'?"]),
        (["--dataset=tiny", "--loss=bec"], ["loss: 'bec'", "did you mean 'bce'?"]),
        (["--dataset=tiny", "--mmd_weight=-1"], ["mmd_weight: -1"]),
        (["--dataset=tiny", "--valid_metric=foo@10"], ["valid_metric: foo@10 is not computed", "Hit"]),
        (["--dataset=tiny", "--valid_metric=NDCG@7"], ["valid_metric: NDCG@7 is not computed", "topk: [5, 10, 20]"]),
        (["--dataset=tiny", "--train_seconds=abc"], ["train_seconds: 'abc' is not a number in [0.0"]),
        (["--dataset=tiny", "--MAX_ITEM_LIST_LENGTH=0"], ["MAX_ITEM_LIST_LENGTH: 0 is not a whole number in [1"]),
        (["--dataset=tiny", "--train_batch_size=0"], ["train_batch_size: 0 is not a whole number in [1"]),
        (["--dataset=tiny", "--eval_batch_size=0.5"], ["eval_batch_size: 0.5 is not a whole number"]),
        (["--dataset=tiny", "--hidden_dropout_prob=2"], ["hidden_dropout_prob: 2 is not a number in [0.0, 0.99]"]),
        (["--dataset=tiny", "--seed=-5"], ["seed: -5 is not a whole number"]),
        (["--dataset=tiny", "--metrics=['AUC']", "--valid_metric=AUC"], ["metrics, eval_args: Full sort"]),
        (["--dataset=tiny", "--checkpoint_dir=/proc/x"], ["checkpoint_dir: the folder /proc/x cannot be made"]),
        (["--dataset=tiny", "--phase_cache=/proc/x", "--epochs=0"], ["phase_cache: the folder /proc/x cannot be made"]),
        (["--dataset=tiny", "--protocol=pda"], ["protocol: 'pda'", "did you mean 'pad'?"]),
        (["--dataset=tiny", "--config_files=one.yaml two.yaml"], ["config_files: one.yaml does not exist"]),
        (["--dataset=tiny", "--config_files=broken.yaml"], ["broken.yaml: is not YAML"]),
        (["--dataset=tiny", "--config_files=list.yaml"], ["list.yaml holds no `key: value`"]),
        (["--dataset=tiny", "--epochs=2", "--epochs=3"], ["duplicate", "epochs"]),
        (["--dataset=tiny", "--epochs"], ["'--epochs'", "--key=value"]),
        (["--dataset=tiny", "epochs=3"], ["'epochs=3'", "--key=value"]),
        (["--dataset=tiny", "--checkpoint_dir=a=b"], ["'--checkpoint_dir=a=b'", "--key=value"]),
        (["--dataset=tiny", "--phases=['align','pretrain']"], ["phases", "must keep the order"]),
        (["--dataset=tiny", "--init_checkpoint=no.pth"], ["no.pth: no such checkpoint"]),
        (["--dataset=tiny", "--resume=no-folder"], ["resume: no-folder is not a folder"]),
    ],
    ids=lambda value: " ".join(value),
)  # fmt: skip
def test_a_wrong_argument_is_named_with_what_would_be_right(
    words: list[str], parts: list[str], refused: Callable[..., str]
):
    Path("broken.yaml").write_text("epochs: [3\n")
    Path("list.yaml").write_text("- epochs\n")
    message = refused(*([] if words[0].startswith("--dataset") else ["--dataset=tiny"]), *words)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("header", "parts"),
    [
        ("\ufeffuser_id:token\titem_id:token\ttimestamp:float", ["byte order mark", "UTF-8 without one"]),
        ("user_id\titem_id\ttimestamp", ["line 1", "'user_id' has no type", "write user_id:token"]),
        ("user_id:token\titem_id:token\ttimestamp:int", ["'timestamp' has no type of token, float"]),
        ("user_id:token\tproduct:token\ttimestamp:float", ["no column 'item_id'", "product", "--ITEM_ID_FIELD="]),
        ("user_id:token\titem_id:token\tdate:float", ["no column 'timestamp'", "date", "--TIME_FIELD="]),
        ("user_id:token\titem_id:token\ttimestamp:token", ["'timestamp' is of type token; write timestamp:float"]),
        ("user_id:float\titem_id:token\ttimestamp:float", ["'user_id' is of type float; write user_id:token"]),
    ],
    ids=range(7),
)
def test_a_wrong_header_is_named_with_what_would_be_right(header: str, parts: list[str], refused: Callable[..., str]):
    Path("data/odd").mkdir(parents=True)
    Path("data/odd/odd.inter").write_text(header + "\nu\ti\t1\n")
    message = refused("--model=PAD", "--dataset=odd", "--data_path=data")
    for part in ["data/odd/odd.inter", *parts]:
        assert part in message


@pytest.mark.parametrize(
    ("reviews", "parts"),
    [
        (['"good', "fine", 'bad"', "ok"], ["line 2", "swallows the lines up to 4", "single quotes"]),
        (['"good', "fine"], ["line 2", "unexpected end of data"]),
        (['"Weird Al" again', "fine"], ["line 2", "expected after"]),
    ],
)
def test_a_quote_that_would_swallow_interactions_is_refused(
    reviews: list[str], parts: list[str], refused: Callable[..., str]
):
    Path("data/odd").mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\treview:token_seq"]
    lines += [f"u\ti{n}\t{n}\t{review}" for n, review in enumerate(reviews)]
    Path("data/odd/odd.inter").write_text("\n".join(lines) + "\n")
    message = refused("--model=PAD", "--dataset=odd", "--data_path=data")
    for part in ["data/odd/odd.inter", *parts]:
        assert part in message


@pytest.mark.parametrize("text", ['12" disc', '"good"', '"a ""b"" c"', 'said "no"'])
def test_other_quotes_are_not(text: str, tmp_path: Path):
    file = tmp_path / "some.inter"
    file.write_text(f"user_id:token\treview:token_seq\nu\t{text}\nv\tfine\n")
    refuse_open_quotes(file)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--protocol=pad"], ["tiny.item has no column 'class'; it has item_id, title, kind", "--selected_features="]),
        (["--protocol=pad", "--dataset=bare"], ["bare.item does not exist", "SASRecF reads columns of items"]),
        (
            ["--selected_features=['kind']", "--load_col={'inter': ['user_id', 'item_id', 'timestamp']}"],
            ["load_col", "leaves out the column 'kind' of items", "add item: [item_id, kind]"],
        ),
    ],
    ids=range(3),
)
def test_a_model_of_item_features_without_them_is_refused(
    words: list[str], parts: list[str], refused: Callable[..., str], data_path: Path
):
    Path("data/bare").mkdir(parents=True)
    Path("data/bare/bare.inter").write_text((data_path / "tiny" / "tiny.inter").read_text())
    place = "data" if "--dataset=bare" in words else str(data_path)
    message = refused("--model=SASRecF", "--dataset=tiny", *words, f"--data_path={place}")
    for part in parts:
        assert part in message


def test_columns_of_other_names_give_the_same_numbers(settings: Callable[..., dict[str, Any]], data_path: Path):
    Path("data/renamed").mkdir(parents=True)
    names = {"user_id:": "who:", "item_id:": "what:", "timestamp:": "when:"}
    for kind in ("inter", "item"):
        header, _, rest = (data_path / "tiny" / f"tiny.{kind}").read_text().partition("\n")
        for name, other in names.items():
            header = header.replace(name, other)
        Path(f"data/renamed/renamed.{kind}").write_text(f"{header}\n{rest}")
    other = {"USER_ID_FIELD": "who", "ITEM_ID_FIELD": "what", "TIME_FIELD": "when", "data_path": "data"}
    results = [
        recbole_pad.quick_start.run_recbole("PAD", dataset, config_dict=settings(epochs=1, **changes), saved=False)
        for dataset, changes in (("tiny", {}), ("renamed", other))
    ]
    assert results[0]["test_result"] == results[1]["test_result"]


def test_encode_refuses_what_it_does_not_know(capsys: pytest.CaptureFixture[str]):
    assert main(["encode", "--dataset=tiny", "--epochs=3"]) == 2
    assert capsys.readouterr().err == "error: encode does not know --epochs=3; see recbole-pad encode --help\n"


def test_encode_refuses_a_dataset_that_is_not_there(capsys: pytest.CaptureFixture[str]):
    assert main(["encode", "--dataset=tiny", "--data_path=nowhere", "--text_encoder=tfidf"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "nowhere/tiny/tiny.item" in line


def test_a_wrong_command_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as info:
        main(["rnu"])
    assert info.value.code == 2
    assert "invalid choice: 'rnu'" in capsys.readouterr().err


def test_errors_that_are_not_the_users_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(recbole_pad.quick_start, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run"])


# --- arguments ------------------------------------------------------------------------------------


def test_the_flags_are_those_of_recboles_script(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    def run(*args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs, sys.argv[1:]))

    monkeypatch.setattr(recbole_pad.quick_start, "run", run)
    words = "-m SASRec -d beauty --nproc 2 --ip=1.2.3.4 --port=99 --world_size 4 --group_offset=2".split()
    assert main(["run", *words, "--config_files", "a.yaml b.yaml", "--epochs=3"]) == 0
    assert main(["run"]) == 0
    several = {"nproc": 2, "world_size": 4, "ip": "1.2.3.4", "port": "99", "group_offset": 2}
    single = {"nproc": 1, "world_size": -1, "ip": "localhost", "port": "5678", "group_offset": 0}
    assert calls == [
        (("SASRec", "beauty", ["a.yaml", "b.yaml"]), several, ["--epochs=3"]),
        (("PAD", "ml-100k", None), single, []),
    ]


# --- several processes ----------------------------------------------------------------------------


def test_fewer_gpus_than_processes_leave_them_on_the_cpu(
    settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """With a word about it: one GPU may be what the user has counted on."""
    spawned: list[Any] = []
    caplog.set_level("WARNING")  # RecBole's logger of an earlier test may have raised it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # RecBole's Config sets it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(recbole_pad.launch, "run_processes", lambda *args: spawned.append(args))
    recbole_pad.quick_start.run("PAD", "tiny", config_dict=settings(), nproc=2)
    assert len(spawned) == 1
    assert "nproc: 2 processes need as many GPUs, there are 1: running on the CPU" in caplog.text


def test_torchruns_processes_and_our_own_are_not_started_together(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    for name, value in zip(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"), "1122", strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "99")
    assert "torchrun has started the processes already" in refused("--dataset=tiny", "--nproc=2")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A machine that seems to have two GPUs; what would be spawned is recorded instead."""
    spawned: list[Any] = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # RecBole's Config sets it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(recbole_pad.launch, "run_processes", lambda *args: spawned.append(args))
    return spawned


def test_fewer_named_gpus_than_processes_are_refused(refused: Callable[..., str], two_gpus: list[Any]):
    assert "gpu_id: '0' names too few GPUs for nproc 2; set --gpu_id=0,1" in refused("--dataset=tiny", "--nproc=2")
    assert two_gpus == []


def test_a_wrong_dataset_is_refused_before_processes_are_started(refused: Callable[..., str], two_gpus: list[Any]):
    assert "did you mean 'tiny'?" in refused("--dataset=tinny", "--nproc=2", "--gpu_id=0,1")
    assert two_gpus == []


def test_every_process_runs_the_plugins_function(
    settings: Callable[..., dict[str, Any]], two_gpus: list[Any], tmp_path: Path
):
    asked = settings(gpu_id="0,1")
    recbole_pad.quick_start.run("PAD", "tiny", config_dict=asked, nproc=2, port="99", saved=False)
    ((function, arguments, places, remedy),) = two_gpus
    assert function is recbole_pad.quick_start.run_recboles
    assert places == {"nproc": 2, "world_size": 2, "ip": "localhost", "port": "99", "offset": 0}
    mailbox = Mailbox(tmp_path)
    *names, options = arguments(mailbox)
    assert names == ["PAD", "tiny", None]
    assert options["saved"] is False
    assert options["config_dict"] == {**asked, **places}
    options["queue"].put({"test_result": 1})
    options["folder_opened"](Path("saved/run"))
    assert (mailbox.found("result"), mailbox.found("run_folder")) == ({"test_result": 1}, "saved/run")
    assert "--resume=saved/run" in remedy("saved/run")


def test_a_process_gets_its_rank(monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []
    monkeypatch.setattr(recbole_pad.quick_start, "run_recbole", lambda *args, **kwargs: calls.append((args, kwargs)))
    given = {"config_dict": {"nproc": 2}, "queue": None}
    recbole_pad.quick_start.run_recboles(1, "PAD", "tiny", None, given)
    assert calls == [(("PAD", "tiny", None), {"config_dict": {"nproc": 2, "local_rank": 1}, "queue": None})]
    with pytest.raises(ValueError, match="must be a dict"):
        recbole_pad.quick_start.run_recboles(1, "PAD", "tiny", None)


def test_a_model_name_is_checked_before_anything_is_read():
    with pytest.raises(InputError, match="did you mean 'BERT4Rec'"):
        recbole_pad.quick_start.run_recbole("BERTRec", "no-such-dataset")
