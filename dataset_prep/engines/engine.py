"""What the pipeline asks of an engine: a table of interactions and one of items, and the few steps done on them.

Two engines: pandas holds both tables in memory, DuckDB on disk. Both get the same chunks and give the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pandas as pd

__all__ = ["INTERACTIONS", "ITEMS", "Engine"]

# user, item: texts. time: milliseconds, int64. rating: float64, NaN where there is none. row: place in the source,
# int64, distinct. tie: distinct int64 that order rows of the same user and time.
INTERACTIONS = ("user", "item", "time", "rating", "row", "tie")
ITEMS = ("item", "row")  # and the columns of the source, texts


class Engine(Protocol):
    """The two tables. Each step changes them; the pipeline counts the rows before and after.

    `cut_histories` is the last step on interactions: what is read out afterwards builds on it.
    """

    name: str
    packages: tuple[str, ...]  # distributions whose versions the manifest records

    def add_interactions(self, chunk: pd.DataFrame) -> None:
        """Append rows with the columns `INTERACTIONS`."""

    def add_items(self, chunk: pd.DataFrame) -> None:
        """Append rows with the columns `ITEMS` and those of the source."""

    def n_interactions(self) -> int:
        """Rows of the table of interactions."""

    def n_items(self) -> int:
        """Rows of the table of items."""

    def n_distinct(self) -> tuple[int, int]:
        """Users and items in the table of interactions."""

    def keep_last_items(self) -> None:
        """Of several lines of one item, keep the last."""

    def drop_repeats(self, columns: Sequence[str]) -> None:
        """Of several rows equal in `columns`, keep the earliest: the smallest time, then the smallest row."""

    def drop_unknown_items(self) -> None:
        """Drop interactions with items that the table of items does not have."""

    def drop_rated_below(self, floor: float) -> None:
        """Drop interactions with a rating below `floor`, or none."""

    def drop_rare(self, column: str, least: int) -> None:
        """Drop interactions whose user (or item) has fewer than `least`; one pass."""

    def cut_histories(self, longest: int | None, kept: int) -> None:
        """Keep the last `kept` rows, by (time, tie), of users with more than `longest`; None: all rows of all users."""

    def drop_unused_items(self) -> None:
        """Drop items without interactions."""

    def interactions(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        """The interactions (user, item, time, rating) in the order of user, time and tie, in chunks."""

    def items(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        """The items in the order of `row`, in chunks."""

    def by_train_frequency(self) -> pd.DataFrame:
        """Leave-one-out targets by the train frequency of the item.

        The parts of the split: `dataset_prep.leave_one_out`.

        Returns:
            Columns frequency, items, valid, test, all int64, one row per frequency that occurs, ascending: how many
            items occur so often in train, and how many validation and test targets are such items.
        """
