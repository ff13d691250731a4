"""PADDataset against stock RecBole, row by row, and against the lines of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.dataset import SequentialDataset
from recbole.data.interaction import Interaction

from recbole_pad.data.dataset import PADDataset
from recbole_pad.data.rows import LazyRows
from recbole_pad.errors import InputError
from tests.reference import frequency_loops, rows_loops

STOCK = {"model": "SASRec", "train_neg_sample_args": None, "fast_data": False}
SPLITS: dict[str, dict[str, Any]] = {
    "valid_and_test": {},
    "valid_only": {"eval_args": {"split": {"LS": "valid_only"}, "order": "TO", "group_by": "user", "mode": "full"}},
    "test_only": {"eval_args": {"split": {"LS": "test_only"}, "order": "TO", "group_by": "user", "mode": "full"}},
    "ratio": {
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
        "mask_history": False,
    },
    "ratio over time": {
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "none", "mode": "full"},
        "mask_history": False,
    },
}
MESSY_COLUMNS = ["user_id", "item_id", "timestamp", "rating", "tags"]


@pytest.fixture
def messy(tmp_path: Path) -> dict[str, Any]:
    """Settings for a dataset of tied and unsorted times, repeated items, and a float and a list column."""
    rng = np.random.default_rng(5)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\trating:float\ttags:token_seq"]
    for _ in range(220):
        user, item, time = rng.integers(0, 25), rng.integers(0, 12), 1_600_000_000 + rng.integers(0, 6) * 50
        tags = " ".join(f"t{tag}" for tag in rng.integers(0, 5, size=rng.integers(1, 4)))
        lines.append(f"u{user}\ti{item}\t{time}\t{rng.integers(1, 6)}\t{tags}")
    lines.append("lonely\ti1\t1600000000\t3\tt1")
    (tmp_path / "messy").mkdir()
    (tmp_path / "messy" / "messy.inter").write_text("\n".join(lines) + "\n")
    return {"dataset": "messy", "data_path": str(tmp_path), "load_col": {"inter": MESSY_COLUMNS}}


@pytest.fixture(params=["tiny", "messy"])
def data(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"dataset": "tiny"} if request.param == "tiny" else request.getfixturevalue("messy")


def splits_of(prepared: Callable[..., Any], **changes: Any) -> list[Any]:
    """The training, validation and test dataset."""
    return [loader._dataset for loader in prepared(**changes)[2:]]


def assert_same_rows(got: Interaction, expected: Interaction):
    assert list(got.interaction) == list(expected.interaction)
    for field in expected:
        assert got[field].dtype == expected[field].dtype, field
        assert torch.equal(got[field], expected[field]), field


def sorted_by_user(feat: Interaction) -> Interaction:
    return feat[torch.argsort(feat["user_id"], stable=True)]


def tokens_and_times(dataset: Any, feat: Interaction, row: int) -> list[tuple[str, float]]:
    """[inputs..., target] of a row as (token, time)."""
    n = int(feat["item_length"][row])
    items = [*feat["item_id_list"][row][:n].tolist(), int(feat["item_id"][row])]
    times = [*feat["timestamp_list"][row][:n].tolist(), float(feat["timestamp"][row])]
    return list(zip(dataset.id2token("item_id", items).tolist(), times, strict=True))


def by_user(dataset: Any) -> dict[str, list[list[tuple[str, float]]]]:
    """The rows of each user, in order."""
    rows: dict[str, list[list[tuple[str, float]]]] = {}
    for row, user in enumerate(dataset.inter_feat["user_id"].tolist()):
        token = str(dataset.id2token("user_id", user))
        rows.setdefault(token, []).append(tokens_and_times(dataset, dataset.inter_feat, row))
    return rows


def inter_file(settings: dict[str, Any], data_path: Path) -> Path:
    return Path(settings.get("data_path", data_path)) / settings["dataset"] / f"{settings['dataset']}.inter"


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_length", [1, 3, 8, 50])
@pytest.mark.parametrize("split", SPLITS)
def test_prefix_rows_equal_recboles_in_all_three_splits(prepared, data, split: str, max_length: int):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": max_length}
    stock = splits_of(prepared, **STOCK, **changes)
    ours = splits_of(prepared, train_rows="prefixes", **changes)
    assert [type(dataset) for dataset in (stock[0], ours[0])] == [SequentialDataset, PADDataset]
    assert len(stock[0]) > 50
    for got, expected in zip(ours, stock, strict=True):
        assert_same_rows(got.inter_feat, expected.inter_feat)


@pytest.mark.parametrize("train_windows", ["last", "all"])
@pytest.mark.parametrize("split", SPLITS)
def test_held_out_rows_equal_recboles_when_only_the_needed_rows_are_built(prepared, data, split, train_windows):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": 4}
    stock = splits_of(prepared, **STOCK, **changes)
    ours = splits_of(prepared, train_rows="sequences", train_windows=train_windows, **changes)
    assert len(stock[1]) + len(stock[2]) > 10
    for got, expected in zip(ours[1:], stock[1:], strict=True):
        # RecBole goes through the users in the order of their first row: with fewer rows, another order
        assert_same_rows(sorted_by_user(got.inter_feat), sorted_by_user(expected.inter_feat))


@pytest.mark.parametrize("split", SPLITS)
def test_the_one_training_row_of_a_user_is_recboles_last(prepared, data, split: str):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": 4}
    expected = by_user(splits_of(prepared, **STOCK, **changes)[0])
    got = by_user(splits_of(prepared, train_rows="sequences", train_windows="last", **changes)[0])
    assert set(got) == set(expected)
    for user, rows in got.items():
        assert rows == expected[user][-1:]


@pytest.mark.parametrize("train_rows", ["sequences", "prefixes"])
@pytest.mark.parametrize("split", SPLITS)
def test_rows_and_counts_do_not_depend_on_fast_data(prepared, data, split: str, train_rows: str):
    changes = {**data, **SPLITS[split], "train_rows": train_rows, "train_windows": "all", "MAX_ITEM_LIST_LENGTH": 3}
    fast, stock = (splits_of(prepared, fast_data=key, **changes) for key in (True, False))
    for got, expected in zip(fast, stock, strict=True):
        assert (type(got.inter_feat), type(expected.inter_feat)) == (LazyRows, Interaction)
        assert_same_rows(got.inter_feat, expected.inter_feat)
        assert got.train_counts.tolist() == expected.train_counts.tolist()
        assert got.histories.digest() == expected.histories.digest()


def test_a_batch_holds_the_columns_and_the_features_of_its_rows(prepared, data):
    """Whatever a row is chosen by: a batch of the loaders, one row (as RecBole counts FLOPs), a slice."""
    for ours, stock in zip(
        splits_of(prepared, train_rows="prefixes", **data), splits_of(prepared, **STOCK, **data), strict=True
    ):
        for index in (np.array([4, 2, 9]), torch.tensor([1]), slice(3, 6)):
            assert_same_rows(ours[index], stock[index])
            assert type(ours[index]) is Interaction


def test_users_of_one_two_and_three_interactions_are_split_as_in_recbole(prepared):
    """u00 to u03 have 1 to 4 interactions: nothing, train, train + test, train + valid + test."""
    for changes in (STOCK, {"train_rows": "sequences"}, {"train_rows": "prefixes"}):
        rows = [by_user(dataset) for dataset in splits_of(prepared, **changes)]
        n_rows = {user: [len(split.get(user, [])) for split in rows] for user in ("u00", "u01", "u02", "u03")}
        assert n_rows == {"u00": [0, 0, 0], "u01": [1, 0, 0], "u02": [1, 0, 1], "u03": [1, 1, 1]}


@pytest.mark.parametrize("max_length", [1, 2, 3, 5])
@pytest.mark.parametrize("split", ["valid_and_test", "valid_only", "test_only"])
def test_windows_over_all_cover_each_training_interaction_once(prepared, data, data_path, split, max_length):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": max_length}
    train = splits_of(prepared, train_rows="sequences", train_windows="all", **changes)[0]
    got = by_user(train)
    n_left_out = 2 if split == "valid_and_test" else 1
    expected, n_rows = {}, 0
    for user, history in rows_loops.histories(inter_file(data, data_path)).items():
        kept = history[: len(history) - rows_loops.held_out(history, n_left_out)]
        if len(kept) >= 2:
            expected[user] = rows_loops.windows(kept, max_length)
            assert [entry for piece in reversed(expected[user]) for entry in piece[1:]] == kept[1:]
            n_rows += len(expected[user])
    assert {user: sorted(rows) for user, rows in got.items()} == {user: sorted(rows) for user, rows in expected.items()}
    assert n_rows > len(expected)


@pytest.mark.parametrize("split", ["ratio", "ratio over time"])
def test_windows_over_all_of_a_ratio_split_cover_each_training_target_once(prepared, data, split: str):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": 2}
    stock = by_user(splits_of(prepared, **STOCK, **changes)[0])
    got = by_user(splits_of(prepared, train_rows="sequences", train_windows="all", **changes)[0])
    assert set(got) == set(stock)
    for user, rows in got.items():
        targets = Counter(entry for row in rows for entry in row[1:])
        assert targets == Counter(row[-1] for row in stock[user])


@pytest.mark.parametrize(("exact", "order_of_u"), [(True, "daceb"), (False, "cadbe")])
def test_tied_times_keep_the_order_of_the_file(prepared, tmp_path: Path, exact: bool, order_of_u: str):
    """128 seconds apart is one moment in float32 at 1.6e9: the file's order is the order, or that of its times."""
    order = ["c", "a", "d", "b", "e"]
    lines = [f"u\t{item}\t{1_600_000_000 + (7 - step) % 5}" for step, item in enumerate(order)]
    lines += ["v\ta\t2", "v\tb\t3", "v\tc\t1", "v\td\t3"]
    (tmp_path / "ties").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (tmp_path / "ties" / "ties.inter").write_text("\n".join([header, *lines]) + "\n")
    for rows in ("sequences", "prefixes"):
        _, whole, train, _, test = prepared(dataset="ties", data_path=str(tmp_path), train_rows=rows, exact_times=exact)
        histories = {
            whole.id2token("user_id", user): "".join(
                whole.id2token("item_id", whole.histories.items[slice(*whole.histories.offsets[user : user + 2])])
            )
            for user in (1, 2)
        }
        assert histories == {"u": order_of_u, "v": "cabd"}
        last = {user: "".join(item for item, _ in row[-1]) for user, row in by_user(train._dataset).items()}
        assert last == {"u": order_of_u[:3], "v": "ca"}
        assert {u: "".join(item for item, _ in row[0]) for u, row in by_user(test._dataset).items()} == histories


