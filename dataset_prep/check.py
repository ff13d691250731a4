"""Checks of any folder of RecBole atomic files, its statistics, and probes for what its order gives away.

Errors are what changes results behind one's back: rows that RecBole would drop, times that are no numbers,
items that only one of the two files has. The probes look at the leave-one-out split: see docs/datasets.md.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .atomic import file_digest, frequency_groups
from .clean import READ_AS_MISSING
from .errors import InputError
from .header import read_header
from .item_texts import ItemFile, text_columns
from .leave_one_out import TEST, TRAIN, VALID, part_of_split

__all__ = ["Report", "ascending_shares", "check"]

USER, ITEM, TIME = "user_id", "item_id", "timestamp"
LEAK_SHARE, LEAK_SIGMAS = 0.55, 4.0  # of ascending last steps: said aloud above both


@dataclass
class Report:
    """What `check` found: errors make the folder unfit, warnings are to be known, the rest is figures."""

    dataset: str
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    probes: dict[str, Any] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)

    def text(self) -> str:
        """All but the errors, in lines."""
        lines = [f"{self.dataset}: {'NOT fit for use' if self.errors else 'fit for use'}"]
        for title, figures in (("statistics", self.statistics), ("leak probes", self.probes)):
            if figures:
                lines += [f"{title}:", *(f"  {name}: {value}" for name, value in figures.items())]
        if self.groups:
            lines.append("leave-one-out by train frequency: items, valid targets, test targets")
            lines += [
                f"  {g['train_frequency']:>6}: {g['items']:,}, {g['valid']:,}, {g['test']:,}" for g in self.groups
            ]
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


def check(folder: Path, dataset: str, title_field: str = "auto") -> Report:
    """Check ``folder/dataset.inter`` and ``.item``.

    Args:
        folder: of the dataset.
        dataset: its name.
        title_field: column of the titles; "auto": the columns that PAD reads by default (`item_texts.text_columns`).

    Returns:
        A report; with errors in the files themselves it ends there, without figures.

    Raises:
        InputError: if there is no `.inter` file.
    """
    report = Report(dataset)
    inter_file, item_file = folder / f"{dataset}.inter", folder / f"{dataset}.item"
    if not inter_file.is_file():
        raise InputError(f"{inter_file} does not exist; give the folder above the dataset with --data_path")
    inter = _read(inter_file, (USER, ITEM, TIME), report)
    if item_file.is_file():
        item = _read(item_file, (ITEM,), report)
    else:
        item = None
        report.errors.append(f"{item_file} does not exist: no item has a title")
    _check_manifest(folder, dataset, report)
    if inter is None or (item is None and item_file.is_file()):
        return report

    for frame, file, columns in ((inter, inter_file, (USER, ITEM)), (item, item_file, (ITEM,))):
        for column in columns if frame is not None else ():
            _check_ids(frame[column], file, column, report)  # type: ignore[index]
    times = _times(inter, inter_file, report)
    if item is not None:
        _check_items(inter, item, item_file, title_field, report)
    if times is not None:
        inter = _ordered(inter, times, inter_file, report)
        _figures(inter, item, report)
        _probe(inter, report)
    return report


def _read(file: Path, needed: tuple[str, ...], report: Report) -> pd.DataFrame | None:
    """All columns as texts, cut as RecBole does it; None, with errors, if that cannot be done."""
    try:
        names = list(read_header(file))
        if missing := [name for name in needed if name not in names]:
            report.errors.append(f"{file}, line 1: no column {missing[0]!r}; it has {', '.join(names)}")
            return None
        if problem := _first_ragged_line(file, len(names)):
            report.errors.append(problem)
            return None
        frame = pd.read_csv(
            file, sep="\t", header=None, skiprows=1, dtype=str, keep_default_na=False, na_values=[],
            quoting=csv.QUOTE_NONE, encoding="utf-8", engine="c",
        )  # fmt: skip
    except InputError as error:
        report.errors.append(str(error))
        return None
    except pd.errors.EmptyDataError:
        report.errors.append(f"{file}: no lines but the header")
        return None
    except UnicodeDecodeError as error:
        report.errors.append(f"{file}: not UTF-8: {error}")
        return None
    frame.columns = pd.Index(names)
    n_before = len(report.errors)
    for name in names:
        quoted = np.flatnonzero(frame[name].str.startswith('"', na=False))
        if len(quoted):
            report.errors.append(
                f"{file}, line {quoted[0] + 2}, {name}: begins with a double quote, which RecBole takes for the start "
                f"of a quoted column{_more(quoted)}; write single quotes"
            )
    return frame if len(report.errors) == n_before else None


def _first_ragged_line(file: Path, n_columns: int) -> str | None:
    """The first line with another number of columns, or with a carriage return inside."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            content = line.rstrip(b"\r\n")
            found = content.count(b"\t") + 1
            if content and found != n_columns:
                return f"{file}, line {number}: {found} columns, but the header has {n_columns}"
            if b"\r" in content:
                return f"{file}, line {number}: a carriage return inside, where RecBole's reader begins a new line"
    return None


