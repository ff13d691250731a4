"""The Markov expert against plain loops, its place in PAD's scores, and the lists and pairs that it is made of."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_pad.data.histories import Histories
from recbole_pad.evaluation.collector import RankCollector
from recbole_pad.model.pad import PAD
from recbole_pad.model.transitions import Transitions, transition_cosines
from recbole_pad.nn.ragged import Ragged
from recbole_pad.nn.score_pairs import ScorePairs
from tests.conftest import with_noise
from tests.reference import transitions_loops

N_ITEMS = 7  # with padding; items that no sequence holds are unseen
SEQUENCES = st.lists(st.lists(st.integers(1, N_ITEMS - 1), max_size=8), min_size=1, max_size=5)
HISTORIES = st.lists(st.lists(st.integers(1, N_ITEMS - 1), min_size=1, max_size=6), min_size=1, max_size=4)
Build = Callable[..., SimpleNamespace]


def train_of(sequences: list[list[int]]) -> Histories:
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = np.array([item for sequence in sequences for item in sequence], dtype=np.int64)
    return Histories.from_sorted(users, items, len(sequences))


def padded(histories: list[list[int]], width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    item_seq = torch.tensor([history + [0] * (width - len(history)) for history in histories])
    return item_seq, torch.tensor([len(history) for history in histories])


def dense(pairs: ScorePairs, n_rows: int, n_items: int) -> list[list[float]]:
    """Pairs written out; each may stand there once, sorted."""
    keys = list(zip(pairs.rows.tolist(), pairs.items.tolist(), strict=True))
    assert keys == sorted(set(keys))
    scores = [[0.0] * n_items for _ in range(n_rows)]
    for (row, item), value in zip(keys, pairs.values.tolist(), strict=True):
        scores[row][item] = value
    return scores


# --- alone -------------------------------------------------------------------------------------------------


def test_cosines_by_hand():
    """Users 1 2 3 1 4 and 2 3: 2 is followed by 3 twice, by 1 two places later, by 4 three later."""
    table = transition_cosines(train_of([[1, 2, 3, 1, 4], [2, 3]]), 6).toarray()
    expected = np.zeros((6, 6))
    expected[1, 2:5] = [1 / 2, 0.5 / 2, 1 / 2**0.5]  # 4 follows the second 1 alone
    expected[1, 1] = 0.25 / 2
    expected[2, [1, 3, 4]] = [0.5 / 2, 2 / 2, 0.25 / 2**0.5]
    expected[3, [1, 4]] = [1 / 2, 0.5 / 2**0.5]
    assert table == pytest.approx(expected)


@settings(deadline=None, max_examples=80)
@given(sequences=SEQUENCES)
def test_cosines_are_those_of_the_loops(sequences: list[list[int]]):
    table = transition_cosines(train_of(sequences), N_ITEMS)
    expected = transitions_loops.cosines(sequences)
    found = {(a, b): table[a, b] for a, b in zip(*table.nonzero(), strict=True)}
    assert found == pytest.approx(expected)
    assert table.has_sorted_indices


@settings(deadline=None, max_examples=80)
@given(
    sequences=SEQUENCES,
    histories=HISTORIES,
    decay=st.sampled_from([0.0, 0.6, 1.0]),
)
def test_scores_are_those_of_the_loops(sequences: list[list[int]], histories: list[list[int]], decay: float):
    """Of items that followed one of the history's; all others, unseen ones and padding with them, get nothing."""
    pairs = Transitions(train_of(sequences), N_ITEMS, decay)(*padded(histories))
    table = transitions_loops.cosines(sequences)
    got = dense(pairs, len(histories), N_ITEMS)
    for history, row in zip(histories, got, strict=True):
        expected = [transitions_loops.score(history, item, table, decay) for item in range(N_ITEMS)]
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
        seen = {item for sequence in sequences for item in sequence}
        assert not any(row[item] for item in range(N_ITEMS) if item not in seen)


def test_no_rows_get_no_pairs():
    nothing = torch.zeros(0, 6, dtype=torch.int64)
    pairs = Transitions(train_of([[1, 2, 3]]), N_ITEMS, 0.5)(nothing, nothing[:, 0])
    assert len(pairs.rows) == len(pairs.items) == len(pairs.values) == 0


