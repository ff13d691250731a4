"""The first line of a RecBole atomic file: names of columns and their types."""

from __future__ import annotations

from pathlib import Path

from .errors import InputError

__all__ = ["KINDS", "read_header"]

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
