from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_pad import checkpoint
from recbole_pad.checkpoint import RunFolder
from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.errors import InputError
from recbole_pad.phases import PHASES

CONTENT = {
    "phase": "align",
    "record": {"epochs": 3, "best_valid_result": {"ndcg@10": 0.5}},
    "modules": {"gate": {"weight": torch.arange(6.0).view(2, 3)}},
    "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]).state_dict(),
}


# --- files ----------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(tmp_path: Path):
    file = tmp_path / "new" / "folder" / "align.pth"
    checkpoint.save(file, CONTENT)
    loaded = checkpoint.load(file)
    assert loaded.pop("format") == checkpoint.FORMAT
    assert torch.equal(loaded["modules"].pop("gate")["weight"], torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    assert loaded == {**CONTENT, "modules": {}}
    assert [path.name for path in file.parent.iterdir()] == ["align.pth"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        raise error

    with pytest.raises(type(error)):
        write_whole(file, write)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert temporary.parent == file.parent, "a rename is atomic only inside one file system"
        assert file.read_text() == "old"

    write_whole(file, write)
    assert file.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_written_file_has_the_permissions_of_an_ordinary_one(mask: int, tmp_path: Path):
    """A shared phase_cache must be readable by those for whom the user's umask allows it."""
    before = os.umask(mask)
    try:
        checkpoint.save(tmp_path / "file.pth", CONTENT)
        (tmp_path / "ordinary").write_text("")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file.pth", "ordinary")]
    assert modes[0] == modes[1] == 0o666 & ~mask


def test_json_is_written_readable_and_whole(tmp_path: Path):
    file = tmp_path / "result.json"
    checkpoint.write_json(file, {"title": "Ürümqi", "value": 0.1})
    assert "Ürümqi" in file.read_text(encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8")) == {"title": "Ürümqi", "value": 0.1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_json_and_keeps_the_old_file(value: float, tmp_path: Path):
    file = tmp_path / "result.json"
    file.write_text("old")
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoint.write_json(file, {"value": [value]})
    assert file.read_text() == "old"


# --- files that cannot be read --------------------------------------------------------------------


def refused(file: Path) -> str:
    with pytest.raises(InputError) as info:
        checkpoint.load(file)
    message = str(info.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()], ids=["missing", "folder"])
def test_a_missing_file_is_refused(make: Callable[[Path], None], tmp_path: Path):
    make(tmp_path / "align.pth")
    assert "no such checkpoint" in refused(tmp_path / "align.pth")


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path):
    file = tmp_path / "align.pth"
    checkpoint.save(file, CONTENT)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole))])
    assert "truncated" in refused(file)


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x80\x04.", b"PK\x03\x04"])
def test_a_file_of_something_else_is_refused(content: bytes, tmp_path: Path):
    file = tmp_path / "align.pth"
    file.write_bytes(content)
    assert "another program" in refused(file)


class Touch:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", [torch.save, "legacy", "pickle"])
def test_a_malicious_file_is_refused_and_runs_nothing(writer: Any, tmp_path: Path):
    file, victim = tmp_path / "align.pth", tmp_path / "victim"
    content = {"format": checkpoint.FORMAT, "modules": Touch(victim)}
    if writer == "pickle":
        file.write_bytes(pickle.dumps(content))
    elif writer == "legacy":
        torch.save(content, file, _use_new_zipfile_serialization=False)
    else:
        writer(content, file)
    refused(file)
    assert not victim.exists()
    torch.load(file, weights_only=False) if writer != "pickle" else pickle.loads(file.read_bytes())
    assert victim.exists(), "the file was harmless, the test shows nothing"


def test_recboles_own_checkpoint_is_refused(config: Callable[..., Any], tmp_path: Path):
    """It holds a Config object, which is not read; one of tensors alone lacks our format."""
    torch.save({"config": config(), "state_dict": {}, "epoch": 1}, tmp_path / "model.pth", pickle_protocol=4)
    refused(tmp_path / "model.pth")
    torch.save({"state_dict": {"weight": torch.ones(2)}, "epoch": 1}, tmp_path / "plain.pth")
    assert "load_data_and_model" in refused(tmp_path / "plain.pth")


