"""``eval_args.split: {'TS': ...}`` with `global_time_cuts`, against plain loops over the file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from recbole.data import create_dataset
from recbole.trainer import Trainer
from recbole.utils import get_model
from torch.utils.data import DistributedSampler

from recbole_pad.checkpoint import fingerprint
from recbole_pad.data.time_cuts import parts, time_cuts
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import RankCollector
from recbole_pad.evaluation.evaluate import ItemGroups, split_ranks
from recbole_pad.fast_evaluation import evaluate_with_ranks
from recbole_pad.quick_start import run_recbole
from tests.reference import rows_loops, time_loops
from tests.reference.split_rows import rows_of

SHARES = [0.6, 0.2, 0.2]
MODELS: dict[str, dict[str, Any]] = {
    "PAD": {"train_rows": "prefixes"},
    "PAD of RecBole's reader": {"train_rows": "prefixes", "fast_data": False},
    "SASRec": {"model": "SASRec"},
    "SASRec of RecBole": {"model": "SASRec", "fast_data": False},
}
_STOCK_ONLY = ("text_fields",)


def eval_args(given: list[Any], mode: str = "full") -> dict[str, Any]:
    return {"split": {"TS": given}, "order": "TO", "group_by": "user", "mode": mode}


@pytest.fixture
def timed(tmp_path: Path) -> dict[str, Any]:
    """70 users of 1 to 12 interactions, some of whom come late; tied times, at the cuts too; lines in random order."""
    rng = np.random.default_rng(2)
    lines = []
    for user in range(70):
        first = int(rng.integers(0, 80))
        for _ in range(1 + user % 12):
            lines.append(f"u{user}\ti{rng.integers(0, 20):02d}\t{rng.integers(first, 100) // 4}")
    lines.append("late\ti20\t25")  # an item and a user of the test period only
    lines.append("late\ti20\t26")
    rng.shuffle(lines)
    (tmp_path / "timed").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (tmp_path / "timed" / "timed.inter").write_text("\n".join([header, *lines]) + "\n")
    items = "\n".join(["item_id:token\ttitle:token_seq", *(f"i{n:02d}\tbox number {n % 4}" for n in range(21))])
    (tmp_path / "timed" / "timed.item").write_text(items + "\n")
    return {"dataset": "timed", "data_path": str(tmp_path), "eval_args": eval_args(SHARES), "text_fields": ["title"]}


def for_model(timed: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    is_stock = changes.get("model", "PAD") != "PAD"
    return {key: value for key, value in {**timed, **changes}.items() if not (is_stock and key in _STOCK_ONLY)}


def file_of(timed: dict[str, Any]) -> Path:
    return Path(timed["data_path"]) / "timed" / "timed.inter"


def expected_rows(timed: dict[str, Any]) -> list[dict[str, list[time_loops.Row]]]:
    histories = rows_loops.histories(file_of(timed))
    return time_loops.split(histories, time_loops.cuts(histories, SHARES))


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_rows_lie_where_the_time_of_their_target_does(prepared, timed, changes: dict[str, Any]):
    _, _, *loaders = prepared(**for_model({**timed, "MAX_ITEM_LIST_LENGTH": 50}, changes))
    expected = expected_rows(timed)
    assert [rows_of(loader._dataset) for loader in loaders] == expected
    assert [sum(map(len, split.values())) > 40 for split in expected] == [True] * 3
    assert max(len(rows) for rows in expected[2].values()) > 2
    assert set(expected[2]) - set(expected[0])  # users of the test period only


def test_two_times_are_the_cuts_themselves(prepared, timed):
    histories = rows_loops.histories(file_of(timed))
    for model in ("PAD", "SASRec"):
        changes = {"model": model, "eval_args": eval_args([14, 20.0]), "MAX_ITEM_LIST_LENGTH": 50}
        changes |= {"train_rows": "prefixes"} if model == "PAD" else {}
        loaders = prepared(**for_model(timed, changes))[2:]
        assert [rows_of(loader._dataset) for loader in loaders] == time_loops.split(histories, [14, 20])


def test_shares_give_the_same_rows_where_recbole_normalizes_times(prepared, timed):
    rows = []
    for changes in ({}, {"normalize_all": True}):
        loaders = prepared(**timed, **changes)[2:]
        rows.append([loader._dataset.inter_feat["item_id_list"].tolist() for loader in loaders])
    assert rows[0] == rows[1]
    assert loaders[2]._dataset.inter_feat["timestamp"].max() == 1


@pytest.mark.parametrize("fast_data", [True, False])
def test_pad_trains_on_nothing_after_the_first_cut(prepared, timed, fast_data: bool):
    """Rows, counts and training histories: those of RecBole's training rows, with the first item of each user."""
    expected = expected_rows(timed)[0]
    _, whole, train, *_ = prepared(**timed, fast_data=fast_data, MAX_ITEM_LIST_LENGTH=50)
    assert rows_of(train._dataset) == {user: rows[-1:] for user, rows in expected.items()}
    sequences = {user: [item for item, _ in [*rows[-1][0], rows[-1][1]]] for user, rows in expected.items()}
    histories = train._dataset.train_histories
    for user in range(1, whole.user_num):
        own = histories.items[histories.offsets[user] : histories.offsets[user + 1]]
        assert whole.id2token("item_id", own).tolist() == sequences.get(str(whole.id2token("user_id", user)), [])
    counts = Counter(item for items in sequences.values() for item in items)
    tokens = whole.id2token("item_id", np.arange(whole.item_num)).tolist()
    assert train._dataset.train_counts.tolist() == [counts[token] for token in tokens]
    assert counts["i20"] == 0


