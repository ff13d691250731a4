"""Texts encoded in shards, by several processes, or in several runs, come out as if one run had encoded them."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tqdm import tqdm

from recbole_pad.dataset_prep import encode_text, shares
from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.encoders.base import fill_zero_rows
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts
from recbole_pad.dataset_prep.shares import Shards, encode_shared, threads_of_each
from recbole_pad.dataset_prep.text_encoders import TEXT_ENCODERS, SentenceEncoder, TfidfEncoder, text_encoder
from tests.unit.test_encode_text import item_file, tiny_model  # noqa: F401 - a fixture

TEXTS = ["red apple", "green apple", "car engine", "red apple", "oil for a car engine", "red paint", "apple", "engine"]


class OfLength:
    """An encoder without weights: the length of a text, and its number of "a"; "." gives a zero row."""

    name = revision = pooling = prompt = ""
    packages: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.details: dict[str, Any] = {}
        self.seen: list[str] = []

    def encode_each(self, texts: Any, batch_size: int) -> Any:
        self.seen += texts
        rows = [[0.0, 0.0] if text == "." else [len(text), text.count("a")] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(-1, 2)

    def n_cut(self, texts: Any) -> int:
        return sum(len(text) > 15 for text in texts)


class Team:
    """One of several processes, played in turn: the first one last, when the others have come."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def objects_at_first(self, value: Any) -> list[Any] | None:
        return [value] * self.world if self.rank == 0 else None


def filled(shards: Shards, texts: list[str]) -> Any:
    out = np.full((len(texts), shards.width), -1.0, dtype=np.float32)
    shards.fill(out, texts)
    return out


def expected(texts: Iterable[str]) -> list[list[int]]:
    return [[0, 0] if text == "." else [len(text), text.count("a")] for text in texts]


# --- shards ------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    texts=st.lists(st.text("ab.", max_size=5), min_size=1, max_size=30),
    size=st.integers(1, 7),
    world=st.integers(1, 4),
)
def test_each_text_gets_its_vector_whatever_the_shards_and_the_processes(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int, world: int
):
    model = OfLength()
    shards = Shards(tmp_path_factory.mktemp("shards") / "toy", model, texts, size)  # type: ignore[arg-type]
    done = [encode_shared(model, "", shards, 2, False, team=Team(rank, world)) for rank in reversed(range(world))]
    assert done == [False] * (world - 1) + [True]
    assert filled(shards, texts).tolist() == expected(texts)
    assert sorted(model.seen) == sorted(set(texts)), "a text was encoded twice, or not at all"


def test_the_progress_bar_counts_texts_and_tells_speed_and_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm, mininterval=0))  # draws often
    model = OfLength()
    shards = Shards(tmp_path / "toy", model, TEXTS, 2)  # type: ignore[arg-type]
    encode_shared(model, "", shards, 2, True)
    drawn = capsys.readouterr().err.split("\r")
    counts = [re.search(r"\| (\d)/7 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ texts/s\]", line) for line in drawn]
    assert list(dict.fromkeys(int(found[1]) for found in counts if found)) == [2, 4, 6, 7]


def test_the_longest_texts_come_first(tmp_path: Path):
    shards = Shards(tmp_path / "toy", OfLength(), ["a", "ccc", "bb", "aa", "ccc"], 3)  # type: ignore[arg-type]
    assert [shards.texts(number) for number in range(len(shards))] == [["ccc", "aa", "bb"], ["a"]]


def test_a_run_goes_on_with_what_an_earlier_one_has_finished(tmp_path: Path):
    def run(model: OfLength, n_before: int) -> Shards:
        shards = Shards(tmp_path / "toy", model, TEXTS, 2)  # type: ignore[arg-type]
        for number in range(n_before):
            shards.write(number, model.encode_each(shards.texts(number), 2))
        return shards

    first = OfLength()
    run(first, 2)
    second = OfLength()
    shards = run(second, 0)
    encode_shared(second, "", shards, 2, False)
    assert len(first.seen) == 4
    assert not set(first.seen) & set(second.seen)
    assert filled(shards, TEXTS).tolist() == expected(TEXTS)


