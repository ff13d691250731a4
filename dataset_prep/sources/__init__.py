"""The public dumps that can be prepared, by the word of the command line. A new one: a `Source`, and a name here."""

from __future__ import annotations

from .amazon import AMAZON_2014, AMAZON_2018, AMAZON_2023
from .jsonlines import GOODREADS, STEAM
from .mind import MIND
from .movielens import MOVIELENS, MOVIELENS_1M, MOVIELENS_100K
from .pad_csv import PAD_CSV
from .source import Source
from .table import TABLE

__all__ = ["SOURCES"]

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        AMAZON_2014,
        AMAZON_2018,
        AMAZON_2023,
        MIND,
        MOVIELENS_100K,
        MOVIELENS_1M,
        MOVIELENS,
        PAD_CSV,
        STEAM,
        GOODREADS,
        TABLE,
    )
}