def test_it_has_nothing_to_train_or_to_store():
    expert = Transitions(train_of([[1, 2, 3]]), N_ITEMS, 0.5)
    assert not expert.is_trained
    assert not list(expert.parameters())
    assert not expert.state_dict()


# --- in PAD ------------------------------------------------------------------------------------------------


@pytest.fixture
def build(build: Build) -> Build:
    """With weights away from their start, and RecBole's trainer."""

    def make(**changes: Any) -> SimpleNamespace:
        run = build(**changes)
        run.trainer = Trainer(run.config, with_noise(run.model))
        return run

    return make


@torch.no_grad()
@pytest.mark.parametrize("memory", [2**30, 1000])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_scores_of_pad_are_the_inner_products_and_the_gated_loops(
    build: Build, decay: float, memory: int, monkeypatch: pytest.MonkeyPatch
):
    """Whether item vectors are kept or computed in blocks."""
    monkeypatch.setattr(PAD, "_memory", memory)
    run = build(markov_decay=decay)
    model, histories = run.model, run.train._dataset.train_histories
    sequences = [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]
    table = transitions_loops.cosines(sequences)
    column = list(model.settings.experts).index("markov")
    n_pairs = 0
    for interaction, *_ in run.test:
        got = model.full_sort_predict(interaction)
        products = model.user_vectors(interaction) @ model.item_vectors().T
        gate = model.user_weights(model.newest_items(interaction))[:, column, None] * model.gate_weights()[:, column]
        for row, items in enumerate(interaction["item_id_list"].tolist()):
            history = [item for item in items if item]
            own = [transitions_loops.score(history, item, table, decay) for item in range(model.n_items)]
            expected = products[row] + gate[row] * torch.tensor(own)
            torch.testing.assert_close(got[row], expected, rtol=1e-4, atol=1e-4)
            n_pairs += sum(value > 0 for value in own)
        for shift in range(4):
            candidates = (interaction["item_id"] + 6 * shift) % (model.n_items - 1) + 1
            asked = Interaction({**interaction.interaction, "item_id": candidates})
            expected = got[torch.arange(len(got)), candidates]
            torch.testing.assert_close(model.predict(asked), expected, rtol=1e-4, atol=1e-4)
    assert n_pairs > 100


@torch.no_grad()
def test_items_without_training_get_nothing_of_it(build: Build):
    run = build()
    unseen = (~run.model.catalogue.seen).nonzero().squeeze(1).tolist()
    interaction = next(iter(run.test))[0]
    assert len(unseen) > 1  # padding and the items of tests alone
    assert not set(run.model.pair_scores(interaction).items.tolist()) & set(unseen)


@torch.no_grad()
def test_the_first_phases_know_nothing_of_it(build: Build):
    run = build()
    for phase in ("pretrain", "align"):
        run.model.phase = phase
        assert run.model.pair_scores(next(iter(run.test))[0]) is None
        assert "experts.markov" not in run.model.phase_modules()


@pytest.mark.parametrize("memory_mb", [512, 5e-3, 1e-6])
@pytest.mark.parametrize("mask_history", [True, False])
def test_metrics_are_those_of_recboles_own_evaluation(build: Build, mask_history: bool, memory_mb: float):
    """Rows are ranked together, or in parts as the memory allows; pairs go with their rows."""
    metrics = ["Hit", "NDCG", "MRR", "Recall", "Precision", "MAP"]
    run = build(eval_batch_size=9, metrics=metrics, topk=[1, 5, 10], unseen_items="raw", mask_history=mask_history)
    run.trainer.config["score_memory_mb"] = memory_mb
    results = []
    for fast in (True, False):
        run.trainer.config["fast_evaluation"] = fast
        results.append(dict(run.trainer.evaluate(run.test, load_best_model=False)))
    assert results[0] == pytest.approx(results[1], abs=1e-4)
    with pytest.MonkeyPatch.context() as patch:  # the numbers are not those of the other experts alone
        patch.setattr(PAD, "pair_scores", lambda self, interaction: None)
        assert results[0] != pytest.approx(dict(run.trainer.evaluate(run.test, load_best_model=False)), abs=1e-4)


