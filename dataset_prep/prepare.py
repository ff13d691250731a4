"""From raw files to RecBole atomic files: read, drop, order, write; one pipeline for all sources and both engines.

Every step that drops rows is in the manifest with how many. The three files are written under temporary names and
moved into place when all of them are whole, the manifest last; it has no date, so the same input gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

from .atomic import InteractionCounts, file_digest, frequency_groups, write_inter, write_item
from .clean import text_cleaner, token_of
from .engines import Engine, Storage, choose, open_engine
from .errors import InputError
from .files import make_folder
from .raw import expand
from .recipe import DUPLICATES, Recipe
from .sources.source import Interaction, Source
from .text_encoders import package_version

__all__ = ["MANIFEST_FORMAT", "TIES", "prepare", "tie_keys"]

log = logging.getLogger(__name__)

MANIFEST_FORMAT = 1
TIES = ("keep", "shuffle")
CHUNK_ROWS = 100_000

T = TypeVar("T")


def prepare(
    source: Source,
    interactions: Sequence[Path],
    items: Sequence[Path],
    folder: Path,
    name: str,
    recipe: Recipe,
    *,
    ties: str = "keep",
    seed: int = 0,
    entities: str = "decode",
    storage: Storage = Storage(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Prepare a dataset: ``folder/name.inter``, ``.item`` and ``.manifest.json``.

    Args:
        source: how the raw files are read.
        interactions: raw files of interactions, read in this order; folders of Parquet files.
        items: raw files of items; none: there is no `.item` file, and no interaction is dropped for want of metadata.
        folder: of the dataset; made if absent.
        name: of the dataset.
        recipe: what is kept.
        ties: keep: rows of one user and time in the order of the source; shuffle: in an order drawn by `seed`.
        seed: for `ties`.
        entities: decode or keep the HTML entities of texts.
        storage: the engine, its memory and its place.

    Returns:
        The manifest.

    Raises:
        InputError: if a file cannot be read, nothing is left, or the folder cannot be written.
    """
    if ties not in TIES:
        raise InputError(f"ties: {ties!r} is neither 'keep' nor 'shuffle'")
    if seed < 0:
        raise InputError(f"seed must be a whole number from 0, not {seed}")
    clean = text_cleaner(entities)
    interaction_files, item_files = expand(interactions), expand(items)
    if not interaction_files:
        raise InputError("interactions: no raw file is named; use --interactions FILE ... or --download")
    chosen = choose(storage.engine, sum(file.stat().st_size for file in [*interaction_files, *item_files]))
    columns = list(source.item_columns) if item_files else []

    elsewhere = None if storage.temp_dir == folder else storage.temp_dir
    with _workplace(folder) as place, _workplace(elsewhere or place) as spill:
        with open_engine(chosen, columns, spill, storage.memory_limit) as tables:
            filters = [_read(source, interaction_files, tables, ties, seed)]
            if item_files:
                filters += _read_items(source, item_files, tables, columns, clean)
            filters += _drop(tables, recipe, bool(item_files))
            if not tables.n_interactions():
                steps = "; ".join(f"{step['filter']}: {step['removed']:,} removed" for step in filters)
                raise InputError(f"{name}: no interaction is left ({steps}); name the right files or a milder recipe")
            written, filled, counts = _write(source, tables, place, name, bool(item_files))
            n_users, n_items = tables.n_distinct()
            manifest = {
                "format": MANIFEST_FORMAT,
                "dataset": name,
                "source": source.name,
                "licence": source.licence,
                "raw_files": {
                    "interactions": [file_digest(file) for file in interaction_files],
                    "items": [file_digest(file) for file in item_files],
                },
                "recipe": dataclasses.asdict(recipe),
                "ties": {"order": ties, **({"seed": seed} if ties == "shuffle" else {})},
                "entities": entities,
                "filters": filters,
                "counts": _summary(counts, n_users, n_items),
                "time": _about_time(source, counts),
                "items_with": filled,
                "by_train_frequency": frequency_groups(tables.by_train_frequency()),
                "files": [file_digest(file) for file in written],
                "engine": tables.name,
                "versions": {
                    "python": platform.python_version(),
                    **{package: package_version(package) for package in ("recbole-pad", *tables.packages)},
                },
            }
        manifest_file = place / f"{name}.manifest.json"
        manifest_file.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        (folder / manifest_file.name).unlink(missing_ok=True)  # from here until the end nothing vouches for the files
        if not item_files:
            (folder / f"{name}.item").unlink(missing_ok=True)  # of an earlier run, with other items
        for file in (*written, manifest_file):
            file.replace(folder / file.name)
    return manifest


