"""Any CSV, JSON lines or Parquet whose columns the user names; also the way in from Spark (partitioned Parquet)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from ..errors import InputError
from .source import Interaction, Item, Source

__all__ = ["TABLE"]


def _unnamed() -> NoReturn:
    raise InputError(
        "table: name the columns, as in --columns user=uid item=iid time=ts --item_columns item=iid title=t"
    )


def _no_interactions(paths: Sequence[Path]) -> Iterator[Interaction]:
    _unnamed()


def _no_items(paths: Sequence[Path]) -> Iterator[Item]:
    _unnamed()


TABLE = Source(
    name="table",
    about="any CSV, JSON lines or Parquet (files, or folders as Spark writes them), with --columns",
    licence="not known to this program; see where the data come from",
    preset="5core",
    read_interactions=_no_interactions,
    read_items=_no_items,
    item_columns={},
    mapped=True,
)
