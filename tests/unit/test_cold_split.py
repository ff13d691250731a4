"""`cold_split`: which items and interactions go, the same for every model, against plain loops over the file."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recbole.data import create_dataset

from recbole_pad.checkpoint import fingerprint
from recbole_pad.data.cold_split import kept_interactions, withheld_items
from recbole_pad.errors import InputError
from recbole_pad.quick_start import run_recbole
from tests.reference import cold_loops, rows_loops
from tests.reference.split_rows import rows_of

SHARE = 0.3
MODELS: dict[str, dict[str, Any]] = {
    "PAD": {"train_rows": "prefixes"},
    "PAD of RecBole's reader": {"train_rows": "prefixes", "fast_data": False},
    "TextKNN": {"model": "TextKNN", "train_rows": "prefixes"},
    "SASRec": {"model": "SASRec"},
    "SASRec of RecBole": {"model": "SASRec", "fast_data": False},
    "TransRec": {"model": "TransRec"},  # draws negatives
}


@pytest.fixture
def settings(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Those of all tests, for TextKNN too, which knows no keys of networks."""

    def make(model: str = "PAD", **changes: Any) -> dict[str, Any]:
        made = settings(model, **changes)
        unknown = {"hidden_size", "inner_size", "embedding_size", "hidden_dropout_prob", "attn_dropout_prob"}
        return {key: value for key, value in made.items() if model != "TextKNN" or key not in unknown}

    return make


@pytest.fixture
def shuffled(tmp_path: Path) -> dict[str, Any]:
    """Lines in random order, tied times, repeated items, users of 1 to 12 interactions."""
    rng = np.random.default_rng(11)
    lines = []
    for user in range(60):
        for _ in range(1 + user % 12):
            lines.append(f"u{user}\ti{rng.integers(0, 20):02d}\t{rng.integers(0, 7)}")
    rng.shuffle(lines)
    (tmp_path / "shuffled").mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float"
    (tmp_path / "shuffled" / "shuffled.inter").write_text("\n".join([header, *lines]) + "\n")
    items = "\n".join(["item_id:token\ttitle:token_seq", *(f"i{n:02d}\tbox number {n % 4}" for n in range(20))])
    (tmp_path / "shuffled" / "shuffled.item").write_text(items + "\n")
    return {"dataset": "shuffled", "data_path": str(tmp_path), "text_fields": ["title"], "cold_split": SHARE}


