"""The lists of a finished run, against scores of all items and loops over them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from recbole.data.interaction import Interaction
from recbole.quick_start import load_data_and_model

from recbole_pad.__main__ import main
from recbole_pad.errors import InputError
from recbole_pad.quick_start import run_recbole
from recbole_pad.recommend import TrainedRun, recommend


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A finished run of PAD on `tiny`, with its text vectors beside it."""
    from tests.conftest import TINY_SETTINGS

    folder = tmp_path_factory.mktemp("run")
    data_path = request.getfixturevalue("data_path")
    places = {
        "data_path": str(data_path),
        "checkpoint_dir": str(folder / "saved"),
        "text_vectors_dir": str(folder / "v"),
    }
    asked = {key: value for key, value in TINY_SETTINGS.items() if key != "embedding_size"}
    return Path(run_recbole("PAD", "tiny", config_dict={**asked, **places, "epochs": 1})["run_folder"])


def histories(data_path: Path) -> dict[str, list[str]]:
    """Each user's items by time, from the file."""
    rows = list(csv.reader((data_path / "tiny" / "tiny.inter").read_text().splitlines(), delimiter="\t"))[1:]
    found: dict[str, list[tuple[float, str]]] = {}
    for user, item, time in rows:
        found.setdefault(user, []).append((float(time), item))
    return {user: [item for _, item in sorted(own)] for user, own in found.items()}


def expected_lists(run_folder: Path, data_path: Path, k: int, repeats: bool) -> dict[str, list[str]]:
    """Score all items of each user alone by the model that RecBole loads, sort them, leave out the history; loops."""
    _, model, dataset, *_ = load_data_and_model(str(run_folder / "model.pth"))
    model.eval()
    number, token = dataset.field2token_id["item_id"], dataset.field2id_token["item_id"]
    lists = {}
    for user, items in histories(data_path).items():
        newest = [number[item] for item in items][-model.max_seq_length :]
        row = Interaction(
            {
                "user_id": torch.tensor([dataset.field2token_id["user_id"][user]]),
                "item_id_list": torch.tensor([newest + [0] * (model.max_seq_length - len(newest))]),
                "item_length": torch.tensor([len(newest)]),
            }
        )
        with torch.no_grad():
            scores = model.full_sort_predict(row)[0]
        order = [str(token[item]) for item in scores.argsort(descending=True).tolist() if item]
        lists[user] = [item for item in order if repeats or item not in items][:k]
    return lists


def read(file: Path) -> dict[str, list[str]]:
    """user -> items by rank, from the written table."""
    with file.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    assert list(rows[0]) == ["user_id", "rank", "item_id", "score"]
    found: dict[str, list[str]] = {}
    for row in rows:
        assert int(row["rank"]) == len(found.setdefault(row["user_id"], [])) + 1
        found[row["user_id"]].append(row["item_id"])
    return found


@pytest.mark.parametrize(("k", "repeats"), [(5, False), (5, True), (100, False)])
def test_lists_are_the_sorted_scores_of_each_user(
    run_folder: Path, data_path: Path, tmp_path: Path, k: int, repeats: bool, caplog: pytest.LogCaptureFixture
):
    n_lines = recommend(run_folder, tmp_path / "lists.tsv", k, repeats=repeats)
    expected = expected_lists(run_folder, data_path, k, repeats)
    found = read(tmp_path / "lists.tsv")
    assert len(found) == 40  # users of one interaction, too
    assert found == expected
    assert n_lines == sum(map(len, expected.values()))
    assert ("places are empty" in caplog.text) == (k == 100)


def test_scores_fall_and_are_those_of_the_model(run_folder: Path):
    run = TrainedRun.load(run_folder)
    users = run.user_ids(None)
    scores, items = run.top_items(users, 7)
    assert (np.diff(scores) <= 0).all()
    assert scores.shape == items.shape == (40, 7)
    alone = [run.top_items(users[n : n + 1], 7) for n in range(3)]
    for n, (own_scores, own_items) in enumerate(alone):
        np.testing.assert_allclose(own_scores[0], scores[n], rtol=1e-4)
        assert (own_items[0] == items[n]).all()


def test_the_command_lists_the_users_that_are_asked_for(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", str(run_folder), "--users", "u03,u20", "--k", "4"]) == 0
    assert "8 lines: recommendations.tsv" in capsys.readouterr().out
    found = read(Path("recommendations.tsv"))
    assert set(found) == {"u03", "u20"}
    Path("users.txt").write_text("u20\nu03\n")
    assert main(["recommend", str(run_folder), "--users", "@users.txt", "--k=4", "--output", "again.tsv"]) == 0
    assert read(Path("again.tsv")) == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--users", "u03,nobody"], "users: tiny has no interaction of 'nobody'; name users of the .inter file"),
        (["--users", "@none.txt"], "users: none.txt does not exist"),
        (["--k", "0"], "k: 0 is not a whole number from 1"),
        (["--output", "/proc/x/lists.tsv"], "the folder /proc/x cannot be made"),
        (["--align.learning_rate=0.5"], "is of other settings, data, texts or another version"),
        (["--users", "[PAD]"], "has no interaction of '[PAD]'"),
        (["--users", "@latin.txt"], "users: latin.txt is not UTF-8"),
        (["--cold_split=0.3"], "has cold_split"),
        (["--seed=8"], "is of other settings, data, texts"),
    ],
    ids=range(9),
)
def test_what_cannot_be_listed_is_refused(
    run_folder: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes("ü".encode("latin-1"))
    assert main(["recommend", str(run_folder), *words]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["latin.txt"]


def test_a_folder_that_is_no_finished_run_of_pad_is_refused(
    run_folder: Path, tmp_path: Path, settings: Callable[..., dict[str, Any]]
):
    with pytest.raises(InputError, match="is no folder of a finished run"):
        TrainedRun.load(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    (copy / "finetune.pth").unlink()
    with pytest.raises(InputError, match=r"finetune.pth: no such checkpoint"):
        TrainedRun.load(copy)
    given = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump({**given, "model": "SASRec"}))
    with pytest.raises(InputError, match="is a run of SASRec; name a run of PAD"):
        TrainedRun.load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"config_file_list": ["pad_published"], "n_layers": 1},
        {"gate_start": {"rec": [1, 0], "align": [0, 0], "llm": [0, 1], "match": [0, 1], "markov": [1, 1]}},
        {"mmd_bandwidths": (0.5, 1.0)},
        {"phases": ["pretrain"]},
        {"phases": ["pretrain", "finetune"], "experts": ["rec", "markov"]},
    ],
    ids=["published", "unsorted", "tuple", "one phase", "no texts"],
)
def test_runs_of_any_settings_are_found_again(
    changes: dict[str, Any], settings: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    files = changes.get("config_file_list")
    asked = {**settings(epochs=1, checkpoint_dir="saved", text_vectors_dir="vectors"), **changes}
    asked.pop("config_file_list", None)
    folder = Path(str(run_recbole("PAD", "tiny", files, asked)["run_folder"])).absolute()
    monkeypatch.chdir(tmp_path)
    assert recommend(folder, Path("lists.tsv"), k=2) == 80
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.tsv", "there"]  # no vectors were made again
