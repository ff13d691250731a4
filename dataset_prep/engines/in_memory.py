# ruff: noqa: D102 - `Engine` says what the methods do
"""The engine for small data: both tables are pandas frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from ..leave_one_out import TEST, TRAIN, VALID, part_of_split
from .engine import INTERACTIONS

__all__ = ["PandasEngine"]


class PandasEngine:
    """See `Engine`. Memory: some 200 bytes an interaction, and the texts of all items of the metadata."""

    name = "pandas"
    packages: tuple[str, ...] = ("pandas", "numpy")

    def __init__(self, item_columns: Sequence[str]) -> None:
        self._interactions: list[pd.DataFrame] = []
        self._items: list[pd.DataFrame] = []
        self._item_columns = ["item", "row", *item_columns]

    @property
    def rows(self) -> pd.DataFrame:
        if len(self._interactions) != 1:
            empty = pd.DataFrame(columns=list(INTERACTIONS))
            self._interactions = [pd.concat(self._interactions or [empty], ignore_index=True)]
        return self._interactions[0]

    @rows.setter
    def rows(self, value: pd.DataFrame) -> None:
        self._interactions = [value]

    @property
    def catalogue(self) -> pd.DataFrame:
        if len(self._items) != 1:
            empty = pd.DataFrame(columns=self._item_columns)
            self._items = [pd.concat(self._items or [empty], ignore_index=True)]
        return self._items[0]

    @catalogue.setter
    def catalogue(self, value: pd.DataFrame) -> None:
        self._items = [value]

    def add_interactions(self, chunk: pd.DataFrame) -> None:
        self._interactions.append(chunk)

    def add_items(self, chunk: pd.DataFrame) -> None:
        self._items.append(chunk)

    def n_interactions(self) -> int:
        return len(self.rows)

    def n_items(self) -> int:
        return len(self.catalogue)

    def n_distinct(self) -> tuple[int, int]:
        return self.rows["user"].nunique(), self.rows["item"].nunique()

    def keep_last_items(self) -> None:
        self.catalogue = self.catalogue.sort_values("row").drop_duplicates("item", keep="last")

    def drop_repeats(self, columns: Sequence[str]) -> None:
        self.rows = self.rows.sort_values(["time", "row"]).drop_duplicates(list(columns))

    def drop_unknown_items(self) -> None:
        self.rows = self.rows[self.rows["item"].isin(self.catalogue["item"])]

    def drop_rated_below(self, floor: float) -> None:
        self.rows = self.rows[self.rows["rating"] >= floor]

    def drop_rare(self, column: str, least: int) -> None:
        counts = self.rows[column].value_counts()
        self.rows = self.rows[self.rows[column].isin(counts.index[counts >= least])]

    def cut_histories(self, longest: int | None, kept: int) -> None:
        rows = self.rows.sort_values(["user", "time", "tie"], ignore_index=True)
        rows["back"] = rows.groupby("user").cumcount(ascending=False) + 1
        if longest is not None:
            length = rows.groupby("user")["back"].transform("size")
            rows = rows[(length <= longest) | (rows["back"] <= kept)]
        self.rows = rows

    def drop_unused_items(self) -> None:
        self.catalogue = self.catalogue[self.catalogue["item"].isin(self.rows["item"])]

    def interactions(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        ordered = self.rows.sort_values(["user", "time", "tie"])
        for start in range(0, len(ordered), chunk_rows):
            yield ordered.iloc[start : start + chunk_rows][["user", "item", "time", "rating"]]

    def items(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        ordered = self.catalogue.sort_values("row").drop(columns="row")
        for start in range(0, len(ordered), chunk_rows):
            yield ordered.iloc[start : start + chunk_rows]

    def by_train_frequency(self) -> pd.DataFrame:
        size = self.rows.groupby("user")["back"].transform("size").to_numpy()
        part = part_of_split(self.rows["back"].to_numpy(), size)
        columns = {"frequency": TRAIN, "valid": VALID, "test": TEST}
        found = {column: (part == of).astype(np.int64) for column, of in columns.items()}
        parts = pd.DataFrame({"item": self.rows["item"], **found})
        of_item = parts.groupby("item")[["frequency", "valid", "test"]].sum().assign(items=1)
        return of_item.groupby("frequency")[["items", "valid", "test"]].sum().reset_index().astype("int64")
