"""Reviews as JSON lines from UCSD: Steam, Goodreads. Others of this kind: the source `table` with your own columns."""

from __future__ import annotations

from ..raw import Record
from .source import Columns, Item, Layout, Source, item_reader, table_reader

__all__ = ["GOODREADS", "STEAM"]

UCSD = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/goodreads/byGenre"
KANG = "https://cseweb.ucsd.edu/~wckang"


def _game(record: Record) -> Item:
    return {
        "item": record.get("id"),
        "title": record.get("app_name") or record.get("title"),
        "publisher": record.get("publisher"),
        "genres": record.get("genres"),
        "tags": record.get("tags"),
    }


def _book(record: Record) -> Item:
    return {
        "item": record.get("book_id"),
        "title": record.get("title"),
        "publisher": record.get("publisher"),
        "description": record.get("description"),
    }


STEAM = Source(
    name="steam",
    about="Steam: steam_reviews.json (Python literals) and steam_games.json",
    licence="Steam reviews (W.-C. Kang and J. McAuley, UCSD): published for research use, without a formal licence",
    preset="5core",
    read_interactions=table_reader(
        {"json": Layout(Columns("username", "product_id", "date", time_unit="%Y-%m-%d"))}, "json"
    ),
    read_items=item_reader(_game, format_="json"),
    item_columns={"title": "token_seq", "publisher": "token_seq", "genres": "token_seq", "tags": "token_seq"},
    rated=False,
    downloads={"interactions": [f"{KANG}/steam_reviews.json.gz"], "items": [f"{KANG}/steam_games.json.gz"]},
)
GOODREADS = Source(
    name="goodreads",
    about="Goodreads by genre: goodreads_reviews_*.json (or interactions) and goodreads_books_*.json",
    licence="Goodreads (M. Wan and J. McAuley, UCSD): academic use only, no redistribution, no commercial use",
    preset="5core",
    read_interactions=table_reader(
        {"json": Layout(Columns("user_id", "book_id", "date_added", "rating", "%a %b %d %H:%M:%S %z %Y"))}, "json"
    ),
    read_items=item_reader(_book, format_="json", needed=["book_id"]),
    item_columns={"title": "token_seq", "publisher": "token_seq", "description": "token_seq"},
    downloads={
        "interactions": [f"{UCSD}/goodreads_reviews_{{key}}.json.gz"],
        "items": [f"{UCSD}/goodreads_books_{{key}}.json.gz"],
    },
)