@pytest.mark.parametrize("memory_mb", [512, 5e-3, 1e-6])
def test_ranks_are_those_of_the_whole_score_matrix(build: Build, memory_mb: float):
    run = build(eval_batch_size=7)
    run.trainer.config["score_memory_mb"] = memory_mb
    found = RankCollector(run.trainer, run.test)
    expected = []
    with torch.no_grad():
        for batch in run.test:
            found.add(batch)
            scores = run.model.full_sort_predict(batch[0])[:, 1:].double()
            own = scores.gather(1, batch[3][:, None] - 1)
            above, equal = ((scores > own).sum(1), (scores == own).sum(1))
            expected += (above + (equal + 1) / 2).tolist()
    assert found.ranks().unmasked.tolist() == pytest.approx(expected)


# --- lists and pairs ---------------------------------------------------------------------------------------

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8), st.integers(-9, 9)), max_size=30)


def columns(triples: list[tuple[int, int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, items, values = (list(column) for column in zip(*triples, strict=True)) if triples else ([], [], [])
    return torch.tensor(rows, dtype=torch.int64), torch.tensor(items, dtype=torch.int64), torch.tensor(values).float()


def added(triples: list[tuple[int, int, int]]) -> dict[tuple[int, int], int]:
    total: dict[tuple[int, int], int] = {}
    for row, item, value in triples:
        total[row, item] = total.get((row, item), 0) + value
    return total


def pairs_of(triples: list[tuple[int, int, int]]) -> ScorePairs:
    total = sorted(added(triples).items())
    return ScorePairs(*columns([(row, item, value) for (row, item), value in total]))


@settings(deadline=None, max_examples=80)
@given(triples=PAIRS, data=st.data())
def test_pairs_are_found_again_and_added_to_scores(triples: list[tuple[int, int, int]], data: Any):
    pairs, total = pairs_of(triples), added(triples)
    asked = data.draw(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 8)), max_size=12))
    rows, items = (torch.tensor([pair[k] for pair in asked], dtype=torch.int64) for k in (0, 1))
    assert pairs.at(rows, items, 9).tolist() == [total.get(pair, 0) for pair in asked]
    scores = torch.arange(45.0).view(5, 9)
    expected = [[9 * row + item + total.get((row, item), 0) for item in range(9)] for row in range(5)]
    assert pairs.add_to(scores) is scores
    assert scores.tolist() == expected


@settings(deadline=None, max_examples=80)
@given(first=PAIRS, second=PAIRS)
def test_pairs_of_two_lists_are_added_up(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]):
    both = pairs_of(first).plus(pairs_of(second), 9)
    expected = pairs_of([*first, *second])
    for name in ("rows", "items", "values"):
        assert getattr(both, name).tolist() == getattr(expected, name).tolist()


@settings(deadline=None, max_examples=40)
@given(parts=st.lists(PAIRS, min_size=1, max_size=4))
def test_joined_pairs_are_those_of_all_parts(parts: list[list[tuple[int, int, int]]]):
    below = [[(row + 5 * n, item, value) for row, item, value in part] for n, part in enumerate(parts)]
    joined = ScorePairs.joined([pairs_of(part) for part in below])
    together = pairs_of([triple for part in below for triple in part])
    for name in ("rows", "items", "values"):
        assert torch.equal(getattr(joined, name), getattr(together, name))


@settings(deadline=None, max_examples=80)
@given(triples=PAIRS, asked=st.lists(st.integers(0, 4), max_size=8))
def test_ragged_lists_give_back_what_went_in(triples: list[tuple[int, int, int]], asked: list[int]):
    """In the order in which it came, for rows asked in any order, or twice."""
    rows, items, values = columns(triples)
    lists = Ragged.from_pairs(rows, items, 5, values)
    place, entry = lists.entries(torch.tensor(asked, dtype=torch.int64))
    own = [[(item, value) for row, item, value in triples if row == wanted] for wanted in asked]
    expected = [(number, *pair) for number, pairs in enumerate(own) for pair in pairs]
    found = zip(place.tolist(), lists.items[entry].tolist(), lists.values[entry].tolist(), strict=True)
    assert list(found) == expected
    assert Ragged.from_pairs(rows, items, 5).values is None
