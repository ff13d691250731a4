"""RecBole atomic files: writing them from ordered chunks, with what is learnt on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .clean import atomic_id
from .digest import file_sha256
from .frequency import FREQUENCY_GROUPS, frequency_group
from .times import float32_seconds, positions

__all__ = ["InteractionCounts", "file_digest", "frequency_groups", "whole_users", "write_inter", "write_item"]


@dataclass
class InteractionCounts:
    """What an `.inter` file holds."""

    interactions: int = 0
    lengths: Counter[int] = field(default_factory=Counter)  # rows of a user -> users
    tied: int = 0  # neighbours within a user with the same exact time
    shift: float = 0.0  # seconds between a time and its float32, at most
    first: float | None = None  # seconds
    last: float | None = None


def file_digest(path: Path) -> dict[str, Any]:
    """Name, size in bytes and sha256 of a file."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def whole_users(chunks: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The same rows in chunks that end with the last row of a user."""
    rest: pd.DataFrame | None = None
    for chunk in chunks:
        together = chunk if rest is None else pd.concat([rest, chunk], ignore_index=True)
        is_last = together["user"].to_numpy() == together["user"].iloc[-1]
        if not is_last.all():
            yield together[~is_last]
        rest = together[is_last]
    if rest is not None:
        yield rest


def write_inter(path: Path, chunks: Iterable[pd.DataFrame], timed: bool, rated: bool) -> InteractionCounts:
    """Write an `.inter` file.

    Args:
        path: the file.
        chunks: columns user, item, time (milliseconds), rating, ordered by user, time and tie.
        timed: whether times are clock times; else each user's rows are numbered from 0.
        rated: whether there is a column `rating`.
    """
    counts = InteractionCounts()
    columns = ["user_id:token", "item_id:token", "timestamp:float", *(["rating:float"] if rated else [])]
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(columns) + "\n")
        for chunk in whole_users(chunks):
            users, time = chunk["user"].to_numpy(), chunk["time"].to_numpy(dtype=np.int64)
            is_first = np.r_[True, users[1:] != users[:-1]]
            times = float32_seconds(is_first, time) if timed else positions(is_first)
            _count(counts, is_first, time, times, timed)
            values = [_ids(chunk["user"]), _ids(chunk["item"]), _numbers(times)]
            if rated:
                values.append([f"{rating}" if rating == rating else "" for rating in chunk["rating"].tolist()])
            file.writelines("\t".join(row) + "\n" for row in zip(*values, strict=True))
    return counts


def _count(
    counts: InteractionCounts,
    is_first: NDArray[np.bool_],
    time: NDArray[np.int64],
    times: NDArray[np.float64],
    timed: bool,
) -> None:
    starts = np.flatnonzero(is_first)
    counts.interactions += len(time)
    counts.lengths.update(np.diff(np.r_[starts, len(time)]).tolist())
    if timed:
        counts.tied += int((~is_first[1:] & (time[1:] == time[:-1])).sum())
        counts.shift = max(counts.shift, float(np.abs(times - time / 1000).max()))
        low, high = float(time.min()) / 1000, float(time.max()) / 1000
        counts.first = low if counts.first is None else min(low, counts.first)
        counts.last = high if counts.last is None else max(high, counts.last)


def _ids(column: pd.Series) -> list[str]:
    codes, distinct = pd.factorize(column)
    safe = np.array([atomic_id(token) for token in distinct], dtype=object)
    return cast(list[str], safe[codes].tolist())


def _numbers(values: NDArray[np.float64]) -> list[str]:
    if (values == np.trunc(values)).all():
        return [str(value) for value in values.astype(np.int64).tolist()]
    return [f"{value!r}" for value in values.tolist()]


def write_item(path: Path, chunks: Iterable[pd.DataFrame], columns: Mapping[str, str]) -> dict[str, int]:
    """Write an `.item` file; returns how many items have something in each column.

    Args:
        path: the file.
        chunks: column item and those of `columns`, texts without tabs and newlines.
        columns: name -> type of RecBole.
    """
    filled = dict.fromkeys(columns, 0)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write("\t".join(["item_id:token", *(f"{name}:{kind}" for name, kind in columns.items())]) + "\n")
        for chunk in chunks:
            for name in columns:
                filled[name] += int((chunk[name] != "").sum())
            values = [_ids(chunk["item"]), *(chunk[name].tolist() for name in columns)]
            file.writelines("\t".join(row) + "\n" for row in zip(*values, strict=True))
    return filled


def frequency_groups(by_frequency: pd.DataFrame) -> list[dict[str, Any]]:
    """Items, validation and test targets by groups of train frequency: 0, 1-5, 6-10, 11-20, 21-50, 51-100, >100.

    Args:
        by_frequency: columns frequency, items, valid, test (`Engine.by_train_frequency`).
    """
    group = frequency_group(by_frequency["frequency"].to_numpy(dtype=np.int64))
    rows = []
    for number, label in enumerate(FREQUENCY_GROUPS):
        part = by_frequency[group == number]
        sums = {name: int(part[name].sum()) for name in ("items", "valid", "test")}
        rows.append({"train_frequency": label, **sums})
    return rows