@pytest.mark.parametrize("change", ["revision", "prompt", "texts", "details", "size"])
def test_shards_of_anything_else_are_not_taken(tmp_path: Path, change: str):
    model, other = OfLength(), OfLength()
    shards = Shards(tmp_path / "toy", model, TEXTS, 2)  # type: ignore[arg-type]
    encode_shared(model, "", shards, 2, False)
    texts = [*TEXTS[:-1], "engines"] if change == "texts" else TEXTS
    if change in ("revision", "prompt"):
        setattr(other, change, "other")
    if change == "details":
        other.details = {"max_tokens": 7}
    fresh = Shards(tmp_path / "toy", other, texts, 3 if change == "size" else 2)  # type: ignore[arg-type]
    assert fresh.missing(range(len(fresh))) == list(range(len(fresh)))
    fresh.remove()
    assert not list(tmp_path.iterdir()), "shards of older texts and settings are removed, too"


@pytest.mark.parametrize("content", [b"", b"half a file", None])
def test_a_damaged_shard_is_refused_with_the_remedy(tmp_path: Path, content: bytes | None):
    model = OfLength()
    shards = Shards(tmp_path / "toy", model, TEXTS, 2)  # type: ignore[arg-type]
    encode_shared(model, "", shards, 2, False)
    file = shards.folder / "000001.npy"
    if content is None:
        np.save(file, np.ones((1, 2)))
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=r"000001\.npy.*delete the folder and encode again"):
        filled(shards, TEXTS)


def test_a_first_process_that_does_not_see_the_shards_of_the_others_says_so(tmp_path: Path):
    model = OfLength()
    shards = Shards(tmp_path / "toy", model, TEXTS, 2)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"2 of 4 shards are not there.*a folder that all machines share"):
        encode_shared(model, "", shards, 2, False, team=Team(0, 2))


@pytest.mark.parametrize("block_rows", [1, 2, 100])
def test_a_zero_row_gets_the_mean_of_all_others(block_rows: int, caplog: pytest.LogCaptureFixture):
    vectors = np.array([[1, 1], [0, 0], [3, 0], [5, 0], [0, 0]], dtype=np.float32)
    fill_zero_rows(vectors, ["a", ".", "bbb", "ccccc", "-"], block_rows)
    assert vectors.tolist() == [[1, 1], [3, pytest.approx(1 / 3)], [3, 0], [5, 0], [3, pytest.approx(1 / 3)]]
    assert "2 of 5 texts gave an all-zero vector and get the mean of the others: '.', '-'" in caplog.text


# --- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def of_length(monkeypatch: pytest.MonkeyPatch) -> OfLength:
    model = OfLength()
    monkeypatch.setitem(TEXT_ENCODERS, "of_length", lambda: model)
    return model


def toy(folder: Path, texts: list[str] = TEXTS) -> Path:
    return item_file(folder, [f"i{number}\t{text}" for number, text in enumerate(texts)])


