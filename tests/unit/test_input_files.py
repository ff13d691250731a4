"""Each file that a run reads changes the digests, and no other does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.errors import InputError
from recbole_pad.input_files import input_digests

MODEL = """
from recbole.model.sequential_recommender.sasrec import SASRec
from {base} import {inherited}
class {name}({inherited}):
    pass
"""
SETTINGS = {"text_encoder": ["[file:mine.npy, minilm]", "file:other.npy", "tfidf"], "init_checkpoint": ["start.pth"]}
MODULES = ["one_of_a_test/model.py", "two_of_a_test/model.py"]
READ = ["d.inter", "d.item", "mine.npy", "mine.json", "other.npy", "other.json", "start.pth", *MODULES]


@pytest.fixture
def digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, str | None]]]:
    """Of a dataset `d`, own vectors, a checkpoint, and a backbone in two modules of one file name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in READ:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x")
    Path("unrelated.npy").write_text("x")
    sasrec = "recbole.model.sequential_recommender.sasrec"
    Path("one_of_a_test/model.py").write_text(MODEL.format(base=sasrec, inherited="SASRec", name="Base"))
    Path("two_of_a_test/model.py").write_text(MODEL.format(base="one_of_a_test.model", inherited="Base", name="Mine"))
    values: dict[str, list[Any]] = {**SETTINGS, "backbone": ["two_of_a_test.model:Mine", None]}
    yield lambda: input_digests(tmp_path, "d", lambda key: values.get(key, [None]))
    for name in [name for name in sys.modules if name.startswith(("one_of_a_test", "two_of_a_test"))]:
        del sys.modules[name]


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_read_changes_its_digest_alone(name: str, digests: Callable[[], dict[str, str | None]]):
    before = digests()
    assert sorted(before.values()) == sorted(file_sha256(Path(read)) for read in READ)
    Path(name).write_text(Path(name).read_text() + "\n# changed\n")
    after = digests()
    (changed,) = [key for key in before if before[key] != after[key]]
    assert after[changed] == file_sha256(Path(name))
    Path("unrelated.npy").write_text("changed")
    assert digests() == after


def test_own_vectors_without_a_path_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"text_encoder: 'file:\+tfidf' names no file; write file:PATH.npy"):
        input_digests(tmp_path, "d", lambda key: ["file:+tfidf"])


def test_files_that_are_not_there_are_none(tmp_path: Path):
    assert input_digests(tmp_path, "d", lambda key: [None]) == {"inter": None, "item": None}
    found = input_digests(tmp_path, "d", lambda key: [f"file:{tmp_path}/no.npy"] if key == "text_encoder" else [])
    assert len(found) == 4
    assert not any(found.values())
