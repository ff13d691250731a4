"""Where the tables of the pipeline live while rows are dropped and ordered: in memory (pandas) or on disk (DuckDB)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ..errors import InputError
from .engine import INTERACTIONS, ITEMS, Engine
from .in_memory import PandasEngine
from .on_disk import DuckEngine

__all__ = ["ENGINES", "INTERACTIONS", "ITEMS", "Engine", "Storage", "choose", "open_engine"]

log = logging.getLogger(__name__)

ENGINES = ("auto", "pandas", "duckdb")
LARGE = 200_000_000  # bytes of raw files, as they lie on disk, from which `auto` takes DuckDB


@dataclass(frozen=True)
class Storage:
    """Where tables live while a dataset is prepared; the same rows come out.

    Attributes:
        engine: auto, pandas or duckdb.
        memory_limit: of DuckDB.
        temp_dir: where DuckDB's file lies while it works; None: in the dataset's folder.
    """

    engine: str = "auto"
    memory_limit: str = "1GB"
    temp_dir: Path | None = None


def choose(word: str, n_bytes: int) -> str:
    """The engine, pandas or duckdb: `word`, or for auto by the size of the raw files and by what is installed.

    Raises:
        InputError: for another word.
    """
    if word not in ENGINES:
        raise InputError(f"engine: {word!r} is not known; choose one of {', '.join(ENGINES)}")
    if word != "auto":
        return word
    if n_bytes < LARGE:
        return "pandas"
    if find_spec("duckdb") is None:
        log.warning(
            'raw files of %.1f GB in memory; pip install -e ".[prepare]" in the clone for bounded memory', n_bytes / 1e9
        )
        return "pandas"
    return "duckdb"


@contextmanager
def open_engine(name: str, item_columns: Sequence[str], folder: Path, memory_limit: str) -> Iterator[Engine]:
    """An engine with empty tables; what it has written in `folder` may be deleted afterwards."""
    if name == "pandas":
        yield PandasEngine(item_columns)
        return
    engine = DuckEngine(item_columns, folder, memory_limit)
    try:
        yield engine
    finally:
        engine.close()