def for_model(shuffled: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    is_stock = changes.get("model") in ("SASRec", "TransRec")
    return {key: value for key, value in {**shuffled, **changes}.items() if not (is_stock and key == "text_fields")}


def withheld_tokens(whole: Any) -> set[str]:
    return {str(whole.id2token("item_id", item)) for item in np.flatnonzero(whole.withheld_items)}


# --- rows --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_rows_are_those_of_the_file_without_withheld_items(prepared, shuffled, changes: dict[str, Any]):
    _, whole, *loaders = prepared(**for_model({**shuffled, "MAX_ITEM_LIST_LENGTH": 50}, changes))
    withheld = withheld_tokens(whole)
    assert len(withheld) == 6  # of 20
    file = Path(shuffled["data_path"]) / "shuffled" / "shuffled.inter"
    left = cold_loops.without_withheld(rows_loops.histories(file), withheld)
    expected = cold_loops.leave_one_out(left)
    for loader, rows in zip(loaders, expected, strict=True):
        assert rows_of(loader._dataset) == rows
    targets = [[target[0] for rows in split.values() for _, target in rows] for split in expected]
    inputs = {item for split in expected for rows in split.values() for history, _ in rows for item, _ in history}
    assert not withheld & ({*targets[0], *targets[1]} | inputs)
    assert 5 < sum(target in withheld for target in targets[2]) < len(targets[2]) - 5


def test_every_model_sees_the_same_items_which_stay_in_the_catalogue(prepared, shuffled):
    found, sizes = [], set()
    for changes in MODELS.values():
        whole = prepared(**for_model(shuffled, changes))[1]
        found.append(withheld_tokens(whole))
        sizes.add(whole.item_num)
    assert all(tokens == found[0] for tokens in found)
    assert sizes == {21}
    assert withheld_tokens(prepared(**{**shuffled, "seed": 99})[1]) == found[0]
    assert withheld_tokens(prepared(**{**shuffled, "cold_split_seed": 1})[1]) != found[0]


def test_one_training_row_a_user_holds_no_withheld_item_either(prepared, shuffled):
    """PAD's own rows: the same targets and training interactions as with prefixes."""
    prefixes, sequences = (prepared(**shuffled, train_rows=rows) for rows in ("prefixes", "sequences"))
    assert sequences[1].train_counts.tolist() == prefixes[1].train_counts.tolist()
    assert [rows_of(loader._dataset) for loader in sequences[3:]] == [
        rows_of(loader._dataset) for loader in prefixes[3:]
    ]
    whole, train = sequences[1], rows_of(sequences[2]._dataset)
    counts = Counter(item for rows in train.values() for history, target in rows for item, _ in [*history, target])
    assert train
    assert not withheld_tokens(whole) & set(counts)
    assert (whole.train_counts[whole.withheld_items] == 0).all()
    assert not whole.withheld_items[whole.train_histories.items].any()


def test_without_the_key_nothing_changes(prepared, shuffled):
    off = {key: value for key, value in shuffled.items() if key != "cold_split"}
    file = Path(shuffled["data_path"]) / "shuffled" / "shuffled.inter"
    expected = cold_loops.leave_one_out(rows_loops.histories(file))
    for changes in ({}, {"cold_split": 0}, {"cold_split": 0.0, "cold_split_seed": 3}):
        _, whole, *loaders = prepared(**off, **changes, train_rows="prefixes", MAX_ITEM_LIST_LENGTH=50)
        assert not hasattr(whole, "withheld_items")
        assert [rows_of(loader._dataset) for loader in loaders] == expected


def test_the_log_counts_what_is_gone(prepared, shuffled, caplog):
    with caplog.at_level(logging.INFO):
        _, whole, *_ = prepared(**shuffled)
    withheld = withheld_tokens(whole)
    before = rows_loops.histories(Path(shuffled["data_path"]) / "shuffled" / "shuffled.inter")
    left = cold_loops.without_withheld(before, withheld)
    removed = sum(map(len, before.values())) - sum(map(len, left.values()))
    test = [history[-1][0] for history in left.values() if len(history) >= 3]
    cold = sum(item in withheld for item in test)
    [line] = [record.message for record in caplog.records if record.message.startswith("cold_split")]
    assert "6 of 20 items withheld" in line
    assert f"{removed} of {sum(map(len, before.values()))} interactions removed" in line
    assert f"without a training row: {sum(len(history) < 2 for history in left.values())} " in line
    assert f"test targets: {cold} cold, {len(test) - cold} in-set" in line


# --- the draw and the choice, on arrays --------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 6), st.booleans()), max_size=40))
def test_kept_interactions_are_those_of_a_loop(pairs: list[tuple[int, bool]]):
    pairs.sort(key=lambda pair: pair[0])
    users, marks = np.array([u for u, _ in pairs], dtype=np.int64), np.array([w for _, w in pairs], dtype=bool)
    histories: dict[str, list[tuple[str, float]]] = {}
    for place, (user, is_withheld) in enumerate(pairs):
        histories.setdefault(str(user), []).append((f"{'cold' if is_withheld else 'seen'} {place}", place))
    withheld = {item for history in histories.values() for item, _ in history if item.startswith("cold")}
    left = cold_loops.without_withheld(histories, withheld)
    expected = {place for history in left.values() for _, place in history}
    assert set(np.flatnonzero(kept_interactions(users, marks)).tolist()) == expected


@given(st.integers(2, 60), st.integers(0, 5), st.floats(0.05, 0.95), st.randoms())
def test_the_draw_has_the_size_of_the_share_and_is_one_of_names(n_items: int, seed: int, share: float, random: Any):
    n_withheld = round(share * n_items)
    if not 0 < n_withheld < n_items:
        return
    names = [f"item {n}" for n in range(n_items)]
    drawn = []
    for _ in range(2):  # the same items in two orders, an item without interactions among them
        order = random.sample(["never", *names], n_items + 1)
        tokens = np.array(["[PAD]", *order])
        items = np.array([place for place, name in enumerate(tokens) if name in names] * 2)
        marked = withheld_items(items, tokens, share, seed)
        assert marked.sum() == n_withheld
        drawn.append({str(token) for token in tokens[marked]})
    assert drawn[0] == drawn[1]
    assert not drawn[0] & {"[PAD]", "never"}


def test_a_smaller_share_withholds_some_of_the_same_items():
    tokens, items = np.array(["[PAD]", *(f"i{n}" for n in range(50))]), np.arange(1, 51)
    small, large = (withheld_items(items, tokens, share, 4) for share in (0.1, 0.4))
    assert (small.sum(), large.sum()) == (5, 20)
    assert (large | ~small).all()


# --- what cannot work --------------------------------------------------------------------------------------

RATIO = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cold_split": 1}, r"cold_split: 1 is not a number in \[0, 1\)"),
        ({"cold_split": -0.1}, r"cold_split: -0.1 is not"),
        ({"cold_split": "much"}, r"cold_split: 'much' is not"),
        ({"cold_split": True}, r"cold_split: True is not"),
        ({"cold_split": 0.3, "cold_split_seed": -1}, r"cold_split_seed: -1"),
        ({"cold_split": 0.001}, r"cold_split: 0.001 of 24 items is none"),
        ({"cold_split": 0.99}, r"cold_split: 0.99 of 24 items is all"),
        ({"cold_split": 0.3, "eval_args": RATIO, "mask_history": False}, r"cold_split: needs leave-one-out.*RS"),
    ],
)
@pytest.mark.parametrize("model", ["PAD", "SASRec"])
def test_settings_that_cannot_work_are_refused(config, model: str, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        create_dataset(config(model=model, **changes)).build()


def test_the_key_is_for_sequential_models(config):
    with pytest.raises(InputError, match="cold_split: is for sequential models, and BPR is none"):
        create_dataset(config(model="BPR", cold_split=0.2)).build()


# --- fingerprint, result -----------------------------------------------------------------------------------


def test_phases_of_other_data_have_other_fingerprints(prepared: Callable[..., Any]):
    def print_of(**changes: Any) -> str:
        settings, _, train, *_ = prepared(**changes)
        return fingerprint(settings, train._dataset, "pretrain")

    prints = [
        print_of(),
        print_of(cold_split=0.2),
        print_of(cold_split=0.4),
        print_of(cold_split=0.2, cold_split_seed=5),
    ]
    assert len(set(prints)) == 4
    assert print_of(cold_split=0, cold_split_seed=5) == prints[0]


@pytest.mark.parametrize("model", ["PAD", "SASRec", "TextKNN"])
def test_a_run_reports_cold_and_in_set_targets(settings, tmp_path: Path, model: str):
    own = {} if model == "SASRec" else {"text_encoder": "tfidf", "text_transform": "none"}
    changes = {"cold_split": 0.3, "epochs": 1, "checkpoint_dir": str(tmp_path / "saved"), **own}
    result = run_recbole(model, "tiny", config_dict=settings(model, **changes))
    report = json.loads((Path(result["run_folder"]) / "result.json").read_text())
    assert report["protocol"]["cold_split"] == 0.3
    last = list(report["phases"].values())[-1]
    for protocol in ("masked", "unmasked"):
        groups = last["test"][protocol]["cold_split"]
        every = last["test"][protocol]["all"]
        n_cold, n_in_set = groups["cold"]["n"], groups["in_set"]["n"]
        assert n_cold > 2
        assert n_cold + n_in_set == every["n"]
        mean = (n_cold * groups["cold"]["ndcg@10"] + n_in_set * groups["in_set"]["ndcg@10"]) / every["n"]
        assert mean == pytest.approx(every["ndcg@10"])
        assert last["test"][protocol]["frequency"]["0"]["n"] >= n_cold
        assert last["valid"][protocol]["cold_split"]["cold"] == {"n": 0}