def test_recboles_own_split_stays_where_the_key_is_off(prepared, timed):
    """It cuts validation off user by user: some of its training rows are later than validation rows of others."""
    times = []
    for changes in ({"protocol": "recbole"}, {"global_time_cuts": False, "mask_history": False}):
        loaders = prepared(**for_model({**timed, "model": "SASRec"}, {"model": "SASRec", **changes}))[2:]
        times.append([loader._dataset.inter_feat["timestamp"].numpy() for loader in loaders])
    for train, valid, test in times:
        assert train.max() > valid.min()
        assert test.min() > max(train.max(), valid.max())
    assert all(np.array_equal(one, other) for one, other in zip(*times, strict=True))


def test_counts_of_recboles_own_split_are_those_of_its_training_rows(prepared, timed):
    """A user without a training row counts for nothing, not even with the first interaction."""
    _, whole, train, *_ = prepared(**timed, protocol="recbole", train_rows="prefixes", MAX_ITEM_LIST_LENGTH=50)
    feat = train._dataset.inter_feat
    counts = Counter(feat["item_id"].tolist())
    counts.update(feat["item_id_list"][feat["item_length"] == 1, 0].tolist())
    assert train._dataset.train_counts.tolist() == [counts[item] for item in range(whole.item_num)]


def test_the_log_says_where_the_cuts_are(prepared, timed, caplog):
    with caplog.at_level(logging.INFO):
        prepared(**timed, train_rows="prefixes")
    [line] = [record.message for record in caplog.records if record.message.startswith("global_time_cuts")]
    train, valid, test = expected_rows(timed)
    at = time_loops.cuts(rows_loops.histories(file_of(timed)), SHARES)
    assert f"validation from {at[0]:.0f}, test from {at[1]:.0f}; rows: {sum(map(len, train.values()))} train" in line
    assert (
        f"users without a training row: {len(set(valid) - set(train))} in valid, {len(set(test) - set(train))}" in line
    )


