"""Replace a function of RecBole's, once, with a way to see that it was done."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Put ``make(original)`` in the place of the function `name` of a class or module; once, however often called.

    Several replacements of one function wrap each other in the order of the calls.
    """
    original = getattr(owner, name)
    makers = getattr(original, "_recbole_pad", ())
    if make in makers:
        return
    wrapper = functools.wraps(original)(make(original))
    wrapper._recbole_pad = (*makers, make)  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)
