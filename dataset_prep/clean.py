"""Values of raw files as the text of atomic files: what RecBole's reader gets back is what was written."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Iterable
from typing import Any

from .errors import InputError

__all__ = ["READ_AS_MISSING", "TextCleaner", "atomic_id", "path_of", "text_cleaner", "token_of"]

# What pandas, and with it RecBole, reads as a missing value: a row with such an id would vanish without a word.
READ_AS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null".split("|")
)
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_UNSAFE = re.compile('["\x00-\x1f\x7f-\x9f\u2028\u2029]|%(?=[0-9A-F]{2})')

TextCleaner = Callable[[Any], str]


def text_cleaner(entities: str = "decode") -> TextCleaner:
    """Return the function that makes a text of any raw value.

    A list gives its elements joined by blanks, None nothing. HTML entities are decoded (or kept, with
    ``entities="keep"``), control characters and each run of white space become one blank, and a double quote a single
    one: RecBole's reader takes a double quote for the start of a quoted column.

    Raises:
        InputError: on another word than decode or keep.
    """
    if entities not in ("decode", "keep"):
        raise InputError(f"entities: {entities!r} is neither 'decode' nor 'keep'")

    def clean(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, (list, tuple)):
            return " ".join(filter(None, map(clean, value)))
        text = html.unescape(str(value)) if entities == "decode" else str(value)
        return _encodable(" ".join(text.translate(_CONTROL).replace('"', "'").split()))

    return clean


def path_of(levels: Iterable[Any]) -> str:
    """A category path, levels joined by ``>``; scraps of web pages, which the 2018 release has among them, left out."""
    return " > ".join(str(level) for level in levels if level and not str(level).lstrip().startswith("<"))


def token_of(value: Any) -> str:
    """An id as text; "" for a missing one. 7.0 is 7, and zero-padded texts stay as they are."""
    if not isinstance(value, str):
        if value is None or value != value:
            return ""
        value = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return _encodable(value.strip())


def _encodable(text: str) -> str:
    """The text itself, or with half characters (a lone surrogate, as JSON may have it) written out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def atomic_id(token: str) -> str:
    """An id that RecBole reads back unchanged, different for different ids.

    Characters that would break a line or a column, double quotes, and the first letter of what pandas takes for a
    missing value ("NA", "null") are written as ``%`` and two hexadecimal digits or more; a ``%`` before two such
    digits as well, so that nothing is mixed up.
    """
    safe = _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", token)
    return f"%{ord(safe[0]):02X}{safe[1:]}" if safe in READ_AS_MISSING else safe