@pytest.mark.parametrize("content", [[1, 2], {"format": "recbole_pad checkpoint 0"}, {"format": None}])
def test_a_file_of_another_format_is_refused(content: Any, tmp_path: Path):
    torch.save(content, tmp_path / "align.pth")
    assert repr(checkpoint.FORMAT) in refused(tmp_path / "align.pth")


# --- fingerprint ----------------------------------------------------------------------------------


@pytest.fixture
def prints(prepared: Callable[..., Any]) -> Callable[..., dict[str, str]]:
    """``prints(dataset="tiny", **changes)``: the fingerprint of each phase."""

    def make(dataset: str = "tiny", **changes: Any) -> dict[str, str]:
        config, _, train, _, _ = prepared("PAD", dataset, **changes)
        return {phase: checkpoint.fingerprint(config, train._dataset, phase) for phase in PHASES}

    return make


def changed(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [phase for phase in PHASES if one[phase] != other[phase]]


ALL = ["pretrain", "align", "finetune"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        # what determines every phase
        ({"seed": 8}, ALL),
        ({"backbone": "GRU4Rec", "num_layers": 1}, ALL),
        ({"hidden_size": 8}, ALL),
        ({"hidden_dropout_prob": 0.2}, ALL),
        ({"MAX_ITEM_LIST_LENGTH": 5}, ALL),
        ({"train_rows": "prefixes"}, ALL),
        ({"positions": "absolute"}, ALL),
        ({"learning_rate": 0.02}, ALL),
        ({"epochs": 3}, ALL),
        ({"train_batch_size": 17}, ALL),
        ({"loss": "bce"}, ALL),
        ({"unseen_items": "raw"}, ALL),
        ({"valid_metric": "Hit@10"}, ALL),
        ({"mask_history": False}, ALL),
        ({"bucket_by_length": False}, ALL),
        ({"pretrain.learning_rate": 0.02}, ALL),
        ({"weight_average": 0.99}, ALL),
        # what alignment reads first
        ({"mmd_weight": 0.3}, ["align", "finetune"]),
        ({"anchor_weight": 0.5}, ["align", "finetune"]),
        ({"align_start": "pretrain"}, ["align", "finetune"]),
        ({"adapter_layers": 1}, ["align", "finetune"]),
        ({"fusion": "concat"}, ["align", "finetune"]),
        ({"text_transform": "none"}, ["align", "finetune"]),
        ({"text_fields": ["title", "kind"]}, ["align", "finetune"]),
        ({"align.learning_rate": 0.02}, ["align", "finetune"]),
        ({"align.mmd_weight": 0.3}, ["align", "finetune"]),
        ({"align.epochs": 3}, ["align", "finetune"]),
        # what only the last phase reads
        ({"gate_start": {"rec": [1, 0], "align": [-4, -5], "llm": [0, 1]}}, ["finetune"]),
        ({"gate_learning_rate": 0.5}, ["finetune"]),
        ({"gate_norm": "sigmoid"}, ["finetune"]),
        ({"gate_fit": "none"}, ["finetune"]),
        ({"n_bins": 4}, ["finetune"]),
        ({"experts": ["rec", "llm"]}, ["finetune"]),
        ({"gate_users": "none"}, ["finetune"]),
        ({"markov_decay": 0.5}, ["finetune"]),
        ({"finetune.weight_average": 0}, ["finetune"]),
        ({"finetune.learning_rate": 0.02}, ["finetune"]),
        ({"eval_batch_size": 7}, ["finetune"]),
        # where and how a run happens
        ({"checkpoint_dir": "elsewhere", "show_progress": True, "state": "INFO"}, []),
        ({"text_vectors_dir": "elsewhere"}, []),
        ({"metrics": ["Hit", "NDCG"], "topk": [10, 30]}, []),
        ({"phase_cache": "cache", "resume": True}, []),
        ({"protocol": "pad"}, []),
    ],
    ids=str,
)  # fmt: skip
def test_a_fingerprint_changes_in_the_phases_that_read_a_setting(
    changes: dict[str, Any], expected: list[str], prints: Callable[..., Any]
):
    assert changed(prints(), prints(**changes)) == expected