def _more(rows: NDArray[np.int64]) -> str:
    return f" ({len(rows):,} lines in all)" if len(rows) > 1 else ""


def _check_ids(ids: pd.Series, file: Path, column: str, report: Report) -> None:
    lost = np.flatnonzero(ids.isin(READ_AS_MISSING) | (ids == ""))
    if len(lost):
        report.errors.append(
            f"{file}, line {lost[0] + 2}: {column} {ids.iloc[lost[0]]!r} is read as missing, and RecBole drops the row "
            f"without a word{_more(lost)}; rename it"
        )


def _times(inter: pd.DataFrame, file: Path, report: Report) -> NDArray[np.float64] | None:
    times = pd.to_numeric(inter[TIME], errors="coerce").to_numpy(dtype=np.float64)
    bad = np.flatnonzero(~np.isfinite(times))
    if len(bad):
        report.errors.append(f"{file}, line {bad[0] + 2}: {TIME} {inter[TIME].iloc[bad[0]]!r} is no number{_more(bad)}")
        return None
    return times


def _check_items(inter: pd.DataFrame, item: pd.DataFrame, file: Path, title_field: str, report: Report) -> None:
    twice = np.flatnonzero(item[ITEM].duplicated())
    if len(twice):
        report.errors.append(
            f"{file}, line {twice[0] + 2}: item {item[ITEM].iloc[twice[0]]!r} a second time{_more(twice)}"
        )
    used, listed = set(inter[ITEM]), set(item[ITEM])
    for ids, what in (
        (used - listed, "have interactions, but no line here: they have no text"),
        (listed - used, "have no interaction: RecBole ranks them as candidates, which changes every metric"),
    ):
        if ids:
            report.errors.append(f"{file}: {len(ids):,} items {what}, for example {', '.join(sorted(ids)[:3])}")
    try:
        columns = text_columns(ItemFile(file, ITEM), [title_field])
    except InputError as error:
        report.errors.append(str(error))
        return
    if missing := [column for column in columns if column not in item]:
        report.errors.append(f"{file}: no column {missing[0]!r}; it has {', '.join(item)}; name one with --title_field")
        return
    empty = item[ITEM][(item[columns].apply(lambda column: column.str.strip()) == "").all(axis=1)]
    title = " or ".join(columns)
    if len(empty) == len(item):
        report.errors.append(f"{file}: no item has a {title}")
    elif len(empty):
        report.warnings.append(f"{len(empty):,} of {len(item):,} items have no {title}: {', '.join(empty[:3])}")


def _check_manifest(folder: Path, dataset: str, report: Report) -> None:
    """Files that `prepare` wrote must still be what its manifest vouches for."""
    file = folder / f"{dataset}.manifest.json"
    if not file.is_file():
        return
    try:
        vouched = [(folder / entry["file"], entry) for entry in json.loads(file.read_text(encoding="utf-8"))["files"]]
    except (ValueError, KeyError, TypeError) as error:
        report.errors.append(f"{file}: no manifest of `prepare` ({error!r}); prepare the dataset again, or delete it")
        return
    for path, entry in vouched:
        if not path.is_file() or file_digest(path) != entry:
            report.errors.append(f"{path}: not the file of {file.name} (its sha256 differs); prepare the dataset again")


def _ordered(inter: pd.DataFrame, times: NDArray[np.float64], file: Path, report: Report) -> pd.DataFrame:
    """The rows by user and time, ties in file order, with codes and times as numbers."""
    user, _ = pd.factorize(inter[USER])
    code, items = pd.factorize(inter[ITEM])
    row = np.arange(len(inter))
    exact = np.lexsort((row, times, user))
    as_recbole = np.lexsort((row, times.astype(np.float32), user))
    broken = np.unique(user[exact][exact != as_recbole])
    if len(broken):
        report.warnings.append(
            f"{file}: RecBole keeps times in float32, in which different times are equal, and then the order of lines "
            f"counts: {len(broken):,} users get another order where exact_times is not set (protocol recbole); sort "
            "the file by user and time to be safe everywhere"
        )
    by_user = np.argsort(user, kind="stable")
    same = user[by_user][1:] == user[by_user][:-1]
    backwards = same & (times[by_user][1:] < times[by_user][:-1])
    if backwards.any():
        n_users = len(np.unique(user[by_user][1:][backwards]))
        report.warnings.append(f"lines of {n_users:,} users are not in the order of time; RecBole sorts them")
    ordered = pd.DataFrame({"user": user[exact], "item": code[exact], "time": times[exact]})
    ordered.attrs["items"] = np.asarray(items, dtype=object)
    return ordered


