"""Amazon Reviews of 2014, 2018 and 2023 (J. McAuley): reviews with their texts, or ratings only, and metadata.

Schemas: jmcauley.ucsd.edu/data/amazon (2014), cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2 (2018),
amazon-reviews-2023.github.io. Field names differ, and so do the columns of the files of ratings only: 2014 has the user
first, 2018 the item. In 2023 an item is a `parent_asin`, which is what the metadata describe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..clean import path_of, token_of
from ..raw import Dialect, Record
from .source import Columns, Item, Layout, Source, item_reader, table_reader

__all__ = ["AMAZON_2014", "AMAZON_2018", "AMAZON_2023"]

LICENCE = "Amazon Reviews {year} (J. McAuley, UCSD): published for research use, without a formal licence"
ITEM_COLUMNS = {"title": "token_seq", "brand": "token_seq", "categories": "token_seq", "price": "float"}
UCSD = "https://mcauleylab.ucsd.edu/public_datasets/data"
SNAP = "http://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

_PRICE = re.compile(r"\$?\s*(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?")


def price_of(value: Any) -> str:
    """A price in dollars as a number: 9.99 of "$9.99" or 9.99; "" for a range, a sentence or a piece of a web page."""
    found = _PRICE.fullmatch(token_of(value))
    return found[1].replace(",", "") + (found[2] or "") if found else ""


def title_of(value: Any) -> Any:
    """The title; a script of the product page that stands in its place (2018, with "getTime") counts as none."""
    return "" if "getTime" in str(value) else value


def longest_path(paths: Any) -> Sequence[Any]:
    """The longest of several category paths (2014), the first one where several are; a plain list is one path."""
    if not isinstance(paths, list):
        return [paths] if paths else []
    nested = [path for path in paths if isinstance(path, list)]
    return max(nested, key=len) if nested else paths


def _item(record: Record, key: str, categories: str, brand: str) -> Item:
    return {
        "item": record.get(key),
        "title": title_of(record.get("title")),
        "brand": record.get(brand),
        "categories": path_of(longest_path(record.get(categories))),
        "price": price_of(record.get("price")),
    }


def _release(
    year: int, reviews: Columns, ratings: Dialect, key: str, categories: str, brand: str, **downloads: Sequence[str]
) -> Source:
    header = ratings.names is None
    listed = Columns(reviews.user, reviews.item, "timestamp", "rating", reviews.time_unit)
    plain = Columns("user", "item", "timestamp", "rating", reviews.time_unit)
    layouts = {
        "json": Layout(reviews),
        "csv": Layout(listed if header else plain, ratings),
        "parquet": Layout(reviews),
    }
    return Source(
        name=f"amazon-{year}",
        about=f"Amazon Reviews {year}: reviews (.json) or ratings only (.csv), and meta_*.json",
        licence=LICENCE.format(year=year),
        preset="5core",
        read_interactions=table_reader(layouts),
        read_items=item_reader(lambda record: _item(record, key, categories, brand), needed=[key]),
        item_columns=ITEM_COLUMNS,
        downloads=downloads,
    )


OLD_REVIEWS = Columns("reviewerID", "asin", "unixReviewTime", "overall", "s")

AMAZON_2014 = _release(
    2014,
    OLD_REVIEWS,
    Dialect(names=("user", "item", "rating", "timestamp")),
    "asin",
    "categories",
    "brand",
    interactions=[f"{SNAP}/reviews_{{key}}.json.gz"],
    items=[f"{SNAP}/meta_{{key}}.json.gz"],
)
AMAZON_2018 = _release(
    2018,
    OLD_REVIEWS,
    Dialect(names=("item", "user", "rating", "timestamp")),
    "asin",
    "category",
    "brand",
    interactions=[f"{UCSD}/amazon_v2/categoryFiles/{{key}}.json.gz"],
    items=[f"{UCSD}/amazon_v2/metaFiles2/meta_{{key}}.json.gz"],
)
AMAZON_2023 = _release(
    2023,
    Columns("user_id", "parent_asin", "timestamp", "rating", "ms"),
    Dialect(),
    "parent_asin",
    "categories",
    "store",
    interactions=[f"{UCSD}/amazon_2023/raw/review_categories/{{key}}.jsonl.gz"],
    items=[f"{UCSD}/amazon_2023/raw/meta_categories/meta_{{key}}.jsonl.gz"],
)
