"""Atomic files by pandas' C engine instead of its Python engine, which RecBole asks for: equal tables, sooner.

The engines differ in corners: malformed quotes, short lines, odd blanks, whole numbers from 2**53 on. A file that has
any of them, or may have, is read as RecBole reads it. Not looked for: a field of over 131,072 characters, which the
Python engine refuses, and numbers of over 17 digits that begin with zeros.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import recbole.data.dataset.dataset as recbole_dataset

_LONE_RETURN = re.compile(rb"\r(?!\n)")  # one engine ends a line there, the other may not
_MARKS = (b'"', b"\0")  # quotes, and what only the C engine takes for the end of a field
_EXACT = 2.0**53  # below, whole numbers are the same read as integers (Python engine) and as floats (C engine)


def load_feat(original: Callable[..., Any], dataset: Any, filepath: str, source: Any) -> Any:
    """`Dataset._load_feat`, with `read_csv` in the place of pandas' function that it calls."""
    with _read_csv_replaced():
        return original(dataset, filepath, source)


@contextmanager
def _read_csv_replaced() -> Iterator[None]:
    """In RecBole's module, `pd.read_csv` means ours inside the block."""
    pandas = recbole_dataset.pd
    recbole_dataset.pd = _Pandas()
    try:
        yield
    finally:
        recbole_dataset.pd = pandas


class _Pandas:
    """pandas, but for one function."""

    @staticmethod
    def read_csv(filepath: str, **settings: Any) -> pd.DataFrame:
        return read_csv(filepath, **settings)

    def __getattr__(self, name: str) -> Any:
        return getattr(pd, name)


def read_csv(
    filepath: str,
    *,
    delimiter: str,
    usecols: Sequence[str],
    dtype: Mapping[str, Any],
    encoding: str | None,
    engine: str,
) -> pd.DataFrame:
    """The table that ``pandas.read_csv(..., engine="python")`` gives for an atomic file, with the C engine if it can.

    Args:
        filepath: an atomic file; its first line holds the names of the columns.
        delimiter: between fields.
        usecols: the columns to read.
        dtype: ``str`` or ``numpy.float64`` for each of them.
        encoding: of the file; None: UTF-8, as pandas takes it.
        engine: what to use where the C engine reads something else.
    """
    settings = {"delimiter": delimiter, "usecols": usecols, "dtype": dtype, "encoding": encoding}
    try:
        if len(usecols) > 1 and _is_plain(filepath, delimiter, encoding or "utf-8"):
            table = pd.read_csv(filepath, **settings, engine="c")
            if _is_same(table):
                return table
    except ValueError:  # pandas' own errors among them: odd numbers, wrong bytes, an unknown column
        pass
    return pd.read_csv(filepath, **settings, engine=engine)


def _is_plain(filepath: str, delimiter: str, encoding: str) -> bool:
    """Whether both engines see the same lines and fields, as far as the beginning and the bytes of the file tell."""
    if len(delimiter) != 1 or '"\0\r\n'.encode(encoding) != b'"\0\r\n':
        return False
    with Path(filepath).open(encoding=encoding, newline="") as text:
        first_lines = list(islice((line for line in text if line.strip("\r\n")), 3))
    if len({line.count(delimiter) for line in first_lines}) != 1:
        return False  # pandas guesses at index columns from here
    with Path(filepath).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return all(content.find(mark) < 0 for mark in _MARKS) and _LONE_RETURN.search(content) is None


def _is_same(table: pd.DataFrame) -> bool:
    """Whether no line was short (its missing tokens are None for RecBole, and a blank line may be none for it)."""
    floats = table.select_dtypes(np.float64)
    return not table.iloc[:, -1].isna().any() and not (floats.abs() >= _EXACT).any(axis=None)