def test_what_the_joint_loss_changes_is_read_in_the_last_phase(prints: Callable[..., Any]):
    experts = ["rec", "align", "llm", "match"]
    changes = {"gate_fit": "train", "expert_loss": "joint"}
    assert changed(prints(experts=experts), prints(experts=experts, **changes)) == ["finetune"]


def test_phases_have_different_fingerprints_of_16_hex_digits(prints: Callable[..., Any]):
    found = prints()
    assert len(set(found.values())) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in found.values())


def copy_of_tiny(data_path: Path, folder: Path, edit: Callable[[dict[str, str]], None]) -> str:
    (folder / "tiny").mkdir(parents=True)
    files = {name: (data_path / "tiny" / f"tiny.{name}").read_text() for name in ("inter", "item")}
    edit(files)
    for name, text in files.items():
        (folder / "tiny" / f"tiny.{name}").write_text(text)
    return str(folder)


def test_the_place_of_the_data_does_not_matter(data_path: Path, tmp_path: Path, prints: Callable[..., Any]):
    folder = copy_of_tiny(data_path, tmp_path / "copy", lambda files: None)
    assert changed(prints(), prints(data_path=folder, text_vectors_dir="other")) == []


def test_one_other_interaction_changes_every_phase(data_path: Path, tmp_path: Path, prints: Callable[..., Any]):
    def edit(files: dict[str, str]) -> None:
        lines = files["inter"].splitlines()
        row = next(number for number, line in enumerate(lines) if line.startswith("u30\t"))
        user, item, time = lines[row].split("\t")
        lines[row] = "\t".join([user, "i02" if item == "i01" else "i01", time])
        files["inter"] = "\n".join(lines)

    folder = copy_of_tiny(data_path, tmp_path / "copy", edit)
    assert changed(prints(), prints(data_path=folder, text_vectors_dir="other")) == ALL


def test_another_text_changes_the_phases_that_read_texts(data_path: Path, tmp_path: Path, prints: Callable[..., Any]):
    def edit(files: dict[str, str]) -> None:
        files["item"] = files["item"].replace("red round box", "red round bowl")

    folder = copy_of_tiny(data_path, tmp_path / "copy", edit)
    assert changed(prints(), prints(data_path=folder, text_vectors_dir="other")) == ["align", "finetune"]


def test_experts_without_text_need_no_file_of_items(data_path: Path, tmp_path: Path, prepared: Callable[..., Any]):
    """Of the Markov expert too; a phase that reads texts says which file is missing."""
    folder = copy_of_tiny(data_path, tmp_path / "copy", lambda files: files.pop("item"))
    without = {"data_path": folder, "phases": ["pretrain", "finetune"]}
    found = {}
    for path in (folder, str(data_path)):
        config, _, train, _, _ = prepared(**{**without, "data_path": path, "experts": ["rec", "markov"]})
        found[path] = checkpoint.fingerprint(config, train._dataset, "finetune")
    assert len(set(found.values())) == 1  # texts that are there, but not read, make no difference
    config, _, train, _, _ = prepared(**without, experts=["rec", "llm"])
    with pytest.raises(InputError, match=r"tiny\.item"):
        checkpoint.fingerprint(config, train._dataset, "finetune")


def test_the_initial_weights_count_by_content_not_by_name(tmp_path: Path, prints: Callable[..., Any]):
    for name, value in (("one", 1.0), ("other", 2.0)):
        checkpoint.save(tmp_path / f"{name}.pth", {"modules": {"gate": {"weight": torch.tensor(value)}}})
    shutil.copy(tmp_path / "one.pth", tmp_path / "same.pth")
    one, same, other = (prints(init_checkpoint=str(tmp_path / f"{name}.pth")) for name in ("one", "same", "other"))
    assert changed(one, same) == []
    assert changed(one, other) == changed(one, prints()) == ALL


