"""What a source says: how its raw files become interactions and items. Everything after that is common to all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..clean import token_of
from ..errors import InputError
from ..raw import CSV, Dialect, Record, format_of, records
from ..times import clock

__all__ = ["Columns", "Interaction", "Item", "Layout", "Source", "item_reader", "table_reader", "with_columns"]


class Interaction(NamedTuple):
    """One row.

    `time` is in milliseconds since 1970, None if it is missing or unreadable, or where a source has only an order;
    `rating` is None if there is none.
    """

    user: str
    item: str
    time: int | None
    rating: float | None


Item = Mapping[str, Any]  # "item" is the id; other keys are columns, raw values
ReadInteractions = Callable[[Sequence[Path]], Iterator[Interaction]]
ReadItems = Callable[[Sequence[Path]], Iterator[Item]]


@dataclass(frozen=True)
class Columns:
    """Which columns of a raw record are what.

    Attributes:
        user: column of the user.
        item: column of the item.
        time: column of the time; None: rows are in the order in which they happened, and times become positions.
        rating: column of the rating, if there is one.
        time_unit: a word of `dataset_prep.times.clock`.
    """

    user: str
    item: str
    time: str | None = None
    rating: str | None = None
    time_unit: str = "s"


@dataclass(frozen=True)
class Layout:
    """One kind of raw file of interactions: how its lines are cut, and its columns."""

    columns: Columns
    dialect: Dialect = CSV


@dataclass(frozen=True)
class Source:
    """An entry of `SOURCES`.

    Attributes:
        name: the word of the command line.
        about: one line for the help.
        licence: a note for the manifest.
        preset: the recipe used where none is named.
        read_interactions: raw files -> interactions, streamed, in the order of the files.
        read_items: raw files -> items, streamed.
        item_columns: column of the `.item` file -> its type; the id is not among them.
        timed: False where the raw files know only an order.
        rated: whether the `.inter` file gets a rating.
        mapped: whether the user names the columns (`--columns`); the readers are then made by `with_columns`.
        downloads: official addresses by what they hold: interactions, items, or archive (zip); ``{key}`` stands for the
            word after --download.
        members: names of the files of interactions and of items in each archive.
    """

    name: str
    about: str
    licence: str
    preset: str
    read_interactions: ReadInteractions
    read_items: ReadItems
    item_columns: Mapping[str, str]
    timed: bool = True
    rated: bool = True
    mapped: bool = False
    downloads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    members: Sequence[str] = ()


def table_reader(layouts: Mapping[str, Layout], format_: str | None = None) -> ReadInteractions:
    """A reader of interactions from files of which each record is one.

    Args:
        layouts: layout by the format of a file (`dataset_prep.raw.FORMATS`).
        format_: the format of all files; default: from the name of each.

    Raises (as files are read):
        InputError: for a file of another format, or a record without a needed column, with its line.
    """

    def read(paths: Sequence[Path]) -> Iterator[Interaction]:
        for path in paths:
            kind = format_ or format_of(path)
            if kind not in layouts:
                raise InputError(f"{path}: {kind} is not a format of this source; it has {', '.join(layouts)}")
            yield from _interactions(path, layouts[kind], kind)

    return read


def _interactions(path: Path, layout: Layout, kind: str) -> Iterator[Interaction]:
    columns = layout.columns
    read_time = clock(columns.time_unit)
    used = [name for name in (columns.user, columns.item, columns.time, columns.rating) if name]
    for number, record in enumerate(records(path, layout.dialect, kind, used)):
        if number == 0:
            _check_columns(path, record, used[: 3 if columns.time else 2] if kind == "json" else used)
        yield Interaction(
            token_of(record.get(columns.user)),
            token_of(record.get(columns.item)),
            _time(read_time, record.get(columns.time)) if columns.time else None,
            _number(record.get(columns.rating)) if columns.rating else None,
        )


def _check_columns(path: Path, record: Record, needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in record]
    if missing:
        raise InputError(f"{path}: no column {missing[0]!r}; the first record has {', '.join(map(str, record))}")


def _time(read: Callable[[Any], int], value: Any) -> int | None:
    try:
        time = read(value)
    except (ValueError, TypeError, OverflowError):
        return None
    return time if abs(time) < 2**60 else None


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (ValueError, TypeError):
        return None


def item_reader(
    item_of: Callable[[Record], Item],
    dialect: Dialect = CSV,
    needed: Sequence[str] = (),
    format_: str | None = None,
    wanted: Sequence[str] | None = None,
) -> ReadItems:
    """A reader of items from files of which each record is one.

    Args:
        item_of: raw record -> "item" and the columns of the source.
        dialect: of text tables.
        needed: columns that the first record must have.
        format_: the format of all files; default: from the name of each.
        wanted: columns to read of a Parquet file; default: all.
    """

    def read(paths: Sequence[Path]) -> Iterator[Item]:
        for path in paths:
            for number, record in enumerate(records(path, dialect, format_, wanted)):
                if number == 0:
                    _check_columns(path, record, needed)
                yield item_of(record)

    return read


def with_columns(
    source: Source, columns: Columns, item_columns: Mapping[str, str], separator: str | None, format_: str | None
) -> Source:
    """A source whose columns the user names.

    Args:
        source: an entry with `mapped`.
        columns: of the interactions.
        item_columns: ``item`` and further columns of the `.item` file -> column of the raw file.
        separator: of text tables; default: a tab in files that end in .tsv or .txt, else a comma.
        format_: the format of all files; default: from their names.
    """
    if item_columns and "item" not in item_columns:
        raise InputError("item_columns: name the column of the ids, as in item=asin title=name")
    for name in item_columns:
        if not re.fullmatch(r'[^:"\s]+', name) or name in ("item_id", "row"):
            raise InputError(f"item_columns: {name!r} cannot be a column of the .item file; choose another name for it")

    def dialect(path: Path) -> Dialect:
        tabs = {".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes}
        return Dialect(separator=separator or ("\t" if tabs else ","))

    def read_interactions(paths: Sequence[Path]) -> Iterator[Interaction]:
        for path in paths:
            yield from _interactions(path, Layout(columns, dialect(path)), format_ or format_of(path))

    def read_items(paths: Sequence[Path]) -> Iterator[Item]:
        if not item_columns:
            raise InputError("item_columns: name the columns of the files of items, as in item=asin title=name")
        raw = list(item_columns.values())
        for path in paths:
            kind = format_ or format_of(path)
            needed = [item_columns["item"]] if kind == "json" else raw  # one object may lack what the next one has
            yield from item_reader(_renamed(item_columns), dialect(path), needed, kind, raw)([path])

    kept = {name: "token_seq" for name in item_columns if name != "item"}
    return replace(
        source,
        read_interactions=read_interactions,
        read_items=read_items,
        item_columns=kept,
        timed=columns.time is not None,
        rated=columns.rating is not None,
    )


def _renamed(names: Mapping[str, str]) -> Callable[[Record], Item]:
    return lambda record: {name: record.get(raw) for name, raw in names.items()}
