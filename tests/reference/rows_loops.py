"""Histories, training rows and positions from the lines of an .inter file, one user and item at a time."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

Interaction = tuple[str, float]  # item, time
Row = tuple[list[Interaction], Interaction]  # history, target


def as_float32(time: float) -> float:
    return struct.unpack("f", struct.pack("f", time))[0]


def histories(file: Path) -> dict[str, list[Interaction]]:
    """Each user's interactions by the file's times, equal ones in file order; then times are rounded to float32."""
    users: dict[str, list[Interaction]] = {}
    for line in file.read_text().splitlines()[1:]:
        user, item, time = line.split("\t")[:3]
        users.setdefault(user, []).append((item, float(time)))
    return {
        user: [(item, as_float32(time)) for item, time in sorted(history, key=lambda entry: entry[1])]
        for user, history in users.items()
    }


def held_out(history: Sequence[Interaction], n_left_out: int) -> int:
    """How many last interactions are held out: at most `n_left_out`, and two (one row) stay in training."""
    return max(0, min(n_left_out, len(history) - 2))


def windows(history: Sequence[Interaction], max_length: int) -> list[list[Interaction]]:
    """Pieces [inputs..., target], the newest first; together their targets are all interactions but one."""
    pieces = []
    end = len(history) - 1
    while end >= 1:
        start = max(0, end - max_length)
        pieces.append(list(history[start : end + 1]))
        end -= max_length
    return pieces


def positions(item_seq: list[list[int]], target: list[int]) -> list[tuple[int, int, int]]:
    """(row, t, item that follows position t) of right-padded rows whose sequence goes on with `target`."""
    result = []
    for row, items in enumerate(item_seq):
        real = [item for item in items if item != 0]
        following = [*real[1:], target[row]]
        result += [(row, t, item) for t, item in enumerate(following)]
    return result


def padded_window(values: Sequence[float], end: int, length: int, width: int) -> list[float]:
    """The `length` values before `end`, then zeros up to `width`."""
    return [values[place] for place in range(end - length, end)] + [0] * (width - length)
