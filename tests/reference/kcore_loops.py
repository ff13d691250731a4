"""Preparing a dataset in plain loops over a list of rows, rule by rule."""

from __future__ import annotations

from collections.abc import Iterable

Row = tuple[str, str, int, float | None]  # user, item, time, rating


def core(rows: list[Row], user_core: int, item_core: int) -> list[Row]:
    """Take one user or item with too few rows away, count anew, and so on until there is none."""
    rows = list(rows)
    while True:
        weak = [
            (column, name)
            for column, least in ((0, user_core), (1, item_core))
            for name in sorted({row[column] for row in rows})
            if sum(row[column] == name for row in rows) < least
        ]
        if not weak:
            return rows
        column, name = weak[-1]
        rows = [row for row in rows if row[column] != name]


def first_of_equal(rows: list[Row], columns: Iterable[int]) -> list[Row]:
    """Of rows equal in some columns the earliest, and of those of one time the first."""
    kept: dict[tuple[object, ...], Row] = {}
    for row in sorted(rows, key=lambda row: row[2]):  # stable
        kept.setdefault(tuple(row[column] for column in columns), row)
    chosen = {id(row) for row in kept.values()}
    return [row for row in rows if id(row) in chosen]


def prepared(
    rows: list[Row],
    known: set[str] | None,
    equal: list[tuple[int, ...]],
    min_rating: float | None,
    user_core: int,
    item_core: int,
    longest: int | None,
    kept: int,
) -> dict[str, list[Row]]:
    """User -> rows in the order of time, rows of one time in the order of the source."""
    for columns in equal:
        rows = first_of_equal(rows, columns)
    rows = [row for row in rows if known is None or row[1] in known]
    rows = [row for row in rows if min_rating is None or (row[3] is not None and row[3] >= min_rating)]
    histories: dict[str, list[Row]] = {}
    for row in core(rows, user_core, item_core):
        histories.setdefault(row[0], []).append(row)
    for user, history in histories.items():
        history.sort(key=lambda row: row[2])
        if longest is not None and len(history) > longest:
            histories[user] = history[-kept:]
    return dict(sorted(histories.items()))


def by_train_frequency(histories: dict[str, list[Row]]) -> dict[int, tuple[int, int, int]]:
    """Train frequency -> number of items, of validation targets, of test targets; as RecBole leaves out."""
    train: list[str] = []
    targets: list[tuple[str, int]] = []
    for history in histories.values():
        items = [row[1] for row in history]
        if len(items) > 3:
            train += items[:-2]
            targets += [(items[-2], 0), (items[-1], 1)]
        elif len(items) == 3:
            train += items[:2]
            targets.append((items[2], 1))
        elif len(items) == 2:
            train += items
    table: dict[int, list[int]] = {}
    for item in {row[1] for history in histories.values() for row in history}:
        entry = table.setdefault(train.count(item), [0, 0, 0])
        entry[0] += 1
        for target, kind in targets:
            entry[1 + kind] += target == item
    return {frequency: (entry[0], entry[1], entry[2]) for frequency, entry in sorted(table.items())}
