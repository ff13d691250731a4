"""Times of the sources in milliseconds, and the column that survives float32."""

from __future__ import annotations

import datetime
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.times import clock, float32_seconds, positions

MAY_1_2014 = 1_398_902_400  # date -u -d 2014-05-01 +%s


@pytest.mark.parametrize(
    ("unit", "value", "milliseconds"),
    [
        ("s", MAY_1_2014, MAY_1_2014 * 1000),
        ("s", str(MAY_1_2014), MAY_1_2014 * 1000),
        ("s", "1398902400.5", MAY_1_2014 * 1000 + 500),
        ("s", float(MAY_1_2014), MAY_1_2014 * 1000),
        ("s", "-1", -1000),
        ("ms", 1588687728923, 1588687728923),
        ("ms", "1588687728923", 1588687728923),
        ("us", 1588687728923456, 1588687728923),
        ("ns", 1588687728923456789, 1588687728923),
        ("iso", "2014-05-01", MAY_1_2014 * 1000),
        ("iso", "2014-05-01T02:00:00+02:00", MAY_1_2014 * 1000),
        ("iso", datetime.datetime(2014, 5, 1), MAY_1_2014 * 1000),
        ("iso", datetime.date(2014, 5, 1), MAY_1_2014 * 1000),
        ("%Y-%m-%d", "2014-05-01", MAY_1_2014 * 1000),
        ("%m/%d/%Y %I:%M:%S %p", "5/1/2014 12:00:01 AM", MAY_1_2014 * 1000 + 1000),
        ("%a %b %d %H:%M:%S %z %Y", "Wed Apr 30 17:00:00 -0700 2014", MAY_1_2014 * 1000),
    ],
)
def test_times_are_read_as_milliseconds_of_utc(unit: str, value: object, milliseconds: int):
    assert clock(unit)(value) == milliseconds


@pytest.mark.parametrize(("unit", "value"), [("s", "soon"), ("s", None), ("iso", "1 May"), ("%Y", "x"), ("s", "nan")])
def test_what_is_no_time_raises(unit: str, value: object):
    with pytest.raises((ValueError, TypeError)):
        clock(unit)(value)


def test_an_unknown_unit_is_refused():
    with pytest.raises(InputError, match="time_unit: 'seconds' is none of s, ms, us, ns, iso"):
        clock("seconds")


histories = st.lists(  # gaps in milliseconds, of bursts and of years
    st.tuples(
        st.integers(-(10**12), 2 * 10**12), st.lists(st.sampled_from([0, 1, 999, 64_000, 10**6, 10**10]), max_size=9)
    ),
    min_size=1,
    max_size=5,
)


@given(histories)
def test_the_order_and_the_ties_of_each_user_survive_float32(users: list[tuple[int, list[int]]]):
    times = [np.cumsum([start, *gaps]) for start, gaps in users]
    is_first = np.concatenate([np.arange(len(t)) == 0 for t in times])
    exact = np.concatenate(times)
    seconds = float32_seconds(is_first, exact)
    assert (seconds.astype(np.float32) == seconds).all()
    start = 0
    for t in times:
        s = seconds[start : start + len(t)]
        start += len(t)
        assert (np.sign(s[:, None] - s[None, :]) == np.sign(t[:, None] - t[None, :])).all()


@given(st.lists(st.integers(0, 24_000), min_size=1, max_size=20))
def test_days_until_2035_do_not_move(days: list[int]):
    exact = np.sort(np.array(days)) * 86_400_000
    assert (float32_seconds(np.arange(len(days)) == 0, exact) == exact / 1000).all()


def test_a_burst_is_spread_over_the_grid_on_both_sides():
    """At 1.6e9 the grid of float32 is 128 s: three actions within 10 s and a fourth an hour later."""
    start = 1_600_000_000
    exact = np.array([0, 5, 10, 3600]) * 1000 + start * 1000
    assert np.float32(start) == start
    expected = [start - 128, start, start + 128, start + 28 * 128]
    assert float32_seconds(np.array([True, False, False, False]), exact).tolist() == expected


@given(st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True))
def test_no_other_way_of_keeping_the_order_has_a_smaller_largest_shift(gaps: list[int]):
    """Against all ways to put a few times on the grid; in the middle the grid makes half a step of difference."""
    start, step = 1_600_000_000, 128
    exact = np.sort(np.array(gaps)) * 16 + start
    got = float32_seconds(np.arange(len(exact)) == 0, exact * 1000)
    nearest = np.round((exact - start) / step)
    best = min(
        max(abs(place - want) for place, want in zip(places, nearest, strict=True))
        for places in combinations(range(-6, 13), len(exact))
    )
    assert np.abs((got - start) / step - nearest).max() == best


def test_positions_begin_anew_with_each_user():
    assert positions(np.array([True, False, True, True, False, False])).tolist() == [0, 1, 0, 0, 1, 2]
    assert float32_seconds(np.empty(0, dtype=bool), np.empty(0, dtype=np.int64)).shape == (0,)
