"""MovieLens 100k, 1M, and the releases with CSV files (GroupLens): ratings with clock times, titles with a year."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..raw import Dialect, Record
from .source import Columns, Item, Layout, ReadItems, Source, item_reader, table_reader

__all__ = ["MOVIELENS", "MOVIELENS_1M", "MOVIELENS_100K"]

LICENCE = (
    "MovieLens (GroupLens usage licence): any research purpose, no commercial use without permission, no endorsement; "
    "acknowledge Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015"
)
FILES = "https://files.grouplens.org/datasets/movielens"
ITEM_COLUMNS = {"title": "token_seq", "year": "token", "genres": "token_seq", "full_title": "token_seq"}
GENRES = (  # the order of the flags in u.item
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")

_WITH_YEAR = re.compile(r"(.+?)\s*\((\d{4})(?:[-\u2013]\d{0,4})?\)\s*")


def titled(token: str, full_title: str, genres: list[str]) -> Item:
    """A film: "Toy Story (1995)" is the title "Toy Story" of the year 1995; a title without a year stays whole."""
    found = _WITH_YEAR.fullmatch(full_title.strip())
    title, year = (found[1], found[2]) if found else (full_title, "")
    return {"item": token, "title": title, "year": year, "genres": genres, "full_title": full_title}


def _item_100k(record: Record) -> Item:
    genres = [genre for genre in GENRES if record[genre] == "1"]
    return titled(record["item"], record["title"], genres)


def _item_listed(record: Record) -> Item:
    genres = [genre for genre in record["genres"].split("|") if genre != "(no genres listed)"]
    return titled(record["movieId"], record["title"], genres)


def _source(
    name: str, about: str, ratings: Layout, read_items: ReadItems, archive: str, members: Sequence[str]
) -> Source:
    return Source(
        name=name,
        about=about,
        licence=LICENCE,
        preset="5core",
        read_interactions=table_reader({"csv": ratings}, "csv"),
        read_items=read_items,
        item_columns=ITEM_COLUMNS,
        downloads={"archive": [f"{FILES}/{archive}"]},
        members=members,
    )


_COLUMNS = Columns("userId", "movieId", "timestamp", "rating")
_NAMES = ("userId", "movieId", "rating", "timestamp")
_LISTED = ("movieId", "title", "genres")

MOVIELENS_100K = _source(
    "movielens-100k",
    "MovieLens 100k: u.data and u.item",
    Layout(_COLUMNS, Dialect("\t", _NAMES, quotes=False)),
    item_reader(
        _item_100k,
        Dialect("|", ("item", "title", "released", "video", "url", *GENRES), quotes=False, encoding="latin-1"),
        format_="csv",
    ),
    "ml-100k.zip",
    ("u.data", "u.item"),
)
MOVIELENS_1M = _source(
    "movielens-1m",
    "MovieLens 1M: ratings.dat and movies.dat",
    Layout(_COLUMNS, Dialect("::", _NAMES)),
    item_reader(_item_listed, Dialect("::", _LISTED, encoding="latin-1"), format_="csv"),
    "ml-1m.zip",
    ("ratings.dat", "movies.dat"),
)
MOVIELENS = _source(
    "movielens",
    "MovieLens latest, 20M, 25M, 32M: ratings.csv and movies.csv",
    Layout(_COLUMNS),
    item_reader(_item_listed, needed=_LISTED, format_="csv"),
    "{key}.zip",
    ("ratings.csv", "movies.csv"),
)