def test_the_initial_weights_count_where_an_expert_starts_as_a_copy_of_theirs(
    tmp_path: Path, prepared: Callable[..., Any]
):
    found = []
    for name, value in (("one", 1.0), ("other", 2.0)):
        file = tmp_path / f"{name}.pth"
        checkpoint.save(file, {"modules": {"experts.rec": {"weight": torch.tensor(value)}}})
        config, _, train, _, _ = prepared(
            phases=["align"], align_start="pretrain", init_checkpoint=str(file), init_experts="[rec]"
        )
        found.append(checkpoint.fingerprint(config, train._dataset, "align"))
    assert found[0] != found[1]


def test_earlier_phases_left_out_change_the_later_ones(prepared: Callable[..., Any], prints: Callable[..., Any]):
    config, _, train, _, _ = prepared(phases=["align", "finetune"])
    found = {phase: checkpoint.fingerprint(config, train._dataset, phase) for phase in ("align", "finetune")}
    whole = prints()
    assert found["align"] != whole["align"]
    assert found["finetune"] != whole["finetune"]


def test_later_phases_left_out_change_nothing(prepared: Callable[..., Any], prints: Callable[..., Any]):
    config, _, train, _, _ = prepared(phases=["pretrain", "align"])
    found = {phase: checkpoint.fingerprint(config, train._dataset, phase) for phase in ("pretrain", "align")}
    assert found == {phase: value for phase, value in prints().items() if phase != "finetune"}


# --- run folders ----------------------------------------------------------------------------------


def test_runs_of_the_same_second_get_different_folders(config: Callable[..., Any], tmp_path: Path):
    settings = config(checkpoint_dir=str(tmp_path / "saved"))
    paths = {RunFolder.create(settings, "name").path for _ in range(12)}
    assert len(paths) == 12
    assert all(path.is_dir() and not list(path.iterdir()) for path in paths)
    assert all(path.name.startswith("PAD-tiny-") and path.name.endswith("-name") for path in paths)


def test_the_newest_run_of_a_name_is_found(config: Callable[..., Any], tmp_path: Path):
    settings = config(checkpoint_dir=str(tmp_path / "saved"))
    assert RunFolder.find(settings, "name") is None
    runs = [RunFolder.create(settings, name) for name in ("name", "name", "other", "name")]
    for age, run in enumerate(runs):
        os.utime(run.path, (1000 + age, 1000 + age))
    os.utime(runs[1].path, (9000, 9000))
    assert RunFolder.find(settings, "name").path == runs[1].path
    assert RunFolder.find(settings, "other").path == runs[2].path
    assert RunFolder.find(settings, "nam") is None
    assert RunFolder.find(config(dataset="chain", checkpoint_dir=str(tmp_path / "saved")), "name") is None


def test_the_files_of_a_run_lie_in_its_folder(tmp_path: Path):
    folder = RunFolder(tmp_path)
    files = [folder.phase_file(phase) for phase in PHASES]
    files += [folder.last_file, folder.model_file, folder.result_file]
    assert len(set(files)) == 6
    assert {file.parent for file in files} == {tmp_path}


def test_initial_weights_of_an_unfinished_phase_count_by_their_bytes(tmp_path: Path, prints: Callable[..., Any]):
    for name, value, finished in (("half", 1.0, False), ("whole", 2.0, True)):
        content = {"fingerprint": "same", "finished": finished, "modules": {"gate": {"weight": torch.tensor(value)}}}
        checkpoint.save(tmp_path / f"{name}.pth", content)
    half, whole = (prints(init_checkpoint=str(tmp_path / f"{name}.pth")) for name in ("half", "whole"))
    assert changed(half, whole) == ALL
