"""The one resolver: a word of a config or of the command line selects an entry of a table."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TypeVar

from .errors import InputError

__all__ = ["nearest", "pick"]

T = TypeVar("T")


def nearest(word: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """Return `` (did you mean 'x'?)`` for the known word nearest to `word`, or an empty string."""
    by_lower = {entry.lower(): entry for entry in known}
    close = difflib.get_close_matches(str(word).lower(), list(by_lower), n=1, cutoff=cutoff)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def pick(table: Mapping[str, T], key: str, what: str) -> T:
    """Return ``table[key]``.

    Args:
        table: the entries, by the word that selects them.
        key: the word from the config or the command line.
        what: the config key or the flag, for the message.

    Raises:
        InputError: if `key` is not in the table; the message names the nearest word and all of them.
    """
    if key in table:
        return table[key]
    raise InputError(f"{what}: {key!r} is not known{nearest(key, list(table))}; choose one of {', '.join(table)}")
