"""`exact_times`: interactions are in the order of their times, however RecBole rounds them."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.data.time_order import exact_order

START = 1_600_000_000  # float32 there is a multiple of 128
MODELS: dict[str, dict[str, Any]] = {
    "PAD": {"phases": ["pretrain"]},
    "PAD of RecBole's reader": {"phases": ["pretrain"], "train_rows": "prefixes", "fast_data": False},
    "SASRec": {"model": "SASRec"},
    "SASRec of RecBole": {"model": "SASRec", "fast_data": False},
}


def sessions(scale: int = 1) -> list[tuple[str, str, int]]:
    """20 users of 4 to 8 interactions, 9 seconds apart; of two at one time the earlier line comes first."""
    lines = []
    for user in range(20):
        for step in range(4 + user % 5):
            lines.append((f"u{user}", f"i{(user * 7 + step * 3) % 15:02d}", (START + 9 * step) * scale))
        lines.append((f"u{user}", f"i{user % 15:02d}", (START + 9 * 2) * scale))  # tied with the third
    return lines


def written(folder: Path, lines: list[tuple[str, str, int]]) -> dict[str, Any]:
    (folder / "burst").mkdir()
    text = ["user_id:token\titem_id:token\ttimestamp:float", *("\t".join(map(str, line)) for line in lines)]
    (folder / "burst" / "burst.inter").write_text("\n".join(text) + "\n")
    return {"dataset": "burst", "data_path": str(folder)}


def in_order(lines: list[tuple[str, str, int]]) -> dict[str, list[str]]:
    """Each user's items by time, ties in the order of the lines; plain loops."""
    by_user: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for number, (user, item, time) in enumerate(lines):
        by_user[user].append((time, number, item))
    return {user: [item for _, _, item in sorted(own)] for user, own in by_user.items()}


def rows_of_test(whole: Any, test: Any) -> dict[str, list[str]]:
    """What the test rows show of each user: history and target."""
    feat, found = test._dataset.inter_feat, {}
    for user, length, items, target in zip(
        feat["user_id"].tolist(),
        feat["item_length"].tolist(),
        feat["item_id_list"].tolist(),
        feat["item_id"].tolist(),
        strict=True,
    ):
        tokens = [str(token) for token in whole.id2token("item_id", [*items[:length], target])]
        found[str(whole.id2token("user_id", user))] = tokens
    return found


@pytest.mark.parametrize("scale", [1, 1000])
@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_a_shuffled_file_gives_histories_in_time_order(prepared, tmp_path, changes: dict[str, Any], scale: int):
    lines = sessions(scale)
    random.Random(1).shuffle(lines)
    base = {**written(tmp_path, lines), "train_neg_sample_args": None, **changes}
    _, whole, _, _, test = prepared(**base)
    assert rows_of_test(whole, test) == in_order(lines)
    _, whole, _, _, test = prepared(**base, exact_times=False)
    assert rows_of_test(whole, test) != in_order(lines), "else the test shows nothing"


def test_a_file_in_order_is_left_as_it_is(prepared, tmp_path, caplog):
    lines = sorted(sessions(), key=lambda line: (line[0], line[2]))
    base = written(tmp_path, lines)
    rows = []
    for key in (True, False):
        _, _, train, *_ = prepared(**base, model="SASRec", train_neg_sample_args=None, exact_times=key)
        feat = train._dataset.inter_feat
        rows.append([feat[column].tolist() for column in ("user_id", "item_id_list", "item_id")])
    assert rows[0] == rows[1]
    assert "sorted before rounding" not in caplog.text


@pytest.mark.parametrize("n_missing", [0, 3])
def test_interactions_without_a_time_are_counted_aloud(prepared, tmp_path, caplog, n_missing: int):
    lines: list[Any] = list(sessions())
    for number in range(n_missing):
        lines[5 * number] = (*lines[5 * number][:2], "")
    prepared(**written(tmp_path, lines), phases=["pretrain"])
    said = [record.message for record in caplog.records if "have no timestamp" in record.message]
    assert len(said) == (n_missing > 0)
    assert all(f"burst: 3 of {len(lines)} interactions" in message for message in said)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(START, START + 300) | st.floats(0, 2)), max_size=30))
def test_the_order_is_that_of_a_plain_sort(rows: list[tuple[int, float]]):
    users, times = np.array([user for user, _ in rows], dtype=int), np.array([time for _, time in rows], dtype=float)
    expected = sorted(range(len(rows)), key=lambda row: (users[row], times[row]))
    rounded = sorted(range(len(rows)), key=lambda row: (users[row], np.float32(times[row])))
    order = exact_order(users, times)
    assert (rounded if order is None else order.tolist()) == expected
    assert (order is None) == (rounded == expected)
