"""The file of a run's test ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.rank_files import read_frequency, read_ranks, write_ranks


def some(seed: int) -> Ranks:
    generator = np.random.default_rng(seed)
    unmasked = generator.integers(2, 4_000_000, 50) / 2
    return Ranks(np.arange(1, 51), np.arange(101, 151), unmasked, np.where(unmasked < 5e5, np.inf, unmasked))


def test_what_is_written_is_read_again(tmp_path: Path):
    ranks = {"pretrain": some(1), "finetune": some(2)}
    frequency = np.arange(200) * 3
    write_ranks(ranks, frequency, tmp_path / "ranks.npz")
    assert read_frequency(tmp_path / "ranks.npz").tolist() == [3 * item for item in range(101, 151)]
    found = read_ranks(tmp_path / "ranks.npz")
    assert list(found) == ["pretrain", "finetune"]
    for phase, own in ranks.items():
        for name in ("user", "target", "masked", "unmasked"):
            np.testing.assert_array_equal(getattr(found[phase], name), getattr(own, name))


def test_rows_are_sorted_by_user_and_target(tmp_path: Path):
    ranks = Ranks(np.array([3, 1, 3, 2]), np.array([9, 5, 4, 7]), np.array([1.0, 2, 3, 4]), np.array([5.0, 6, 7, 8]))
    write_ranks({"train": ranks}, np.arange(10) * 10, tmp_path / "ranks.npz")
    found = read_ranks(tmp_path / "ranks.npz")["train"]
    assert found.user.tolist() == [1, 2, 3, 3]
    assert found.target.tolist() == [5, 7, 4, 9]
    assert found.unmasked.tolist() == [2, 4, 3, 1]
    assert found.masked.tolist() == [6, 8, 7, 5]
    assert read_frequency(tmp_path / "ranks.npz").tolist() == [50, 70, 40, 90]


def test_phases_of_other_rows_are_refused(tmp_path: Path):
    other = some(2)
    other = Ranks(other.user[::-1], other.target, other.unmasked, other.masked)
    with pytest.raises(ValueError, match="phase finetune has ranked other rows than pretrain"):
        write_ranks({"pretrain": some(1), "finetune": other}, np.arange(200), tmp_path / "ranks.npz")


def test_a_missing_file_and_a_foreign_one_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_ranks(tmp_path / "ranks.npz")
    (tmp_path / "ranks.npz").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(InputError, match="is not a file of ranks"):
        read_ranks(tmp_path / "ranks.npz")
    np.savez(tmp_path / "other.npz", user=np.array([object()], dtype=object))
    with pytest.raises(InputError, match="is not a file of ranks"):
        read_ranks(tmp_path / "other.npz")