@given(
    st.lists(st.integers(0, 12), min_size=3, max_size=60),
    st.lists(st.sampled_from([0.1, 0.5, 1, 2, 8]), min_size=3, max_size=3),
)
@example([0, 0, 1, 1], [0.1, 0.5, 1])  # a cut at half a place: rounded as written, sum first
def test_ties_are_on_one_side_and_no_part_before_a_cut_is_too_large(values: list[int], shares: list[float]):
    times = np.array(values, dtype=np.float32)
    part = parts(times, time_cuts(times, shares))
    for one, other in zip(times, part, strict=True):
        assert set(part[times == one]) == {other}
        assert not (part[times < one] > other).any()
    for number in (1, 2):
        allowed = round(sum(shares[:number]) / sum(shares) * len(times))
        assert (part < number).sum() <= max(allowed, 0)


# --- evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_the_mask_holds_all_that_is_before_the_target(prepared, timed, changes: dict[str, Any]):
    """Also what is older than MAX_ITEM_LIST_LENGTH; of each of a user's rows its own history."""
    changes = for_model({**timed, "MAX_ITEM_LIST_LENGTH": 2, "eval_batch_size": 9}, changes)
    _, whole, _, *loaders = prepared(**changes)
    for loader, expected in zip(loaders, expected_rows(timed)[1:], strict=True):
        got: dict[str, list[tuple[list[str], str]]] = {}
        for interaction, (rows, items), _, targets in loader:
            for row, user in enumerate(whole.id2token("user_id", interaction["user_id"].numpy())):
                history = whole.id2token("item_id", items[rows == row].numpy()).tolist()
                got.setdefault(str(user), []).append((history, str(whole.id2token("item_id", int(targets[row])))))
        assert got == {
            user: [([item for item, _ in history], target[0]) for history, target in rows]
            for user, rows in expected.items()
        }


@pytest.mark.parametrize("protocol", ["pad", "unmasked"])
@pytest.mark.parametrize("model", ["PAD", "SASRec"])
def test_ranks_of_both_protocols_are_those_of_score_rows(prepared, timed, model: str, protocol: str):
    own = {} if protocol == "pad" else {"mask_history": False}
    settings, whole, train, valid, test = prepared(**for_model(timed, {"model": model, "eval_batch_size": 7, **own}))
    torch.manual_seed(1)
    network = get_model(model)(settings, train._dataset)
    trainer = Trainer(settings, network)
    groups = ItemGroups.of(whole, valid, test, 4)
    for phase, loader, rows in (("valid", valid, expected_rows(timed)[1]), ("test", test, expected_rows(timed)[2])):
        ranks = split_ranks(trainer, loader, groups.pairs(settings["eval_args"]["split"], phase))
        network.eval()
        with torch.no_grad():
            scores = network.full_sort_predict(loader._dataset[torch.arange(len(loader._dataset))]).numpy()
        seen = Counter()
        for row, (user, target) in enumerate(zip(ranks.user.tolist(), ranks.target.tolist(), strict=True)):
            token = str(whole.id2token("user_id", user))
            history = {whole.token2id("item_id", item) for item, _ in rows[token][seen[token]][0]}
            seen[token] += 1
            better = [
                item for item in range(1, whole.item_num) if item != target and scores[row, item] > scores[row, target]
            ]
            assert ranks.unmasked[row] == pytest.approx(1 + len(better), abs=1.01)  # ties of untrained items
            masked = np.inf if target in history else ranks.unmasked[row] - len(history & set(better))
            assert ranks.masked[row] == pytest.approx(masked, abs=1.01)
        assert sum(seen.values()) == sum(map(len, rows.values()))
    result, found = evaluate_with_ranks(
        trainer, test, groups.pairs(settings["eval_args"]["split"], "test"), load_best_model=False
    )
    mine = (found.masked if protocol == "pad" else found.unmasked) <= 10
    assert result["hit@10"] == pytest.approx(mine.mean(), abs=1e-5)