def tie_keys(rows: NDArray[np.int64], ties: str, seed: int) -> NDArray[np.int64]:
    """Distinct numbers by which rows of one user and time are ordered: the place in the source, or a mix of it.

    The mix is splitmix64 (Steele et al. 2014), which maps different numbers to different ones. It depends on nothing
    but the row and the seed, so both engines see the same order however the rows are cut into chunks.
    """
    if ties == "keep":
        return rows
    with np.errstate(over="ignore"):
        mixed = rows.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15) * np.uint64(seed + 1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64)


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside the result for what is not whole yet; a killed run leaves it, and the next one says so."""
    make_folder(folder, "output")
    left = sorted(folder.glob(".preparing-*"))
    try:
        place = Path(tempfile.mkdtemp(prefix=".preparing-", dir=folder))
    except OSError as error:
        raise InputError(f"output: {folder} cannot be written into ({error.strerror}); name another folder") from error
    if left:
        log.warning("left by another run, delete it if that was killed: %s", ", ".join(map(str, left)))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _in_chunks(values: Iterable[T], what: str) -> Iterator[list[T]]:
    iterator = iter(values)
    with tqdm(desc=f"reading {what}", unit=" rows", unit_scale=True, disable=None) as bar:  # on a terminal
        while chunk := list(islice(iterator, CHUNK_ROWS)):
            yield chunk
            bar.update(len(chunk))


def _read(source: Source, files: Sequence[Path], tables: Engine, ties: str, seed: int) -> dict[str, Any]:
    """All interactions into the table, but those without user, item or time."""
    refused: Counter[str] = Counter()
    n_read = 0
    for chunk in _in_chunks(source.read_interactions(files), "interactions"):
        frame = _frame(chunk, n_read, source.timed, refused)
        n_read += len(chunk)
        frame["tie"] = tie_keys(frame["row"].to_numpy(), ties, seed)
        tables.add_interactions(frame)
    removed = refused.total()
    reasons = {f"no {reason}": refused[reason] for reason in ("user", "item", "readable time") if refused[reason]}
    return {
        "filter": "rows without user, item or readable time",
        "removed": removed,
        "left": n_read - removed,
        **reasons,
    }


def _frame(chunk: Sequence[Interaction], n_before: int, timed: bool, refused: Counter[str]) -> pd.DataFrame:
    users, items, times, ratings, rows = [], [], [], [], []
    for row, (user, item, time, rating) in enumerate(chunk, start=n_before):
        if not timed:
            time = row
        if not user or not item or time is None:
            refused["user" if not user else "item" if not item else "readable time"] += 1
            continue
        users.append(user)
        items.append(item)
        times.append(time)
        ratings.append(np.nan if rating is None else rating)
        rows.append(row)
    return pd.DataFrame(
        {
            "user": pd.Series(users, dtype=object),
            "item": pd.Series(items, dtype=object),
            "time": np.array(times, dtype=np.int64),
            "rating": np.array(ratings, dtype=np.float64),
            "row": np.array(rows, dtype=np.int64),
        }
    )


def _read_items(
    source: Source, files: Sequence[Path], tables: Engine, columns: Sequence[str], clean: Callable[[Any], str]
) -> list[dict[str, Any]]:
    n_read = n_nameless = 0
    for chunk in _in_chunks(source.read_items(files), "items"):
        named = [(token, item) for item in chunk if (token := token_of(item.get("item")))]
        frame: dict[str, Any] = {"item": pd.Series([token for token, _ in named], dtype=object)}
        frame["row"] = np.arange(n_read, n_read + len(named), dtype=np.int64)
        frame.update({name: pd.Series([clean(item.get(name)) for _, item in named], dtype=object) for name in columns})
        tables.add_items(pd.DataFrame(frame))
        n_read += len(chunk)
        n_nameless += len(chunk) - len(named)
    before = tables.n_items()
    tables.keep_last_items()
    after = tables.n_items()
    return [
        {"filter": "lines of items without an id", "of": "items", "removed": n_nameless, "left": before},
        {"filter": "lines of an item but the last", "of": "items", "removed": before - after, "left": after},
    ]


def _drop(tables: Engine, recipe: Recipe, has_items: bool) -> list[dict[str, Any]]:
    """Do the recipe's steps and count what each removes."""
    done: list[dict[str, Any]] = []

    def step(text: str, drop: Callable[[], None]) -> int:
        before = tables.n_interactions()
        drop()
        after = tables.n_interactions()
        done.append({"filter": text, "removed": before - after, "left": after})
        return before - after

    for same in DUPLICATES[recipe.duplicates]:
        step(f"equal {', '.join(same)}, but the earliest", partial(tables.drop_repeats, same))
    if has_items:
        step("items without metadata", tables.drop_unknown_items)
    if (floor := recipe.min_rating) is not None:
        step(f"rating below {floor:g}, or none", lambda: tables.drop_rated_below(floor))
    if recipe.user_core > 1 or recipe.item_core > 1:
        done += _core(tables, recipe)
    text = f"histories longer than {recipe.longest}: all but the last {recipe.kept}"
    if recipe.longest is None:
        tables.cut_histories(None, 0)
    else:
        step(text, lambda: tables.cut_histories(recipe.longest, recipe.kept))
    if has_items:
        before = tables.n_items()
        tables.drop_unused_items()
        after = tables.n_items()
        done.append({"filter": "items without interactions", "of": "items", "removed": before - after, "left": after})
    return done