# --- counts and bins ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("train_rows", ["sequences", "prefixes"])
@pytest.mark.parametrize("split", SPLITS)
def test_train_counts_are_those_of_recboles_train_rows_and_bins_their_walk(prepared, data, split, train_rows):
    changes = {**data, **SPLITS[split]}
    feat = splits_of(prepared, **STOCK, **changes)[0].inter_feat
    counts = Counter(feat["item_id"].tolist())
    counts.update(feat["item_id_list"][feat["item_length"] == 1, 0].tolist())
    _, whole, *loaders = prepared(train_rows=train_rows, n_bins=4, **changes)
    expected = [counts[item] for item in range(whole.item_num)]
    assert sum(expected) > 100
    for dataset in (whole, *(loader._dataset for loader in loaders)):
        assert dataset.train_counts.tolist() == expected
        assert dataset.bins.tolist() == frequency_loops.equal_mass_bins(expected, 4)


@pytest.mark.parametrize("train_rows", ["sequences", "prefixes"])
@pytest.mark.parametrize("train_windows", ["last", "all"])
@pytest.mark.parametrize("split", SPLITS)
def test_trained_items_are_those_of_the_training_rows(prepared, data, split, train_rows, train_windows):
    changes = {**data, **SPLITS[split], "MAX_ITEM_LIST_LENGTH": 3}
    _, whole, *loaders = prepared(train_rows=train_rows, train_windows=train_windows, **changes)
    feat = loaders[0]._dataset.inter_feat
    expected = set(feat["item_id"].tolist()) | set(feat["item_id_list"].flatten().tolist()) - {0}
    for dataset in (whole, *(loader._dataset for loader in loaders)):
        assert set(np.flatnonzero(dataset.trained_items).tolist()) == expected
    counted = set(np.flatnonzero(whole.train_counts).tolist())
    assert expected <= counted
    if train_rows == "prefixes" or train_windows == "all":
        assert expected == counted


