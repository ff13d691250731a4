"""Config keys of one model alone, read and checked; those that models share are in `PADConfig`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from recbole_pad.config import check_number
from recbole_pad.registry import pick


def number(config: Any, key: str, low: float, high: float) -> float:
    """A number in [low, high].

    Raises:
        InputError: naming the key, the value and the range.
    """
    check_number(key, config[key], low, high)
    return float(config[key])


def whole(config: Any, key: str, low: int, high: int) -> int:
    """A whole number in [low, high].

    Raises:
        InputError: as `number`.
    """
    check_number(key, config[key], low, high, is_whole=True)
    return int(config[key])


def word(config: Any, key: str, known: Iterable[str]) -> str:
    """One of some words.

    Raises:
        InputError: naming the key and the words.
    """
    return pick({each: each for each in known}, config[key], key)