def test_every_process_masks_the_histories_of_its_own_rows(prepared, timed, monkeypatch: pytest.MonkeyPatch):
    """Three processes played one after the other, with the rows that PyTorch's sampler gives them."""
    settings, whole, train, valid, test = prepared(**for_model(timed, {"model": "SASRec"}))
    trainer = Trainer(settings, get_model("SASRec")(settings, train._dataset))
    pairs = ItemGroups.of(whole, valid, test, 4).pairs(settings["eval_args"]["split"], "test")
    expected = split_ranks(trainer, test, pairs)
    n_rows = len(test._dataset)
    assert not np.array_equal(expected.masked, expected.unmasked)
    shares: list[Any] = []
    monkeypatch.setattr(Processes, "objects", lambda self, value: shares.append(value) or shares)
    for rank in range(3):
        settings.final_config_dict.update(single_spec=False, local_rank=rank, offset=0, world_size=3)
        ranked = RankCollector(trainer, test, pairs)
        index = list(DistributedSampler(range(n_rows), 3, rank, shuffle=False))
        for part in (index[:7], index[7:]):
            interaction, _, positive_u, positive_i = test.collate_fn(part)
            ranked.add((interaction, None, positive_u, positive_i))
        joined = ranked.ranks()
    assert np.array_equal(joined.user, expected.user)
    assert np.array_equal(joined.masked, expected.masked)


# --- what cannot work --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.2, 0.8], r"TS \[0.2, 0.8\] gives \d+, 0 and \d+ interactions"),
        ([0.8, 0, 0.2], r"TS \[0.8, 0, 0.2\] is neither three shares"),
        ([20, 14], "neither three shares > 0"),
        (["a", 1, 2], "neither three shares > 0"),
        ([14, 5000], "choose cuts between them"),
    ],
)
@pytest.mark.parametrize("model", ["PAD", "SASRec"])
def test_cuts_that_cannot_work_are_refused(config, timed, model: str, given: list[Any], message: str):
    with pytest.raises(InputError, match=message):
        create_dataset(config(**for_model(timed, {"model": model, "eval_args": eval_args(given)}))).build()


def test_recboles_own_split_cannot_be_masked(prepared, timed):
    with pytest.raises(InputError, match=r"mask_history.*global_time_cuts: True"):
        prepared(**timed, global_time_cuts=False)


# --- fingerprint, result -----------------------------------------------------------------------------------


def test_a_fingerprint_knows_the_cuts(prepared: Callable[..., Any], timed):
    prints = set()
    for changes in (
        {},
        {"eval_args": eval_args([0.5, 0.25, 0.25])},
        {"global_time_cuts": False, "mask_history": False},
    ):
        settings, _, train, *_ = prepared(**{**timed, **changes})
        prints.add(fingerprint(settings, train._dataset, "pretrain"))
    assert len(prints) == 3


@pytest.mark.parametrize("model", ["PAD", "SASRec", "TextKNN"])
def test_a_run_reports_the_frequency_groups(settings, timed, tmp_path: Path, model: str):
    changes = {
        key: value for key, value in for_model(timed, {"model": model}).items() if key not in ("dataset", "model")
    }
    changes |= {"epochs": 1, "checkpoint_dir": str(tmp_path / "saved")}
    made = settings(model, **changes)
    if model == "TextKNN":  # it knows no keys of networks
        made = {key: made[key] for key in ("data_path", "eval_args", "checkpoint_dir", "state", "show_progress")}
        made["text_fields"] = ["title"]
    result = run_recbole(model, "timed", config_dict=made)
    report = json.loads((Path(result["run_folder"]) / "result.json").read_text())
    assert report["protocol"]["split"] == {"TS": SHARES}
    assert report["protocol"]["global_time_cuts"] is True
    last = list(report["phases"].values())[-1]
    train, valid, test = expected_rows(timed)
    seen = {item for rows in train.values() for history, target in rows for item, _ in [*history, target]}
    for name, rows in (("valid", valid), ("test", test)):
        targets = [target[0] for own in rows.values() for _, target in own]
        for protocol in ("masked", "unmasked"):
            assert last[name][protocol]["all"]["n"] == len(targets)
            assert last[name][protocol]["frequency"]["0"]["n"] == sum(item not in seen for item in targets)
            assert 0 < last[name][protocol]["all"]["hit@20"] <= 1
    assert report["test_result"]["hit@10"] == pytest.approx(last["test"]["masked"]["all"]["hit@10"], abs=1e-5)
