"""The CSV files of the published PAD repository: one line per user with the whole history, and ``asin,title``.

``Prime_Pantry_cleaned_history.csv`` has a nameless number, `user` and `history`, a Python list of ASINs in order;
``metadata_Prime_Pantry.csv`` has `asin` and `title` (Applied-Machine-Learning-Lab/PAD, dataset/). The published code
numbers items by the order of the metadata, and so does the `.item` file. There are no times.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..raw import Record, records
from .source import Interaction, Item, Source, item_reader

__all__ = ["PAD_CSV"]


def _histories(paths: Sequence[Path]) -> Iterator[Interaction]:
    for path in paths:
        for number, record in enumerate(records(path, format_="csv"), start=2):
            try:
                user, history = record["user"], ast.literal_eval(record["history"])
                if not isinstance(history, list):
                    raise ValueError(f"{type(history).__name__} instead of a list")
            except (KeyError, ValueError, SyntaxError) as error:
                raise InputError(
                    f"{path}, line {number}: no user, or no list of items in history: {error!r}"
                ) from error
            for item in history:
                yield Interaction(user, str(item), None, None)


def _item(record: Record) -> Item:
    return {"item": record["asin"], "title": record["title"]}


PAD_CSV = Source(
    name="pad-csv",
    about="CSV files of the published PAD code: *_cleaned_history.csv and metadata_*.csv",
    licence="Applied-Machine-Learning-Lab/PAD, Apache-2.0; the data derive from Amazon Reviews 2018, for research use",
    preset="all",
    read_interactions=_histories,
    read_items=item_reader(_item, needed=["asin", "title"], format_="csv"),
    item_columns={"title": "token_seq"},
    timed=False,
    rated=False,
)
