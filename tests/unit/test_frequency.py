import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.data.frequency import (
    COLD,
    FREQUENCY_GROUPS,
    OVER_20,
    TARGET_GROUPS,
    WARM,
    equal_mass_bins,
    frequency_group,
    in_target_group,
)
from tests.reference import frequency_loops

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
SKEWED = st.lists(st.sampled_from([0, 0, 1, 2, 5, 1000]), min_size=1, max_size=40)


@given(counts=COUNTS | SKEWED, n_bins=st.integers(1, 12))
def test_bins_equal_the_walk_down_the_sorted_list(counts: list[int], n_bins: int):
    got = equal_mass_bins(np.array(counts), n_bins)
    assert got.dtype == np.int64
    assert got.tolist() == frequency_loops.equal_mass_bins(counts, n_bins)


@given(counts=COUNTS | SKEWED, n_bins=st.integers(1, 12))
def test_a_rarer_item_never_has_a_lower_bin(counts: list[int], n_bins: int):
    bins = equal_mass_bins(np.array(counts), n_bins)
    for a in range(1, len(counts)):
        assert 1 <= bins[a] <= n_bins
        for b in range(1, len(counts)):
            if counts[a] < counts[b]:
                assert bins[a] >= bins[b]


@given(counts=COUNTS | SKEWED, n_bins=st.integers(1, 12))
def test_padding_is_bin_0_and_unseen_items_are_in_the_last(counts: list[int], n_bins: int):
    bins = equal_mass_bins(np.array(counts), n_bins)
    assert bins[0] == 0
    assert all(bins[i] == n_bins for i in range(1, len(counts)) if counts[i] == 0)


def test_bins_by_hand():
    """Total 20, three bins: a bin closes at 20/3. 9 | 5 + 2 | 2 + 1 + 1 + 0."""
    counts = np.array([99, 1, 5, 0, 9, 2, 2, 1])
    assert equal_mass_bins(counts, 3).tolist() == [0, 3, 2, 3, 1, 2, 3, 3]


def test_a_bin_closes_at_exactly_its_share_without_rounding():
    assert equal_mass_bins(np.array([0] + [1] * 30), 10).tolist() == [0] + [q for q in range(1, 11) for _ in range(3)]


def test_bad_counts_are_refused():
    with pytest.raises(ValueError, match="n_bins"):
        equal_mass_bins(np.array([0, 1]), 0)
    for counts in (np.array([0, -1]), np.array([0, 1.5]), np.array([[0, 1]])):
        with pytest.raises(ValueError, match="whole numbers"):
            equal_mass_bins(counts, 2)


def test_published_edges_of_prime_pantry():
    folder = os.environ.get("RECBOLE_PAD_DATA")
    if not folder or not (Path(folder) / "prime_pantry").is_dir():
        pytest.skip("set RECBOLE_PAD_DATA to the folder that holds prime_pantry/")
    histories: dict[str, list[str]] = {}
    with (Path(folder) / "prime_pantry" / "prime_pantry.inter").open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            user, item, _ = line.rstrip("\n").split("\t")
            histories.setdefault(user, []).append(item)
    items = sorted({item for history in histories.values() for item in history})
    train = Counter(item for history in histories.values() for item in history[:-2])
    assert sum(train.values()) == 89_262
    bins = equal_mass_bins(np.array([0, *(train[item] for item in items)]), 10)
    edges = [0, *np.cumsum(np.bincount(bins[1:], minlength=11)[1:]).tolist()]
    assert edges == [0, 35, 100, 205, 361, 585, 898, 1357, 2074, 3348, 8347]


@given(count=st.integers(0, 10**9))
def test_frequency_group_is_the_one_whose_label_holds_the_count(count: int):
    label = FREQUENCY_GROUPS[frequency_group(np.array([count]))[0]]
    if label == ">100":
        assert count > 100
    else:
        first, last = (label.split("-") * 2)[:2]
        assert int(first) <= count <= int(last)


def test_frequency_group_at_every_border():
    counts = np.array([0, 1, 5, 6, 10, 11, 20, 21, 50, 51, 100, 101])
    got = frequency_group(counts)
    assert got.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6]
    assert got.dtype == np.int64


def test_target_groups_at_every_border():
    counts = np.array([0, 5, 6, 20, 21, 100, 101])
    expected = {COLD: counts <= 5, OVER_20: counts > 20, WARM: counts > 100}
    assert list(expected) == list(TARGET_GROUPS)
    for group, members in expected.items():
        assert in_target_group(counts, group).tolist() == members.tolist()
