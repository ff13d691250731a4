"""Histories in compressed rows against plain lists."""

from __future__ import annotations

from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.data.histories import Histories, histories_of, n_left_out, train_counts, train_histories
from recbole_pad.errors import InputError
from tests.reference import rows_loops

N_ITEMS = 9
SEQUENCES = st.lists(st.lists(st.integers(1, N_ITEMS - 1), max_size=7), min_size=1, max_size=8)


def build(sequences: list[list[int]]) -> Histories:
    users = np.repeat(np.arange(len(sequences)), [len(items) for items in sequences])
    return Histories.from_sorted(users, np.array([*chain.from_iterable(sequences)], dtype=np.int64), len(sequences))


def as_lists(histories: Histories) -> list[list[int]]:
    return [histories.items[a:b].tolist() for a, b in pairwise(histories.offsets)]


@given(sequences=SEQUENCES)
def test_each_user_has_its_own_items_in_order(sequences):
    histories = build(sequences)
    assert as_lists(histories) == sequences
    assert histories.lengths.tolist() == [len(items) for items in sequences]


@given(sequences=SEQUENCES, data=st.data(), left_out=st.integers(0, 4))
def test_pairs_are_the_items_of_each_asked_user_without_the_last(sequences, data, left_out: int):
    users = data.draw(st.lists(st.integers(0, len(sequences) - 1), max_size=6))
    rows, items = build(sequences).pairs(torch.tensor(users, dtype=torch.long), left_out)
    expected = []
    for row, user in enumerate(users):
        n_kept = max(0, len(sequences[user]) - left_out)
        expected += [(row, item) for item in sequences[user][:n_kept]]
    assert rows.dtype == items.dtype == torch.int64
    assert list(zip(rows.tolist(), items.tolist(), strict=True)) == expected


@given(sequences=SEQUENCES, data=st.data())
def test_drop_last_drops_so_many_from_each_end(sequences, data):
    n_dropped = [data.draw(st.integers(0, len(items))) for items in sequences]
    got = build(sequences).drop_last(np.array(n_dropped))
    assert as_lists(got) == [items[: len(items) - n] for items, n in zip(sequences, n_dropped, strict=True)]


@given(sequences=SEQUENCES)
def test_keys_are_the_sorted_distinct_user_item_pairs(sequences):
    pairs = {(user, item) for user, items in enumerate(sequences) for item in items}
    assert build(sequences).keys(N_ITEMS).tolist() == sorted(user * N_ITEMS + item for user, item in pairs)


@given(one=SEQUENCES, other=SEQUENCES)
def test_digests_are_equal_for_equal_sequences_only(one, other):
    assert (build(one).digest() == build(other).digest()) == (one == other)


def test_digest_does_not_depend_on_the_integer_type():
    wide = Histories(np.array([0, 2]), np.array([3, 4]))
    narrow = Histories(np.array([0, 2], dtype=np.int32), np.array([3, 4], dtype=np.int32))
    assert wide.digest() == narrow.digest()


@given(sequences=SEQUENCES)
def test_counts_are_the_interactions_of_the_users_with_a_row(sequences):
    expected = [sum(items.count(item) for items in sequences if len(items) >= 2) for item in range(N_ITEMS)]
    assert train_counts(train_histories(build(sequences), [], "user_id"), N_ITEMS).tolist() == expected


# --- against RecBole ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [1, 3, 50])
@pytest.mark.parametrize("is_built", [True, False])
@pytest.mark.parametrize("is_fast", [True, False])
def test_histories_of_a_stock_dataset_are_those_of_ours(
    prepared, config, max_length: int, is_built: bool, is_fast: bool
):
    """RecBole's rows are cut to `max_length` and, once split, sorted by time over all users."""
    from recbole.data import create_dataset

    def whole(**changes: Any) -> Any:
        changes["MAX_ITEM_LIST_LENGTH"] = max_length
        if is_built:
            return prepared(**changes)[1]
        dataset = create_dataset(config(**changes))
        dataset._change_feat_format()
        return dataset

    stock, ours = whole(model="SASRec", train_neg_sample_args=None, fast_data=is_fast), whole()
    got, expected = as_lists(histories_of(stock)), as_lists(ours.histories)
    assert histories_of(ours) is ours.histories
    assert sum(map(len, expected)) > 300
    # RecBole's rows know nothing of a user of one interaction
    assert got == [items if is_fast or len(items) > 1 else [] for items in expected]


def test_histories_are_the_lines_of_the_file(prepared, data_path):
    _, whole, *_ = prepared(MAX_ITEM_LIST_LENGTH=3)
    expected = rows_loops.histories(data_path / "tiny" / "tiny.inter")
    got = dict(zip(whole.id2token("user_id", range(whole.user_num)), as_lists(whole.histories), strict=True))
    assert got.pop("[PAD]") == []
    assert {user: whole.id2token("item_id", items).tolist() for user, items in got.items()} == {
        user: [item for item, _ in history] for user, history in expected.items()
    }


@pytest.mark.parametrize("mode", ["valid_and_test", "valid_only", "test_only"])
def test_train_histories_end_before_the_first_held_out_item(prepared, mode: str):
    eval_args = {"split": {"LS": mode}, "order": "TO", "group_by": "user", "mode": "full"}
    _, whole, _, valid, test = prepared(eval_args=eval_args)
    splits = [valid._dataset, test._dataset]
    got = as_lists(train_histories(whole.histories, splits, "user_id"))
    n_left_out = 2 if mode == "valid_and_test" else 1
    kept = [items[: len(items) - rows_loops.held_out(items, n_left_out)] for items in as_lists(whole.histories)]
    assert got == [items if len(items) >= 2 else [] for items in kept]  # u00 has one interaction, no row
    assert as_lists(whole.train_histories) == got


# --- which interactions are history ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "phase", "expected"),
    [
        ("valid_and_test", "valid", 2),
        ("valid_and_test", "test", 1),
        ("valid_only", "valid", 1),
        ("test_only", "test", 1),
    ],
)
def test_the_target_and_all_after_it_are_left_out(mode: str, phase: str, expected: int):
    assert n_left_out({"LS": mode}, phase) == expected


def test_splits_without_a_history_are_refused():
    with pytest.raises(InputError, match=r"mask_history.*leave-one-out.*RS"):
        n_left_out({"RS": [0.8, 0.1, 0.1]}, "test")