def _figures(rows: pd.DataFrame, item: pd.DataFrame | None, report: Report) -> None:
    lengths = rows.groupby("user").size().to_numpy()
    occurrences = rows.groupby("item").size().to_numpy()
    n_users, n_items = len(lengths), len(occurrences)
    part = _parts(rows)
    of_item = {name: np.bincount(rows["item"][part == name], minlength=n_items) for name in (TRAIN, VALID, TEST)}
    frame = pd.DataFrame({"frequency": of_item[TRAIN], "items": 1, "valid": of_item[VALID], "test": of_item[TEST]})
    train = of_item[TRAIN]
    report.groups = frequency_groups(frame.groupby("frequency").sum().reset_index())
    time = rows["time"].to_numpy()
    same = _same_user(rows)
    far_apart = same & (time[1:] != time[:-1])
    lost = far_apart & (time[1:].astype(np.float32) == time[:-1].astype(np.float32))
    report.statistics |= {
        "users / items / interactions": f"{n_users:,} / {n_items:,} / {len(rows):,}",
        "density": f"{len(rows) / n_users / n_items:.4%}",
        "history length min / median / mean / max": _spread(lengths),
        "item occurrences min / median / mean / max": _spread(occurrences),
        "train interactions": f"{int(train.sum()):,}",
        "items seen in train / never seen in train": f"{int((train > 0).sum()):,} / {int((train == 0).sum()):,}",
        "times": f"{time.min():,.0f} to {time.max():,.0f}",
        "neighbours at different times that float32 makes equal": f"{int(lost.sum()):,}",
    }
    if item is not None:
        texts = item.drop(columns=ITEM)
        empty = {name: int((texts[name].str.strip() == "").sum()) for name in texts}
        report.statistics["items without"] = ", ".join(f"{name}: {n:,}" for name, n in empty.items()) or "no columns"


def _spread(values: NDArray[np.int64]) -> str:
    return f"{values.min():,} / {np.median(values):g} / {values.mean():,.3f} / {values.max():,}"


def _same_user(rows: pd.DataFrame) -> NDArray[np.bool_]:
    user = rows["user"].to_numpy()
    return np.asarray(user[1:] == user[:-1])


def _parts(rows: pd.DataFrame) -> NDArray[np.str_]:
    """The part of the leave-one-out split of each row, which are by user and time."""
    groups = rows.groupby("user")["item"]
    return part_of_split(groups.cumcount(ascending=False).to_numpy() + 1, groups.transform("size").to_numpy())


def ascending_shares(rows: pd.DataFrame, ids: NDArray[np.object_]) -> dict[str, tuple[float, int]]:
    """How often an item's id is above that of the item before; about a half where the order does not know the ids.

    Args:
        rows: columns user, item (place in `ids`), time, ordered by user and time.
        ids: ids, shape (n_items,); compared as numbers if all are digits, else letter by letter.

    Returns:
        Share and number of pairs of different items: of all neighbours, of neighbours tied in time, and of the last
        steps (each user's last two).
    """
    keys = np.array([int(i) for i in ids], dtype=object) if all(i.isdecimal() for i in ids) else ids
    rank = np.empty(len(keys), dtype=np.int64)
    rank[np.argsort(keys, kind="stable")] = np.arange(len(keys))
    place, time = rank[rows["item"].to_numpy()], rows["time"].to_numpy()
    same = _same_user(rows) & (place[1:] != place[:-1])
    is_last = np.r_[~_same_user(rows), True][1:]
    masks = {"neighbours": same, "tied neighbours": same & (time[1:] == time[:-1]), "last steps": same & is_last}
    ascending = place[1:] > place[:-1]
    return {
        name: (float(ascending[mask].mean()) if mask.any() else math.nan, int(mask.sum()))
        for name, mask in masks.items()
    }


def _probe(rows: pd.DataFrame, report: Report) -> None:
    shares = ascending_shares(rows, rows.attrs["items"])
    for name, (share, number) in shares.items():
        told = f"{share:.1%} of {number:,}" if number else "none"
        report.probes[f"{name} in ascending order of item ids (50 % by chance)"] = told
    share, number = shares["last steps"]
    if number and share - 0.5 > LEAK_SIGMAS * 0.5 / math.sqrt(number) and share > LEAK_SHARE:
        report.warnings.append(
            f"the order gives items away: {share:.1%} of the last steps go up in item id (50 % by chance), most likely "
            "because ties in time keep the order of the source; prepare with --ties shuffle, or distrust small gains"
        )
    part = _parts(rows)
    again = rows.duplicated(["user", "item"]).to_numpy()
    exact = rows.duplicated(["user", "item", "time"]).to_numpy()
    for name in (TEST, VALID):
        mask = part == name
        n_targets = max(1, int(mask.sum()))
        told = f"{int((again & mask).sum()):,} ({(again & mask).sum() / n_targets:.2%})"
        report.probes[f"{name} targets that the user had before (repeats)"] = told
    report.probes["rows equal in user, item and time (duplicates)"] = f"{int(exact.sum()):,}"
    crossing = int((exact & np.isin(part, (TEST, VALID))).sum())
    report.probes["duplicates across the split (a target whose equal is in train or valid)"] = f"{crossing:,}"
    if crossing:
        report.warnings.append(
            f"{crossing:,} targets are duplicates of rows before them; prepare with --duplicates exact"
        )