def _core(tables: Engine, recipe: Recipe) -> list[dict[str, Any]]:
    """Drop users and items in turns until each user left has `user_core` rows and each item `item_core`."""
    least = {"user": recipe.user_core, "item": recipe.item_core}
    removed = dict.fromkeys(least, 0)
    rounds = 0
    before = tables.n_interactions()
    while True:
        rounds += 1
        start = before
        for column, number in least.items():
            if number > 1:
                tables.drop_rare(column, number)
                after = tables.n_interactions()
                removed[column] += before - after
                before = after
        if before == start or min(least.values()) == 1:  # of one kind only: the first pass leaves nobody to drop
            break
    return [
        {
            "filter": f"users with fewer than {recipe.user_core} rows, items with fewer than {recipe.item_core}",
            "removed": sum(removed.values()),
            "left": before,
            "of_users": removed["user"],
            "of_items": removed["item"],
            "rounds": rounds,
        }
    ]


def _write(
    source: Source, tables: Engine, place: Path, name: str, has_items: bool
) -> tuple[list[Path], dict[str, int], InteractionCounts]:
    inter, item = place / f"{name}.inter", place / f"{name}.item"
    counts = write_inter(inter, tables.interactions(CHUNK_ROWS), source.timed, source.rated)
    if not has_items:
        log.warning("%s: no files of items are named: there is no .item file and no text", name)
        return [inter], {}, counts
    filled = write_item(item, tables.items(CHUNK_ROWS), source.item_columns)
    return [inter, item], filled, counts


def _summary(counts: InteractionCounts, n_users: int, n_items: int) -> dict[str, Any]:
    lengths = np.array(sorted(counts.lengths))
    users_up_to = np.cumsum([counts.lengths[length] for length in lengths.tolist()])
    middle = lengths[np.searchsorted(users_up_to, [(n_users - 1) // 2, n_users // 2], side="right")]
    return {
        "users": n_users,
        "items": n_items,
        "interactions": counts.interactions,
        "density": counts.interactions / (n_users * n_items),
        "history_length": {
            "min": int(lengths[0]),
            "median": float(middle.mean()),
            "mean": counts.interactions / n_users,
            "max": int(lengths[-1]),
        },
    }


def _about_time(source: Source, counts: InteractionCounts) -> dict[str, Any]:
    if not source.timed:
        return {"unit": "place in the user's history, from 0; no clock"}
    return {
        "unit": "seconds since 1970 (UTC), float32 values in the order of the exact times within each user",
        "first": counts.first,
        "last": counts.last,
        "neighbours_tied": counts.tied,
        "largest_shift": counts.shift,
    }