@pytest.mark.parametrize("stored_as", ["float32", "float16"])
def test_the_file_holds_what_the_shards_hold_and_the_shards_are_gone(
    tmp_path: Path, of_length: OfLength, stored_as: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(encode_text, "BATCHES_PER_SHARD", 1)
    npy = encode_items(
        ItemFile(toy(tmp_path, [*TEXTS, "."])), tmp_path / "v", "toy", text_encoder="of_length", batch_size=3,
        show_progress=False, stored_as=stored_as,
    )  # fmt: skip
    vectors = np.load(npy)
    assert vectors.dtype == stored_as
    assert vectors[:-1].tolist() == expected(TEXTS)
    np.testing.assert_allclose(vectors[-1], np.mean(expected(TEXTS), axis=0), rtol=1e-3)
    assert len(of_length.seen) == 8
    assert {path.name for path in npy.parent.iterdir()} == {npy.name, npy.with_suffix(".json").name}
    assert json.loads(npy.with_suffix(".json").read_text())["dtype"] == stored_as


def damaged(npy: Path) -> None:
    vectors = np.load(npy)
    vectors[0, 0] += 1
    np.save(npy, vectors)


@pytest.mark.parametrize(
    ("change", "n_encoded"),
    [
        (lambda npy, model: None, 0),
        (lambda npy, model: toy(npy.parent.parent, ["blue apple", *TEXTS[1:]]), 8),  # "red apple" is there once more
        (lambda npy, model: setattr(model, "revision", "2"), 7),
        (lambda npy, model: model.details.update(max_tokens=3), 7),
        (lambda npy, model: damaged(npy), 7),
        (lambda npy, model: npy.write_bytes(npy.read_bytes()[:-1]), 7),
        (lambda npy, model: npy.with_suffix(".json").write_text("[]"), 7),
        (lambda npy, model: npy.unlink(), 7),
    ],
)
def test_finished_files_of_the_same_texts_and_settings_are_not_made_again(
    change: Callable[[Path, OfLength], Any], n_encoded: int, tmp_path: Path, of_length: OfLength
):
    items, words = toy(tmp_path), {"text_encoder": "of_length", "show_progress": False}
    npy = encode_items(ItemFile(items), tmp_path / "v", "toy", **words)
    before = npy.with_suffix(".json").read_bytes()
    of_length.seen.clear()
    change(npy, of_length)
    assert encode_items(ItemFile(items), tmp_path / "v", "toy", **words) == npy
    assert len(of_length.seen) == n_encoded
    assert np.load(npy).tolist() == expected(read_item_texts(ItemFile(items), ["title"]).values())
    if not n_encoded:
        assert npy.with_suffix(".json").read_bytes() == before
        encode_items(ItemFile(items), tmp_path / "v", "toy", stored_as="float16", **words)
        assert np.load(npy).dtype == np.float16


def test_texts_that_are_cut_are_counted(tmp_path: Path, of_length: OfLength, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        npy = encode_items(
            ItemFile(toy(tmp_path, [*TEXTS, TEXTS[4]])),
            tmp_path / "v",
            "toy",
            text_encoder="of_length",
            show_progress=False,
        )
    assert "reads the beginnings of 2 of 9 texts only" in caplog.text
    assert json.loads(npy.with_suffix(".json").read_text())["n_cut"] == 2


def test_an_unknown_storage_and_a_number_of_processes_below_one_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"stored_as: 'int8' must be one of float32, float16"):
        encode_items(ItemFile(toy(tmp_path)), tmp_path, "toy", text_encoder="tfidf", stored_as="int8")
    with pytest.raises(InputError, match="nproc must be at least 1, not 0"):
        encode_items(ItemFile(toy(tmp_path)), tmp_path, "toy", text_encoder="tfidf", nproc=0)


def test_values_beyond_float16_are_refused(tmp_path: Path, of_length: OfLength, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_length, "encode_each", lambda texts, size: np.full((len(texts), 2), 1e5, dtype=np.float32))
    with pytest.raises(InputError, match="NaN or infinite"):
        encode_items(
            ItemFile(toy(tmp_path)),
            tmp_path / "v",
            "toy",
            text_encoder="of_length",
            show_progress=False,
            stored_as="float16",
        )


def test_an_encoder_that_learns_from_all_texts_is_run_by_the_first_process_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []
    original = TfidfEncoder.encode
    monkeypatch.setattr(TfidfEncoder, "encode", lambda self, *args: calls.append(1) or original(self, *args))
    for rank in (2, 1, 0):
        npy = encode_items(ItemFile(toy(tmp_path)), tmp_path / "v", "toy", text_encoder="tfidf", team=Team(rank, 3))
    assert calls == [1]
    assert np.array_equal(np.load(npy), original(TfidfEncoder(), TEXTS))


KILLED = """
import sys, time
from pathlib import Path
from recbole_pad.dataset_prep import encode_text
from recbole_pad.dataset_prep.item_texts import ItemFile
from recbole_pad.dataset_prep.text_encoders import TEXT_ENCODERS
from tests.unit.test_shares import OfLength

items, folder, where = sys.argv[1:]

def stop():
    print("half", flush=True)
    time.sleep(60)

class Slow(OfLength):
    def encode_each(self, texts, batch_size):
        if where == "encoding" and len(self.seen) >= 4:
            stop()
        return super().encode_each(texts, batch_size)

def half(shards, out, texts):
    out[: len(texts) // 2] = 1
    out.flush()
    stop()

if where == "joining":
    encode_text.Shards.fill = half
TEXT_ENCODERS["of_length"] = Slow
encode_text.BATCHES_PER_SHARD = 1
encode_text.encode_items(ItemFile(Path(items)), Path(folder), "toy", text_encoder="of_length", batch_size=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("where", "n_done"), [("encoding", 4), ("joining", 7)])
def test_a_run_that_is_killed_leaves_no_half_file_and_goes_on(
    where: str,
    n_done: int,
    tmp_path: Path,
    of_length: OfLength,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setattr(encode_text, "BATCHES_PER_SHARD", 1)
    items, folder = toy(tmp_path), tmp_path / "v"
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(items), str(folder), where], cwd=root, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".lock")
    assert [path.suffix for path in left] == ([".tmp"] if where == "joining" else [])
    npy = encode_items(ItemFile(items), folder, "toy", text_encoder="of_length", batch_size=2, show_progress=False)
    assert np.load(npy).tolist() == expected(TEXTS)
    assert len(of_length.seen) == 7 - n_done, "what the killed run had finished was encoded again"
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy", *(path.suffix for path in left)]
    assert ("left by another run, delete it if that was killed" in caplog.text) == (where == "joining")


@pytest.mark.slow
def test_runs_that_miss_the_same_vectors_wait_for_each_other(
    tmp_path: Path, of_length: OfLength, caplog: pytest.LogCaptureFixture
):
    items, folder = toy(tmp_path), tmp_path / "v"
    root = Path(__file__).resolve().parents[2]
    script = KILLED.replace("time.sleep(60)", "sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", script, str(items), str(folder), "encoding"],
        cwd=root,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "half\n"
        threading.Timer(0.5, other.stdin.close).start()
        npy = encode_items(ItemFile(items), folder, "toy", text_encoder="of_length", batch_size=2, show_progress=False)
        other.wait()
    assert other.returncode == 0
    assert "is being made by another process: waiting for it" in caplog.text
    assert not of_length.seen, "the other run's vectors were made again"
    assert np.load(npy).tolist() == expected(TEXTS)
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".npy"]


# --- processes of this machine -----------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 9])
def test_a_team_makes_the_vectors_of_one_process(world: int, tiny_model: Path, tmp_path: Path):  # noqa: F811
    """Nine processes for seven distinct texts: two have nothing to do."""
    model = text_encoder(str(tiny_model))
    assert isinstance(model, SentenceEncoder)
    shards = Shards(tmp_path / "toy", model, TEXTS, 1)
    for rank in reversed(range(world)):
        encode_shared(model, str(tiny_model), shards, 2, False, team=Team(rank, world))
    found = filled(shards, TEXTS)
    np.testing.assert_allclose(found, model.encode_each(TEXTS, 2), atol=1e-6)
    assert np.array_equal(found[0], found[3]), "equal texts have equal vectors"


@pytest.mark.slow
def test_processes_that_are_started_make_the_same_file_within_rounding(
    tmp_path: Path,
    tiny_model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(encode_text, "BATCHES_PER_SHARD", 1)
    items = toy(tmp_path)
    files = [
        encode_items(
            ItemFile(items),
            tmp_path / str(n),
            "toy",
            text_encoder=str(tiny_model),
            batch_size=2,
            show_progress=False,
            nproc=n,
        )
        for n in (1, 2)
    ]
    one, two = (np.load(file) for file in files)
    np.testing.assert_allclose(two, one, atol=1e-6)
    manifests = [json.loads(file.with_suffix(".json").read_text()) for file in files]
    for manifest in manifests:
        del manifest["created"], manifest["vectors_sha256"]
    assert manifests[0] == manifests[1]


def die(*args: Any) -> None:
    os._exit(9)


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_encoding_with_a_remedy(
    tmp_path: Path,
    tiny_model: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(shares, "_encode_share", die)
    model: Any = text_encoder(str(tiny_model))
    shards = Shards(tmp_path / "toy", model, TEXTS, 2)
    with pytest.raises(InputError, match=r"one of the 2 processes that encode was killed.*smaller --nproc"):
        encode_shared(model, str(tiny_model), shards, 2, False, nproc=2)


def test_processes_share_the_cores_they_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [threads_of_each(nproc) for nproc in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
