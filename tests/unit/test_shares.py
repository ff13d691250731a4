"""Texts encoded by several processes come out as if one had encoded them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recbole_pad.dataset_prep import shares
from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.shares import encode_shared, threads_of_each
from recbole_pad.dataset_prep.text_encoders import SentenceEncoder, TfidfEncoder, text_encoder
from tests.unit.test_encode_text import item_file, tiny_model  # noqa: F401 - a fixture

TEXTS = ["red apple", "green apple", "car engine", "red apple", "oil for a car engine", "red paint", "apple", "engine"]


class Team:
    """One of several processes, played in turn: the first one last, when the others have given their values."""

    def __init__(self, rank: int, world: int, given: dict[int, Any]) -> None:
        self.rank, self.world, self._given = rank, world, given

    def objects_at_first(self, value: Any) -> list[Any] | None:
        self._given[self.rank] = value
        return [self._given[rank] for rank in range(self.world)] if self.rank == 0 else None


def played(model: Any, texts: list[str], world: int) -> list[Any]:
    given: dict[int, Any] = {}
    return [encode_shared(model, "", texts, 2, False, team=Team(rank, world, given)) for rank in reversed(range(world))]


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_a_team_makes_the_vectors_of_one_process(world: int, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):  # noqa: F811
    """Nine processes for seven distinct texts: two have nothing to do."""
    model = text_encoder(str(tiny_model))
    alone = model.encode(TEXTS, 2, False)
    seen: list[str] = []
    original = SentenceEncoder.encode_each

    def spy(self: SentenceEncoder, texts: Any, *args: Any) -> Any:
        seen.extend(texts)
        return original(self, texts, *args)

    monkeypatch.setattr(SentenceEncoder, "encode_each", spy)
    *others, first = played(model, TEXTS, world)
    assert others == [None] * (world - 1)
    np.testing.assert_allclose(first, alone, atol=1e-6)
    assert np.array_equal(first[0], first[3]), "equal texts have equal vectors"
    assert sorted(seen) == sorted(set(TEXTS)), "a text was encoded twice, or not at all"


class OfLength:
    """An encoder without weights: the length of a text, and whether it holds an "a"; "." gives a zero row."""

    name = revision = pooling = prompt = ""
    packages: tuple[str, ...] = ()

    def encode(self, texts: Any, batch_size: int, show_progress: bool) -> Any:
        raise AssertionError("shares are encoded each by itself")

    def encode_each(self, texts: Any, batch_size: int, show_progress: bool) -> Any:
        rows = [[0.0, 0.0] if text == "." else [len(text), "a" in text] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(-1, 2)


def test_a_zero_row_gets_the_mean_of_all_rows_not_of_its_share(caplog: pytest.LogCaptureFixture):
    *_, first = played(OfLength(), ["a", ".", "bbb", "ccccc"], 2)
    assert first.tolist() == [[1, 1], [3, pytest.approx(1 / 3)], [3, 0], [5, 0]]
    assert "1 of 4 texts gave an all-zero vector" in caplog.text


def test_an_encoder_that_learns_from_all_texts_is_run_by_the_first_process_only(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    original = TfidfEncoder.encode
    monkeypatch.setattr(TfidfEncoder, "encode", lambda self, *args: calls.append(1) or original(self, *args))
    *others, first = played(TfidfEncoder(), TEXTS, 3)
    assert others == [None, None]
    assert calls == [1]
    assert np.array_equal(first, original(TfidfEncoder(), TEXTS))


@pytest.mark.slow
def test_processes_that_are_started_make_the_same_file_within_rounding(tmp_path: Path, tiny_model: Path):  # noqa: F811
    items = item_file(tmp_path, [f"i{number}\t{text}" for number, text in enumerate(TEXTS)])
    files = [
        encode_items(
            items, tmp_path / str(n), "toy", text_encoder=str(tiny_model), batch_size=2, show_progress=False, nproc=n
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
    with pytest.raises(InputError, match=r"one of the 2 processes that encode was killed.*smaller --nproc"):
        encode_shared(text_encoder(str(tiny_model)), str(tiny_model), TEXTS, 2, False, nproc=2)


def test_a_number_of_processes_below_one_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="nproc must be at least 1, not 0"):
        encode_items(item_file(tmp_path, ["i0\tred"]), tmp_path, "toy", text_encoder="tfidf", nproc=0)


def test_processes_share_the_cores_they_may_use(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert [threads_of_each(nproc) for nproc in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
