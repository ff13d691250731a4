"""RecBole atomic files before they are read: their first line, names of columns and their types, and quotes in them."""

from __future__ import annotations

import csv
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = ["KINDS", "read_header", "refuse_open_quotes", "rows_with_lines"]

KINDS = ("token", "float", "token_seq", "float_seq")  # RecBole's types of columns


def read_header(file: Path, separator: str = "\t", encoding: str = "utf-8") -> dict[str, str]:
    """The columns of an atomic file in their order: name -> type.

    Raises:
        InputError: if the file is empty, not in this encoding or begins with a byte order mark, or if a column has none
            of the types or stands there twice.
    """
    try:
        with file.open("rb") as lines:
            header = lines.readline().decode(encoding).rstrip("\r\n")
    except (UnicodeError, LookupError) as error:
        raise InputError(f"{file}, line 1: not {encoding}: {error}; convert it") from error
    if not header:
        raise InputError(f"{file}, line 1: empty; write the columns, such as item_id:token, separated by {separator!r}")
    if header.startswith("\ufeff"):
        raise InputError(
            f"{file}: begins with a byte order mark, which RecBole takes for a part of the first column's "
            "name; save it as UTF-8 without one"
        )
    columns: dict[str, str] = {}
    for column in header.split(separator):
        name, _, kind = column.partition(":")
        if kind not in KINDS:
            raise InputError(
                f"{file}, line 1: column {name!r} has no type of {', '.join(KINDS)}; write {name}:token or {name}:float"
            )
        if name in columns:
            raise InputError(f"{file}, line 1: column {name!r} stands there twice; rename one")
        columns[name] = kind
    return columns


def refuse_open_quotes(file: Path, separator: str = "\t", encoding: str = "utf-8") -> None:
    """Refuse a file of which a reader of CSV, such as RecBole's, would take several lines for one.

    A column that begins with a double quote ends at the next one, maybe thousands of lines later: those rows would be
    lost without a word. Files without a double quote are not read.

    Raises:
        InputError: naming the line.
    """
    with file.open("rb") as content, mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        if len(separator) != 1 or mapped.find(b'"') < 0:
            return
    remedy = "write single quotes, or close it in its column"
    with file.open(encoding=encoding, newline="") as lines:
        reader = csv.reader(lines, delimiter=separator, strict=True)
        last = 0
        try:
            for _ in rows_with_lines(file, reader, separator, remedy):
                last = reader.line_num
        except csv.Error as error:
            raise InputError(
                f"{file}, line {last + 1}: a column opens with a double quote: {error}; {remedy}"
            ) from error


def rows_with_lines(file: Path, reader: Any, separator: str, remedy: str) -> Iterator[tuple[int, list[str]]]:
    """Each row of a CSV reader with the number of the line on which it begins.

    Args:
        file: for the error.
        reader: `csv.reader`, from the first line on.
        separator: between columns.
        remedy: for the error.

    Raises:
        InputError: for a row that holds several lines of columns, swallowed by a quote.
        csv.Error: of the reader.
    """
    first = 1
    for row in reader:
        if any(separator in value and "\n" in value for value in row):
            raise InputError(
                f"{file}, line {first}: a column opens with a double quote that swallows the lines up to "
                f"{reader.line_num}; {remedy}"
            )
        yield first, row
        first = reader.line_num + 1
