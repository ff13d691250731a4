"""The commands `prepare` and `check`: their flags, and what they print. Also `python -m dataset_prep`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .engines import ENGINES, Storage
from .errors import InputError
from .pick import pick
from .prepare import TIES, prepare
from .recipe import DUPLICATES, PRESETS, Recipe
from .sources import SOURCES
from .sources.source import Columns, Source, with_columns

__all__ = ["add_check", "add_prepare", "main", "run_check", "run_prepare"]

_RECIPE_FLAGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "duplicates": (str, f"{', '.join(DUPLICATES)}: rows equal in user, item (and time), but the earliest, go"),
    "min_rating": (float, "drop rows with a smaller rating"),
    "user_core": (int, "drop users with fewer rows (with item_core: until nobody is left to drop)"),
    "item_core": (int, "drop items with fewer rows"),
    "longest": (int, "users with more rows than that keep their last --kept"),
    "kept": (int, "see --longest"),
}


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="one of the sources below")
    parser.add_argument("--interactions", nargs="+", type=Path, default=[], metavar="FILE", help="raw interactions")
    parser.add_argument("--items", nargs="+", type=Path, default=[], metavar="FILE", help="raw metadata")
    parser.add_argument("--name", "-d", required=True, help="name of the dataset")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="folder of datasets (default: dataset)")
    parser.add_argument("--preset", default=None, help=f"{', '.join(PRESETS)} (default: the source's)")
    for name, (kind, text) in _RECIPE_FLAGS.items():
        parser.add_argument(f"--{name}", type=kind, default=None, help=text)
    parser.add_argument("--ties", default="keep", choices=TIES, help="order of one user's rows of one time")
    parser.add_argument("--seed", type=int, default=0, help="of --ties shuffle (default: 0)")
    parser.add_argument("--entities", default="decode", choices=("decode", "keep"), help="HTML entities in texts")
    parser.add_argument("--engine", default="auto", choices=ENGINES, help="auto: DuckDB from 200 MB of raw files on")
    parser.add_argument("--memory_limit", default="1GB", help="of DuckDB (default: 1GB)")
    parser.add_argument(
        "--temp_dir", type=Path, default=None, help="where DuckDB spills (default: the dataset's folder)"
    )
    parser.add_argument("--columns", nargs="+", default=[], metavar="X=COLUMN", help="user=, item=, time=, rating=")
    parser.add_argument("--item_columns", nargs="+", default=[], metavar="X=COLUMN", help="item=, title=, ...")
    parser.add_argument("--time_unit", default=None, help="s (default), ms, us, ns, iso, or a format as %%Y-%%m-%%d")
    parser.add_argument("--separator", default=None, help="of text tables (default: comma, in .tsv and .txt a tab)")
    parser.add_argument("--format", default=None, help="json, csv or parquet (default: from the name of each file)")
    parser.add_argument("--download", default=None, metavar="KEY", help="fetch the raw files, for example Prime_Pantry")
    parser.add_argument("--raw", type=Path, default=Path("raw"), help="folder of downloads (default: raw)")
    lines = [f"  {name:<16}{source.about}" for name, source in SOURCES.items()]
    parser.epilog = "sources:\n" + "\n".join(lines) + "\n\ndocs/datasets.md links a page for each."


def run_prepare(known: argparse.Namespace) -> int:
    """Prepare a dataset and print what was dropped and what is there.

    Raises:
        InputError: for a name that is no folder's, flags that do not go together, or as `prepare`.
    """
    if not re.fullmatch(r"\w[\w.-]*", known.name):
        raise InputError(
            f"name: {known.name!r} names a folder and its files; use letters, digits, _ - and ., but no . or - in front"
        )
    source = _source(known)
    interactions, items = known.interactions, known.items
    if known.download is not None:
        if interactions or items:
            raise InputError("download: name either the files, or what to fetch")
        from .download import fetch

        interactions, items = fetch(source, known.download, known.raw)
    folder = known.data_path / known.name
    manifest = prepare(
        source,
        interactions,
        items,
        folder,
        known.name,
        _recipe(known, source),
        ties=known.ties,
        seed=known.seed,
        entities=known.entities,
        storage=Storage(known.engine, known.memory_limit, known.temp_dir),
    )
    print(_told(manifest))
    files = [*(entry["file"] for entry in manifest["files"]), f"{known.name}.manifest.json"]
    print(f"files in {folder}: {', '.join(files)}")
    print(f"next: recbole-pad check {known.name} --data_path {known.data_path}")
    return 0


def _source(known: argparse.Namespace) -> Source:
    source = pick(SOURCES, known.source, "source")
    if not source.mapped:
        for flag in ("columns", "item_columns", "time_unit", "separator", "format"):
            if getattr(known, flag):
                raise InputError(f"{flag}: {source.name} knows its files; the source `table` takes it from you")
        return source
    columns = _pairs(known.columns, "columns")
    wrong = set(columns) - {"user", "item", "time", "rating"}
    if wrong or not {"user", "item"} <= set(columns):
        raise InputError("columns: write user=..., item=..., and time=... and rating=... if there are such columns")
    if known.time_unit and "time" not in columns:
        raise InputError(f"time_unit: {known.time_unit!r} is of a column of times; add time=... to columns")
    mapping = Columns(**columns, time_unit=known.time_unit or "s")
    item_columns = _pairs(known.item_columns, "item_columns")
    made = with_columns(source, mapping, item_columns, known.separator, known.format)
    if item_columns and not known.items:
        raise InputError("item_columns: are columns of the files of items; name them in --items")
    return made


def _pairs(given: Sequence[str], what: str) -> dict[str, str]:
    for pair in given:
        if not all(pair.partition("=")):
            raise InputError(f"{what}: {pair!r} is not of the form name=column")
    return {name: column for name, _, column in (pair.partition("=") for pair in given)}


def _recipe(known: argparse.Namespace, source: Source) -> Recipe:
    recipe = pick(PRESETS, known.preset or source.preset, "preset")
    changes = {name: getattr(known, name) for name in _RECIPE_FLAGS if getattr(known, name) is not None}
    return dataclasses.replace(recipe, **changes)


def _told(manifest: dict[str, Any]) -> str:
    lines = [
        f"{step['filter']}: {step['removed']:,} {step.get('of', 'interactions')} removed, {step['left']:,} left"
        for step in manifest["filters"]
    ]
    counts = manifest["counts"]
    for name, number in manifest["items_with"].items():
        if number < counts["items"]:
            lines.append(f"items without {name}: {counts['items'] - number:,}")
    lines.append(f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions")
    return "\n".join(lines)


def add_check(parser: argparse.ArgumentParser) -> None:
    """Flags of `check`."""
    parser.add_argument("dataset", metavar="DATASET", help="name of the dataset")
    parser.add_argument("--data_path", type=Path, default=Path("dataset"), help="folder of datasets (default: dataset)")
    parser.add_argument(
        "--title_field", default="auto", help="column of the titles (default: those that PAD reads, auto)"
    )


def run_check(known: argparse.Namespace) -> int:
    """Check a dataset and print its statistics; 1 if something is wrong with it.

    Raises:
        InputError: if there is none.
    """
    from .check import check

    found = check(known.data_path / known.dataset, known.dataset, known.title_field)
    print(found.text())
    for error in found.errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if found.errors else 0


_COMMANDS = {"prepare": (add_prepare, run_prepare), "check": (add_check, run_check)}


def main(argv: Sequence[str] | None = None) -> int:
    """``python -m dataset_prep prepare | check``; returns the exit code."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(prog="dataset_prep", description="Public dumps to RecBole atomic files.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, handler) in _COMMANDS.items():
        command = commands.add_parser(name)
        add(command)
        command.set_defaults(handler=handler)
    known = parser.parse_args(argv)
    try:
        code: int = known.handler(known)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return code
