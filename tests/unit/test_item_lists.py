"""Best and hardest items by hand, and the texts of a few items."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recbole_pad.data.item_file import titles
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts
from recbole_pad.evaluation.item_lists import best_and_hardest

INF = np.inf


def test_the_lists_by_hand():
    """Item 1: twice first; item 2: once second, once missed; items 3 and 4: missed, 4 more often; item 5: one row."""
    targets = np.array([1, 1, 2, 2, 3, 3, 4, 4, 4, 5])
    ranks = np.array([1, 1, 2, 11, 50, INF, 20, 30, INF, 1])
    found = best_and_hardest(ranks, targets, n_listed=2, at_least=2)
    assert found["at_least"] == 2
    assert found["best"] == [
        {"item": 1, "n": 2, "hit@10": 1.0, "ndcg@10": 1.0},
        {"item": 2, "n": 2, "hit@10": 0.5, "ndcg@10": pytest.approx(0.5 / np.log2(3))},
    ]
    assert [entry["item"] for entry in found["hardest"]] == [4, 3]
    assert [entry["hit@10"] for entry in found["hardest"]] == [0.0, 0.0]


@pytest.mark.parametrize(("rows_of_items", "expected"), [([9, 9, 5, 5], 5), ([9, 9, 4, 3], 3), ([9, 9, 5], 1)])
def test_the_threshold_is_the_largest_that_fills_both_lists(rows_of_items: list[int], expected: int):
    targets = np.repeat(np.arange(1, len(rows_of_items) + 1), rows_of_items)
    found = best_and_hardest(np.ones(len(targets)), targets, n_listed=2, at_least=5)
    assert found["at_least"] == expected
    assert len(found["best"]) == len(found["hardest"]) == 2
    assert all(entry["n"] >= expected for entry in found["best"] + found["hardest"])


def test_without_targets_the_lists_are_empty():
    assert best_and_hardest(np.zeros(0), np.zeros(0, dtype=int)) == {"at_least": 1, "best": [], "hardest": []}


def test_titles_are_the_texts_that_the_encoder_reads(prepared: Callable[..., Any], data_path: Path):
    _, whole, *_ = prepared(text_fields=["title", "kind"])
    found = titles(whole, {"i01", "i07", "no such item"})
    texts = read_item_texts(ItemFile(data_path / "tiny" / "tiny.item"), ["title", "kind"])
    assert found == {"i01": texts["i01"], "i07": texts["i07"], "no such item": ""}
    assert found["i01"] == "red round box. round"


def test_texts_are_split_like_the_interactions(prepared: Callable[..., Any], with_commas: dict[str, Any]):
    tabs, commas = (prepared(text_vectors_dir=kind, **changes)[1] for kind, changes in (("t", {}), ("c", with_commas)))
    assert titles(commas, {"i01"}) == {"i01": "red round box"}
    assert torch.equal(commas.text_table.read(), tabs.text_table.read())


def test_a_stock_models_titles_are_in_the_column_title(prepared: Callable[..., Any]):
    _, whole, *_ = prepared("SASRec")
    assert titles(whole, ["i02"]) == {"i02": "blue round box"}


@pytest.mark.parametrize("content", [None, "item_id:token\tname:token\ni1\tx\n", 'item_id:token\ttitle:token\n\t"\n'])
def test_a_missing_file_or_column_gives_empty_titles(content: str | None, tmp_path: Path):
    if content is not None:
        (tmp_path / "shop.item").write_text(content)
    dataset = SimpleNamespace(
        dataset_path=str(tmp_path),
        dataset_name="shop",
        iid_field="item_id",
        config=defaultdict(lambda: None, text_fields="title", field_separator="\t"),
    )
    assert titles(dataset, ["i1"]) == {"i1": ""}


def test_texts_of_some_items_equal_those_of_all(data_path: Path, caplog: pytest.LogCaptureFixture):
    file = data_path / "tiny" / "tiny.item"
    everything = read_item_texts(ItemFile(file), ["title"])
    assert read_item_texts(ItemFile(file), ["title"], tokens={"i03", "i21", "x"}) == {
        key: everything[key] for key in ("i03", "i21")
    }
    assert read_item_texts(ItemFile(file), ["title"], tokens=set()) == {}
    assert not caplog.records
