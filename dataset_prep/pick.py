"""A word of the command line selects an entry of a table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from .errors import InputError

T = TypeVar("T")


def pick(table: Mapping[str, T], key: str, what: str) -> T:
    """Return ``table[key]``.

    Raises:
        InputError: if `key` is not in the table; the message names the nearest word and all of them.
    """
    if key in table:
        return table[key]
    close = difflib.get_close_matches(key, list(table), n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise InputError(f"{what}: {key!r} is not known{hint}; choose one of {', '.join(table)}")
