"""Transformed text vectors on disk: equal to those in memory, made once, and never used when damaged."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_pad.data import text_cache
from recbole_pad.data.text_cache import MappedVectors, cache_file, transformed_on_disk
from recbole_pad.data.text_table import TextTable, open_text_table
from recbole_pad.errors import InputError
from recbole_pad.nn import text_transforms
from recbole_pad.nn.text_transforms import transform_text

ITEMS = [f"i{n}" for n in range(40)]
SPECS = ["none", "center", "whiten", "whiten:3", "pca:2"]


@pytest.fixture
def table(tmp_path: Path) -> TextTable:
    """Vectors of 40 items, of which RecBole knows 30, in another order; file and dataset share no order."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 1
    np.save(tmp_path / "own.npy", vectors.astype(np.float32))
    (tmp_path / "own.json").write_text(json.dumps({"items": ITEMS}))
    tokens = ["[PAD]", *rng.permutation(ITEMS)[:30].tolist()]
    return open_text_table(tmp_path / "own.npy", tokens, expected_digest=None, rebuild="make it")


def caches(table: TextTable) -> list[Path]:
    return sorted(path for path in table.path.parent.glob("*.npy") if path != table.path)


def rows_of(vectors: object) -> torch.Tensor:
    assert isinstance(vectors, MappedVectors)
    return vectors.rows(None)


@pytest.mark.parametrize("spec", SPECS)
def test_on_disk_they_are_those_in_memory(table: TextTable, spec: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_transforms, "NUMBERS_PER_BLOCK", 35)  # seven rows
    in_memory = table.transformed(spec, 1)
    assert isinstance(in_memory, torch.Tensor)
    assert torch.equal(in_memory, transform_text(table.read(), spec))
    on_disk = table.transformed(spec, 0)
    assert isinstance(on_disk, MappedVectors)
    assert on_disk.shape == tuple(in_memory.shape)
    assert torch.equal(rows_of(on_disk), in_memory)
    assert not rows_of(on_disk)[0].any()
    ids = torch.tensor([3, 0, 29, 3])
    assert torch.equal(on_disk.rows(ids), in_memory[ids])


def test_what_is_larger_than_the_limit_goes_to_disk(table: TextTable):
    """31 rows of 5, or of 2, float32 numbers."""
    assert not table.stays_on_disk("whiten", 31 * 5 * 4 / 1e6)
    assert table.stays_on_disk("whiten", 31 * 5 * 4 / 1e6 - 1e-6)
    assert not table.stays_on_disk("pca:2", 31 * 2 * 4 / 1e6)
    assert isinstance(table.transformed("pca:2", 31 * 2 * 4 / 1e6), torch.Tensor)
    assert isinstance(table.transformed("whiten", 31 * 2 * 4 / 1e6), MappedVectors)


