# ruff: noqa: D102 - `Engine` says what the methods do
"""The engine for large data: both tables lie in a DuckDB file, and every step is one statement that may spill to disk.

Peak memory is DuckDB's `memory_limit` plus the chunks in Python. Disk: the table of interactions twice, while a step
writes the next one from the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import InputError
from ..leave_one_out import MOST_ROWS_ALONE, NEITHER, ROWS_FOR_TEST, ROWS_FOR_VALID, TEST, TRAIN, VALID
from ..raw import extra
from .engine import INTERACTIONS

__all__ = ["DuckEngine"]

_TYPES = {"time": "BIGINT", "row": "BIGINT", "tie": "BIGINT", "rating": "DOUBLE", "back": "BIGINT"}


class DuckEngine:
    """See `Engine`.

    Args:
        item_columns: columns of the source.
        folder: where the database and what it spills are written; some gigabytes for tens of millions of rows.
        memory_limit: of DuckDB, such as 1GB.

    Raises:
        InputError: if duckdb is not installed, or does not understand `memory_limit`.
    """

    name = "duckdb"
    packages: tuple[str, ...] = ("duckdb", "pandas", "numpy")

    def __init__(self, item_columns: Sequence[str], folder: Path, memory_limit: str = "1GB") -> None:
        duckdb = extra("duckdb")
        self._connection: Any = duckdb.connect(str(folder / "prepare.duckdb"))
        try:
            self._run("SET memory_limit = ?", [memory_limit])
        except duckdb.Error as error:
            raise InputError(f"memory_limit: {memory_limit!r}: {error}; write it as 1GB or 800MB") from error
        self._run("SET temp_directory = ?", [str(folder / "spilled")])
        self._run("SET preserve_insertion_order = false")  # every reading of a table is ordered or a set
        self._run("SET threads = 2")  # each thread sorts in memory of its own
        self._make("interactions", INTERACTIONS)
        self._make("items", ("item", "row", *item_columns))

    def close(self) -> None:
        self._connection.close()

    def _run(self, statement: str, values: Sequence[object] = ()) -> Any:
        return self._connection.execute(statement, list(values))

    def _number(self, statement: str) -> int:
        return int(self._run(statement).fetchone()[0])

    def _make(self, table: str, columns: Sequence[str]) -> None:
        typed = ", ".join(f'"{column}" {_TYPES.get(column, "VARCHAR")}' for column in columns)
        self._run(f"CREATE TABLE {table} ({typed})")

    def _replace(self, table: str, select: str, values: Sequence[object] = ()) -> None:
        """Put the result of a statement in the place of the table that it reads."""
        self._run(f"CREATE TABLE next AS {select}", values)
        self._run(f"DROP TABLE {table}")
        self._run(f"ALTER TABLE next RENAME TO {table}")
        self._run("CHECKPOINT")  # gives the space of the old table back

    def _add(self, table: str, chunk: pd.DataFrame) -> None:
        self._connection.register("chunk", chunk)
        names = ", ".join(f'"{column}"' for column in chunk.columns)
        self._run(f"INSERT INTO {table} ({names}) SELECT {names} FROM chunk")
        self._connection.unregister("chunk")

    def add_interactions(self, chunk: pd.DataFrame) -> None:
        self._add("interactions", chunk)

    def add_items(self, chunk: pd.DataFrame) -> None:
        self._add("items", chunk)

    def n_interactions(self) -> int:
        return self._number("SELECT count(*) FROM interactions")

    def n_items(self) -> int:
        return self._number("SELECT count(*) FROM items")

    def n_distinct(self) -> tuple[int, int]:
        of = "SELECT count(*) FROM (SELECT DISTINCT {} FROM interactions)"
        return self._number(of.format('"user"')), self._number(of.format("item"))

    def keep_last_items(self) -> None:
        last = 'SELECT max("row") AS "row" FROM items GROUP BY item'
        self._replace("items", f'SELECT * FROM items SEMI JOIN ({last}) USING ("row")')

    def drop_repeats(self, columns: Sequence[str]) -> None:
        same = ", ".join(f'"{column}"' for column in columns)
        if "time" in columns:  # the earliest row is one number, so a set that may spill is enough
            first = f'SELECT min("row") AS "row" FROM interactions GROUP BY {same}'
        else:
            first = f"""SELECT min("row") AS "row" FROM interactions
                        JOIN (SELECT {same}, min(time) AS time FROM interactions GROUP BY {same}) USING ({same}, time)
                        GROUP BY {same}"""
        self._replace("interactions", f'SELECT * FROM interactions SEMI JOIN ({first}) USING ("row")')

    def drop_unknown_items(self) -> None:
        self._replace("interactions", "SELECT * FROM interactions SEMI JOIN items USING (item)")

    def drop_rated_below(self, floor: float) -> None:
        # a NaN of pandas is NULL here, and so never above the floor
        self._replace("interactions", "SELECT * FROM interactions WHERE rating >= ?", [floor])

    def drop_rare(self, column: str, least: int) -> None:
        often = f'SELECT "{column}" FROM interactions GROUP BY "{column}" HAVING count(*) >= {int(least)}'
        self._replace("interactions", f'SELECT * FROM interactions SEMI JOIN ({often}) USING ("{column}")')

    def cut_histories(self, longest: int | None, kept: int) -> None:
        numbered = """SELECT *, row_number() OVER (PARTITION BY "user" ORDER BY time DESC, tie DESC) AS back,
                      count(*) OVER (PARTITION BY "user") AS length FROM interactions"""
        within = "true" if longest is None else f"length <= {int(longest)} OR back <= {int(kept)}"
        self._replace("interactions", f"SELECT * EXCLUDE (length) FROM ({numbered}) WHERE {within}")

    def drop_unused_items(self) -> None:
        self._replace("items", "SELECT * FROM items SEMI JOIN interactions USING (item)")

    def interactions(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        yield from self._chunks(
            'SELECT "user", item, time, rating FROM interactions ORDER BY "user", time, tie', chunk_rows
        )

    def items(self, chunk_rows: int) -> Iterator[pd.DataFrame]:
        yield from self._chunks('SELECT * EXCLUDE ("row") FROM items ORDER BY "row"', chunk_rows)

    def _chunks(self, select: str, chunk_rows: int) -> Iterator[pd.DataFrame]:
        result = self._connection.cursor().execute(select)
        vectors = max(1, chunk_rows // 2048)  # DuckDB hands out vectors of 2048 rows
        while len(chunk := result.fetch_df_chunk(vectors)):
            yield chunk

    def by_train_frequency(self) -> pd.DataFrame:
        return self._run(
            f"""
            WITH sizes AS (SELECT "user", count(*) AS size FROM interactions GROUP BY "user"),
            parts AS (
                SELECT item, CASE WHEN back = 1 AND size >= {ROWS_FOR_TEST} THEN '{TEST}'
                                  WHEN back = 2 AND size >= {ROWS_FOR_VALID} THEN '{VALID}'
                                  WHEN size > {MOST_ROWS_ALONE} THEN '{TRAIN}' ELSE '{NEITHER}' END AS part
                FROM interactions JOIN sizes USING ("user")
            ),
            of_item AS (
                SELECT count(*) FILTER (part = '{TRAIN}') AS frequency, count(*) FILTER (part = '{VALID}') AS valid,
                       count(*) FILTER (part = '{TEST}') AS test
                FROM parts GROUP BY item
            )
            SELECT frequency::BIGINT AS frequency, count(*)::BIGINT AS items, sum(valid)::BIGINT AS valid,
                   sum(test)::BIGINT AS test
            FROM of_item GROUP BY frequency ORDER BY frequency
            """
        ).df()