def test_counts_do_not_see_held_out_interactions(prepared, data_path: Path, tmp_path: Path):
    """All held-out interactions become an item of their own: no train count changes."""
    lines = (data_path / "tiny" / "tiny.inter").read_text().splitlines()
    last_two: dict[str, list[int]] = {}
    for number, line in enumerate(lines[1:], start=1):
        last_two.setdefault(line.split("\t")[0], []).append(number)
    for numbers in last_two.values():
        for number in numbers[-2:] if len(numbers) >= 4 else numbers[2:]:
            user, _, time = lines[number].split("\t")
            lines[number] = f"{user}\tother\t{time}"
    (tmp_path / "changed").mkdir()
    (tmp_path / "changed" / "changed.inter").write_text("\n".join(lines) + "\n")

    def counts(**changes: Any) -> dict[str, int]:
        _, whole, *_ = prepared(**changes)
        return {str(whole.id2token("item_id", i)): n for i, n in enumerate(whole.train_counts.tolist()) if n}

    before, after = counts(), counts(dataset="changed", data_path=str(tmp_path))
    assert before == after


def test_items_that_are_held_out_targets_only_have_count_0_and_the_last_bin(prepared):
    _, whole, *_ = prepared(n_bins=5)
    ids = [whole.token2id("item_id", token) for token in ("i24", "i25")]
    assert whole.train_counts[ids].tolist() == [0, 0]
    assert whole.bins[ids].tolist() == [5, 5]
    assert whole.train_counts[0] == whole.bins[0] == 0


# --- what cannot work --------------------------------------------------------------------------------------


def test_ready_made_splits_are_refused(config):
    with pytest.raises(InputError, match="benchmark_filename"):
        PADDataset(config(benchmark_filename=["train", "valid", "test"]))


def test_popular_items_as_candidates_are_refused_where_few_rows_are_made(config):
    """RecBole's sampler counts the rows: the candidates would not be those of other models."""
    popular = {"split": {"LS": "valid_and_test"}, "order": "TO", "group_by": "user", "mode": "pop10"}
    changes = {"eval_args": popular, "mask_history": False, "gate_fit": "none"}
    with pytest.raises(InputError, match=r"eval_args: mode pop10 .* train_rows: prefixes"):
        PADDataset(config(**changes))
    assert PADDataset(config(train_rows="prefixes", **changes)).train_rows == "prefixes"


def test_rows_that_the_backbone_cannot_use_are_refused(config):
    with pytest.raises(InputError, match=r"train_rows: sequences needs a causal state .* NARM"):
        PADDataset(config(backbone="NARM", train_rows="sequences"))
