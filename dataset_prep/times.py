"""Times: from what the sources write to milliseconds, and from there to a column that survives float32.

RecBole turns the time column into float32, which has 24 bits: Unix seconds of today need 31, so times within 64 s
(before 2004) or 128 s become equal, and their order is lost. `float32_seconds` writes seconds which are float32 values
already and keep, within each user, both the order and the ties of the exact times.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

__all__ = ["CLOCKS", "clock", "float32_seconds", "positions", "ranks_within"]

Clock = Callable[[Any], int]

_APART = 2**40  # more than there are float32 values (2**32) and rows of one user, see `float32_seconds`


def clock(word: str) -> Clock:
    """The function that reads a time as milliseconds since 1970, UTC.

    Args:
        word: s, ms, us, ns (numbers or their texts), iso (``2018-05-01 12:30:00+00:00``, or a date and time object), or
            a `strptime` format such as ``%Y-%m-%d``. Times without a zone are UTC.

    Returns:
        A function that raises ValueError or TypeError on what is no such time.

    Raises:
        InputError: if `word` is none of these.
    """
    if "%" in word:
        return lru_cache(maxsize=100_000)(lambda value: _milliseconds(datetime.datetime.strptime(value, word)))
    if word not in CLOCKS:
        raise InputError(f"time_unit: {word!r} is none of {', '.join(CLOCKS)}, nor a format with % as of strptime")
    return CLOCKS[word]


def _scaled(factor: float) -> Clock:
    def read(value: Any) -> int:
        try:
            whole = int(value) if not isinstance(value, float) else None
        except ValueError:  # "1370044800.5"
            whole = None
        if whole is None:
            return round(float(value) * factor)
        return whole * int(factor) if factor >= 1 else whole // round(1 / factor)

    return read


def _iso(value: Any) -> int:
    if isinstance(value, datetime.datetime):
        return _milliseconds(value)
    if isinstance(value, datetime.date):
        return _milliseconds(datetime.datetime(value.year, value.month, value.day))
    return _milliseconds(datetime.datetime.fromisoformat(value))


def _milliseconds(moment: datetime.datetime) -> int:
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return (moment - _EPOCH) // datetime.timedelta(milliseconds=1)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)

CLOCKS: dict[str, Clock] = {"s": _scaled(1000), "ms": _scaled(1), "us": _scaled(1e-3), "ns": _scaled(1e-6), "iso": _iso}


def ranks_within(is_first: NDArray[np.bool_], counted: NDArray[np.bool_]) -> NDArray[np.int64]:
    """In each group (begun by `is_first`), how many of `counted` there are up to a row, less one; shape (n,)."""
    total = np.cumsum(counted)
    start = np.maximum.accumulate(np.where(is_first, total, 0))
    return np.asarray(total - start, dtype=np.int64)


def positions(is_first: NDArray[np.bool_]) -> NDArray[np.float64]:
    """0, 1, 2, ... within each group; exact in float32 up to 16.7 million."""
    return ranks_within(is_first, np.ones(len(is_first), dtype=bool)).astype(np.float64)


def float32_seconds(is_first: NDArray[np.bool_], milliseconds: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seconds that float32 holds exactly, ordered and tied within each user as the exact times are.

    Each time becomes the nearest float32, and different times of one user that would meet there are spread over the
    next ones on both sides, such that the largest shift is as small as it can be. So a value is off by at most 64 s
    today, in a burst of n actions by some n * 64 s. Times at day resolution are multiples of 86,400 = 675 * 2**7
    seconds, float32 values until 2038: they do not move at all.

    Args:
        is_first: shape (n,), True on the first row of each user.
        milliseconds: shape (n,), since 1970, not decreasing within a user.

    Returns:
        Seconds since 1970, shape (n,): v[i] < v[j] exactly where milliseconds[i] < milliseconds[j], within a user.
    """
    if not len(milliseconds):
        return np.empty(0, dtype=np.float64)
    grid = _grid_of((milliseconds / 1000).astype(np.float32))
    is_new = is_first | np.r_[True, milliseconds[1:] != milliseconds[:-1]]
    rank = ranks_within(is_first, is_new)
    # Rising by at least one per rank means that place - rank does not fall. Of all such places the middle between the
    # running maximum from the left and the running minimum from the right is off by the least (isotonic regression in
    # the maximum norm); both begin anew with each user, as users lie further apart than all values of one.
    user = np.cumsum(is_first) * _APART
    left = np.maximum.accumulate(user + grid - rank)
    right = np.minimum.accumulate((user + grid - rank)[::-1])[::-1]
    return _value_of((left + right) // 2 - user + rank).astype(np.float64)


def _grid_of(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The number of each float32 on the ladder of all of them: neighbours differ by one."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _value_of(grid: NDArray[np.int64]) -> NDArray[np.float32]:
    bits = np.where(grid < 0, -grid | 0x80000000, grid)
    return bits.astype(np.uint32).view(np.float32)
