"""MIND small and large (Microsoft News): clicks from behaviors.tsv, titles from news.tsv.

A line of behaviors.tsv has the user's earlier clicks (without times) and one impression, whose clicked news end in
``-1``. A user's earlier clicks come again on each of his lines, and the lines of a later part (dev) have longer ones:
the longest is taken, once. Its clicks come before the user's first impression, one second apart. A click that is in
both is one (preset `paper-mind`: one row per user and news, the earliest).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError
from ..raw import Dialect, Record, records
from ..times import clock
from .source import Interaction, Item, Source, item_reader

__all__ = ["MIND"]

BEHAVIORS = Dialect("\t", ("impression", "user", "time", "history", "impressions"), quotes=False)
NEWS = Dialect(
    "\t",
    ("item", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"),
    quotes=False,
)
RELEASE = "https://recodatasets.z20.web.core.windows.net/newsrec"
SECOND = 1000


def _clicks(paths: Sequence[Path]) -> Iterator[Interaction]:
    read_time = clock("%m/%d/%Y %I:%M:%S %p")
    earlier: dict[str, tuple[int, str]] = {}  # user -> time of the first impression, longest history
    for path in paths:
        for number, record in enumerate(records(path, BEHAVIORS, "csv"), start=1):
            user, history = record["user"], record["history"]
            try:
                time = read_time(record["time"])
            except ValueError as error:
                raise InputError(f"{path}, line {number}: {error}; times look like 11/15/2019 9:55:12 AM") from error
            first, longest = earlier.get(user, (time, ""))
            earlier[user] = min(first, time), max(longest, history, key=len)
            for impression in record["impressions"].split():
                news, _, clicked = impression.rpartition("-")
                if clicked == "1" and news:  # the test part of MIND large has no labels
                    yield Interaction(user, news, time, None)
    for user, (first, history) in earlier.items():
        past = history.split()
        for place, news in enumerate(past):
            yield Interaction(user, news, first - (len(past) - place) * SECOND, None)


def _item(record: Record) -> Item:
    return {name: record[name] for name in ("item", "title", "category", "subcategory", "abstract")}


MIND = Source(
    name="mind",
    about="MIND small and large: behaviors.tsv and news.tsv of train and dev",
    licence="MIND (Microsoft Research License Terms): research use, no redistribution; Wu et al., ACL 2020",
    preset="paper-mind",
    read_interactions=_clicks,
    read_items=item_reader(_item, NEWS, format_="csv"),
    item_columns={
        "title": "token_seq",
        "category": "token_seq",
        "subcategory": "token_seq",
        "abstract": "token_seq",
    },
    rated=False,
    downloads={"archive": [f"{RELEASE}/MIND{{key}}_train.zip", f"{RELEASE}/MIND{{key}}_dev.zip"]},
    members=("behaviors.tsv", "news.tsv"),
)
