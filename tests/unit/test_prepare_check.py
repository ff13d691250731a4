"""The checks of atomic folders, the figures and the leak probes, on folders of a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recbole_pad.dataset_prep.check import Report, ascending_shares, check
from recbole_pad.dataset_prep.command import main
from recbole_pad.dataset_prep.errors import InputError

INTER = ["user_id:token\titem_id:token\ttimestamp:float"]
ITEM = ["item_id:token\ttitle:token_seq"]
GOOD_INTER = [*INTER, "u1\ta\t1", "u1\tb\t2", "u1\tc\t3", "u1\tb\t4", "u2\tc\t1", "u2\ta\t2"]
GOOD_ITEM = [*ITEM, "a\tApple", "b\tBerry", "c\tCherry"]


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., Report]:
    def run(inter: list[str], item: list[str] | None = GOOD_ITEM, **flags: str) -> Report:
        (tmp_path / "d.inter").write_text("\n".join(inter) + "\n", encoding="utf-8")
        if item is not None:
            (tmp_path / "d.item").write_text("\n".join(item) + "\n", encoding="utf-8")
        return check(tmp_path, "d", **flags)

    return run


def test_the_figures_of_a_sound_folder(found: Callable[..., Report]):
    report = found(GOOD_INTER)
    assert report.errors == report.warnings == []
    assert report.statistics["users / items / interactions"] == "2 / 3 / 6"
    assert report.statistics["density"] == "100.0000%"
    assert report.statistics["history length min / median / mean / max"] == "2 / 3 / 3.000 / 4"
    assert report.statistics["train interactions"] == "4"  # u2 is train as a whole
    # train: a, b of u1 and c, a of u2; the target of validation is c, that of the test b
    (group,) = [g for g in report.groups if g["items"]]
    assert group == {"train_frequency": "1-5", "items": 3, "valid": 1, "test": 1}
    assert report.probes["test targets that the user had before (repeats)"] == "1 (100.00%)"
    assert report.probes["valid targets that the user had before (repeats)"] == "0 (0.00%)"
    assert report.probes["neighbours in ascending order of item ids (50 % by chance)"] == "50.0% of 4"


@pytest.mark.parametrize(
    ("inter", "item", "words"),
    [
        (GOOD_INTER, [*GOOD_ITEM, "a\tAgain"], "d.item, line 5: item 'a' a second time"),
        (GOOD_INTER, GOOD_ITEM[:3], "1 items have interactions, but no line here: they have no text, for example c"),
        (GOOD_INTER, [*GOOD_ITEM, "d\tDate"], "1 items have no interaction: RecBole ranks them as candidates"),
        (GOOD_INTER, None, "d.item does not exist"),
        (GOOD_INTER, ["item_id:token\tlink:token", "a\tx/1", "b\tx/2", "c\tx/3"],
         "auto finds no column of words; it has item_id, link"),
        (GOOD_INTER, [*ITEM, "a\t", "b\t", "c\t "], "auto finds no column of words"),
        (GOOD_INTER, [*ITEM, 'a\t"Open', "b\tB", "c\tC"], "line 2, title: begins with a double quote"),
        (GOOD_INTER, [*ITEM, "a\tApple\tpie", "b\tB", "c\tC"], "d.item, line 2: 3 columns, but the header has 2"),
        (GOOD_INTER, [*ITEM, "a\tA", "b\tB\tC", "c\tC"], "d.item, line 3: 3 columns, but the header has 2"),
        (GOOD_INTER, [*ITEM, "a\tA", "b", "c\tC"], "d.item, line 3: 1 columns, but the header has 2"),
        (GOOD_INTER, [*ITEM, "a\tA", "b\tB\rB", "c\tC"], "d.item, line 3: a carriage return inside"),
        (GOOD_INTER, ["item_id\ttitle:token_seq", "a\tA"], "column 'item_id' has no type of token"),
        (GOOD_INTER, ITEM, "no lines but the header"),
        ([*GOOD_INTER, "NA\ta\t9"], GOOD_ITEM, "line 8: user_id 'NA' is read as missing, and RecBole drops the row"),
        ([*GOOD_INTER, "u2\t\t9"], GOOD_ITEM, "line 8: item_id '' is read as missing"),
        ([*GOOD_INTER, "u2\tb\tsoon"], GOOD_ITEM, "line 8: timestamp 'soon' is no number"),
        ([*GOOD_INTER, "u2\tb\tinf"], GOOD_ITEM, "line 8: timestamp 'inf' is no number"),
        (["user_id:token\titem_id:token", "u\ta"], GOOD_ITEM, "line 1: no column 'timestamp'; it has user_id, item_id"),
        (["\ufeffuser_id:token\titem_id:token\ttimestamp:float", *GOOD_INTER[1:]], GOOD_ITEM, "byte order mark"),
        (GOOD_INTER, ["item_id:token\ttitle:token_seq\ttitle:token_seq", "a\tA\tA"], "'title' stands there twice"),
    ],
)  # fmt: skip
def test_what_is_broken_is_an_error_with_its_place(
    inter: list[str], item: list[str] | None, words: str, found: Callable[..., Report]
):
    assert [error for error in found(inter, item).errors if words in error]


def test_seconds_that_float32_makes_equal_are_sound_where_the_lines_are_in_order(found: Callable[..., Report]):
    report = found([*INTER, "u\tb\t1600000000", "u\tc\t1600000009", "u\ta\t1700000000"])
    assert report.errors == []
    assert report.statistics["neighbours at different times that float32 makes equal"] == "1"


def test_seconds_that_float32_makes_equal_are_a_warning_where_lines_are_out_of_order(found: Callable[..., Report]):
    report = found([*INTER, "u\tc\t1600000009", "u\tb\t1600000000", "u\ta\t1700000000"], GOOD_ITEM)
    assert report.errors == []
    assert "1 users get another order where exact_times is not set" in report.warnings[0]


def test_lines_out_of_order_that_recbole_sorts_right_are_a_warning(found: Callable[..., Report]):
    report = found([*INTER, "u\tb\t2", "u\tc\t1", "u\ta\t3"])
    assert report.errors == []
    assert "lines of 1 users are not in the order of time" in report.warnings[0]


def test_single_items_without_a_title_are_a_warning(found: Callable[..., Report]):
    report = found(GOOD_INTER, [*ITEM, "a\tApple", "b\t", "c\tCherry"])
    assert report.errors == []
    assert "1 of 3 items have no title: b" in report.warnings[0]


def test_another_column_of_titles(found: Callable[..., Report]):
    item = ["item_id:token\tname:token_seq", "a\tA", "b\tB", "c\tC"]
    assert found(GOOD_INTER, item, title_field="name").errors == []
    assert found(GOOD_INTER, item).errors == []
    assert "no column 'title'; it has item_id, name" in found(GOOD_INTER, item, title_field="title").errors[0]
    empty = ["item_id:token\tname:token_seq", "a\t", "b\t", "c\t "]
    assert "no item has a name" in found(GOOD_INTER, empty, title_field="name").errors[0]


def test_a_file_that_is_not_that_of_the_manifest_is_an_error(found: Callable[..., Report], tmp_path: Path):
    found(GOOD_INTER)
    entries = [
        {
            "file": name,
            "bytes": (tmp_path / name).stat().st_size,
            "sha256": sha256((tmp_path / name).read_bytes()).hexdigest(),
        }
        for name in ("d.inter", "d.item")
    ]
    (tmp_path / "d.manifest.json").write_text(json.dumps({"files": entries}))
    assert check(tmp_path, "d").errors == []
    (error,) = found(GOOD_INTER, [*ITEM, "a\tApple", "b\tBerry", "c\tCherries"]).errors
    assert "d.item: not the file of d.manifest.json" in error


@pytest.mark.parametrize("text", ["", "not json", "[]", "{}", '{"files": [1]}', '{"files": [{"bytes": 1}]}'])
def test_a_manifest_that_cannot_be_read_is_an_error_beside_the_others(
    text: str, found: Callable[..., Report], tmp_path: Path
):
    (tmp_path / "d.manifest.json").write_text(text)
    (error,) = found(GOOD_INTER).errors
    assert "d.manifest.json: no manifest of `prepare`" in error
    assert "prepare the dataset again, or delete it" in error
    assert len(found([*GOOD_INTER, "u2\t\t9"]).errors) > 1


def test_no_inter_file_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"d\.inter does not exist"):
        check(tmp_path, "d")


def test_shares_of_ascending_ids_are_those_of_the_loop():
    rng = np.random.default_rng(5)
    rows = pd.DataFrame(
        {"user": rng.integers(0, 20, 300), "item": rng.integers(0, 12, 300), "time": rng.integers(0, 4, 300)}
    )
    rows = rows.sort_values(["user", "time"], kind="stable", ignore_index=True)
    ids = np.array([f"{7 * n % 12}" for n in range(12)], dtype=object)  # numbers: "10" is above "9"
    expected: dict[str, list[bool]] = {"neighbours": [], "tied neighbours": [], "last steps": []}
    for user in range(20):
        history = rows[rows["user"] == user].to_numpy().tolist()
        for place in range(1, len(history)):
            (_, old, before), (_, new, now) = history[place - 1], history[place]
            if old == new:
                continue
            up = int(ids[new]) > int(ids[old])
            expected["neighbours"].append(up)
            if before == now:
                expected["tied neighbours"].append(up)
            if place == len(history) - 1:
                expected["last steps"].append(up)
    got = ascending_shares(rows, ids)
    assert got == {name: (pytest.approx(np.mean(ups)), len(ups)) for name, ups in expected.items()}


def test_a_source_ordered_by_item_and_duplicates_across_the_split_are_said_aloud(found: Callable[..., Report]):
    items = [f"i{n}" for n in range(9)]
    lines = [f"u{user}\t{item}\t5" for user in range(60) for item in items]
    report = found([*INTER, *lines, "u0\ti8\t5"], [*ITEM, *(f"{item}\tT" for item in items)])
    assert report.errors == []
    assert "100.0% of the last steps go up in item id" in report.warnings[0]
    assert "1 targets are duplicates of rows before them" in report.warnings[1]
    assert report.probes["rows equal in user, item and time (duplicates)"] == "1"


def test_the_command_ends_with_1_on_a_broken_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "d.inter").write_text("\n".join(GOOD_INTER) + "\n")
    assert main(["check", "d", "--data_path", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "d: NOT fit for use" in printed.out
    assert printed.err.startswith("error: ")
    (tmp_path / "d" / "d.item").write_text("\n".join(GOOD_ITEM) + "\n")
    assert main(["check", "d", "--data_path", str(tmp_path)]) == 0
    assert main(["check", "nothing", "--data_path", str(tmp_path)]) == 2


DATA = os.environ.get("RECBOLE_PAD_DATA")


@pytest.mark.skipif(not DATA, reason="RECBOLE_PAD_DATA is not set")
@pytest.mark.parametrize(
    ("name", "neighbours", "last"),  # the README files of these folders, by another program
    [
        ("amazon_beauty", "69", "71"),
        ("amazon_toys", "72", "75"),
        ("prime_pantry", "74", None),
        ("ml_latest_small", None, None),
    ],
)
def test_real_folders_are_fit_and_their_probes_are_those_of_their_readmes(
    name: str, neighbours: str | None, last: str | None
):
    folder = Path(DATA or "") / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    report = check(folder, name)
    assert report.errors == []
    for what, share in (("neighbours", neighbours), ("last steps", last)):
        told = report.probes[f"{what} in ascending order of item ids (50 % by chance)"]
        assert share is None or f"{float(told.partition('%')[0]):.0f}" == share
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for group in report.groups:  # "| 1-5 | 4,748 (39.24 %) | 4,949 (22.13 %) | 6,059 (27.09 %) |"
        label = group["train_frequency"].replace(">", "> ")
        (line,) = [line for line in readme.splitlines() if line.startswith(f"| {label} | ")]
        assert [cell.split()[0] for cell in line.split("|")[2:5]] == [
            f"{group[key]:,}" for key in ("items", "valid", "test")
        ]


@pytest.mark.parametrize("dataset", ["tiny", "chain"])  # users of one to fourteen interactions
def test_the_groups_are_those_of_a_run(dataset: str, data_path: Path, prepared: Callable[..., Any]):
    """Items, validation and test targets by train frequency: `check` against the split that RecBole and PAD make."""
    _, whole, train, valid, test = prepared(dataset=dataset)
    counts = train._dataset.train_counts
    edges = [(0, 0), (1, 5), (6, 10), (11, 20), (21, 50), (51, 100), (101, 10**9)]
    of_items = counts[1:]
    of_valid, of_test = (counts[part._dataset.inter_feat["item_id"].numpy()] for part in (valid, test))
    expected = [
        [int(((of >= low) & (of <= high)).sum()) for of in (of_items, of_valid, of_test)] for low, high in edges
    ]
    report = check(data_path / dataset, dataset)
    assert [[group["items"], group["valid"], group["test"]] for group in report.groups] == expected
    assert report.statistics["train interactions"] == f"{counts.sum():,}"
    assert whole.item_num == len(counts)