def test_they_are_made_once(table: TextTable, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with caplog.at_level(logging.INFO):
        first = rows_of(table.transformed("whiten", 0)).clone()
    assert "writing the transformed text vectors of 30 items" in caplog.text
    monkeypatch.setattr(text_cache, "transformed_blocks", lambda *_: pytest.fail("made again"))
    assert torch.equal(rows_of(table.transformed("whiten", 0)), first)
    assert len(caches(table)) == 1


def test_other_items_another_transform_or_other_vectors_have_a_file_of_their_own(table: TextTable, tmp_path: Path):
    rows_of(table.transformed("whiten", 0))
    rows_of(table.transformed("center", 0))
    tokens = ["[PAD]", *ITEMS]
    other = open_text_table(table.path, tokens, expected_digest=None, rebuild="make it")
    expected = transform_text(other.read(), "center")
    assert torch.equal(rows_of(other.transformed("center", 0)), expected)
    np.save(table.path, np.load(table.path) * 2)
    changed = open_text_table(table.path, tokens, expected_digest=None, rebuild="make it")
    assert torch.equal(rows_of(changed.transformed("center", 0)), 2 * expected)
    assert len(caches(table)) == 4


def flip_a_byte(npy: Path) -> None:
    content = bytearray(npy.read_bytes())
    content[-7] ^= 1
    npy.write_bytes(content)


def rewrite(npy: Path, **changes: object) -> None:
    manifest = json.loads(npy.with_suffix(".json").read_text())
    npy.with_suffix(".json").write_text(json.dumps({**manifest, **changes}))


DAMAGES = {
    "a flipped bit": flip_a_byte,
    "half a file": lambda npy: npy.write_bytes(npy.read_bytes()[:300]),
    "an empty file": lambda npy: npy.write_bytes(b""),
    "no manifest": lambda npy: npy.with_suffix(".json").unlink(),
    "no file": lambda npy: npy.unlink(),
    "half a manifest": lambda npy: npy.with_suffix(".json").write_text('{"format": 1, "ke'),
    "not a manifest": lambda npy: npy.with_suffix(".json").write_text("[1]"),
    "another key": lambda npy: rewrite(npy, key="0" * 64),
    "another format": lambda npy: rewrite(npy, format=99),
    "other items": lambda npy: rewrite(npy, n_items=30),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_made_again(table: TextTable, damage: str, caplog: pytest.LogCaptureFixture):
    expected = rows_of(table.transformed("whiten", 0)).clone()
    (npy,) = caches(table)
    DAMAGES[damage](npy)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert torch.equal(rows_of(table.transformed("whiten", 0)), expected)
    assert "writing the transformed text vectors" in caplog.text
    assert ("is damaged" in caplog.text) == (not damage.startswith("no "))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert torch.equal(rows_of(table.transformed("whiten", 0)), expected)
    assert not caplog.text


def test_a_changed_source_is_refused_before_the_cache_is_looked_at(table: TextTable):
    table.transformed("whiten", 0)
    np.save(table.path, np.load(table.path) + 1)
    with pytest.raises(InputError, match="have changed since they were checked"):
        table.transformed("whiten", 0)


def test_a_break_while_writing_leaves_nothing(table: TextTable, monkeypatch: pytest.MonkeyPatch):
    def breaking(vectors: object, spec: str) -> object:
        width, blocks = text_transforms.transformed_blocks(table.read(), spec)

        def some() -> object:
            yield next(blocks)
            raise KeyboardInterrupt

        return width, some()

    monkeypatch.setattr(text_cache, "transformed_blocks", breaking)
    with pytest.raises(KeyboardInterrupt):
        table.transformed("whiten", 0)
    assert sorted(path.name for path in table.path.parent.iterdir()) == ["own.json", "own.npy"]


def test_a_folder_that_cannot_be_written_names_the_key_that_avoids_it(table: TextTable, tmp_path: Path):
    (tmp_path / "none").write_text("a file where a folder should be")
    nowhere = cache_file(tmp_path / "none" / "own.npy", "whiten", "0" * 64)
    with pytest.raises(InputError, match=r"none.*own\.whiten\.0{16}\.npy: .* raise text_memory_mb"):
        transformed_on_disk(table.read(), "whiten", nowhere, "0" * 64)


def test_bad_transforms_are_refused_as_in_memory(table: TextTable):
    with pytest.raises(InputError, match="choose one of none, center"):
        table.transformed("zca", 0)
    with pytest.raises(InputError, match="the vectors have 5"):
        table.transformed("pca:6", 0)
    assert not caches(table)


def test_copies_share_the_file_and_hold_no_rows(table: TextTable):
    vectors = table.transformed("center", 0)
    expected = rows_of(vectors).clone()
    assert copy.deepcopy(vectors) is vectors
    stored = pickle.dumps(vectors)
    assert len(stored) < 600 < expected.numel() * 4
    assert torch.equal(rows_of(pickle.loads(stored)), expected)


def test_writing_into_rows_changes_neither_the_file_nor_later_rows(table: TextTable):
    vectors = table.transformed("center", 0)
    assert isinstance(vectors, MappedVectors)
    expected = vectors.rows(torch.tensor([4]))
    vectors.rows(torch.tensor([4])).zero_()
    assert torch.equal(vectors.rows(torch.tensor([4])), expected)
    rows_of(vectors)[4] = 0  # even into the map itself
    assert torch.equal(rows_of(table.transformed("center", 0))[4], expected[0])


@pytest.mark.parametrize("what", ["gone", "shorter", "of another type"])
def test_a_file_that_is_no_longer_what_it_was_is_refused(table: TextTable, what: str):
    vectors = table.transformed("center", 0)
    assert isinstance(vectors, MappedVectors)
    if what == "gone":
        vectors.path.unlink()
    else:
        content = np.load(vectors.path)
        np.save(vectors.path, content[:-1] if what == "shorter" else content.astype(np.float64))
    with pytest.raises(InputError, match="run again"):
        vectors.rows(None)
