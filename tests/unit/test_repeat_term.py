"""The repeat term against full rankings, one shift after the other, and what it leaves alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction

from recbole_pad.data.loader import of_all_rows
from recbole_pad.model.repeat_term import RepeatTerm, best_shift, held_out_scores
from recbole_pad.nn.score_pairs import ScorePairs
from recbole_pad.phase_trainers import FinetuneTrainer
from recbole_pad.quick_start import run_recbole

N_ITEMS = 16

Build = Callable[..., SimpleNamespace]


@pytest.fixture
def build(build: Build) -> Build:
    """Of the two experts that nothing trains."""
    return partial(build, phases=["finetune"], experts=["match", "markov"])


def ndcg_of(scores: list[list[float]], histories: list[list[int]], targets: list[int], shift: float) -> float:
    """NDCG@10 of whole rankings: every item but padding, the history's moved by `shift`."""
    total = 0.0
    for row, history, target in zip(scores, histories, targets, strict=True):
        moved = [score + shift * (item in history) for item, score in enumerate(row)]
        rank = 1 + sum(score > moved[target] for item, score in enumerate(moved) if item not in (0, target))
        total += 1 / math.log2(1 + rank) if rank <= 10 else 0
    return total / len(targets)


class Scores:
    """As much of a model as is read: scores of all items that are there already."""

    ITEM_SEQ, n_items, device = "seq", N_ITEMS, "cpu"

    def __init__(self, scores: torch.Tensor) -> None:
        self.scores = scores

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        return self.scores[interaction["row"]].clone()


cases = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.integers(1, N_ITEMS - 1), min_size=1, max_size=6), min_size=n, max_size=n),
        st.lists(st.integers(1, N_ITEMS - 1), min_size=n, max_size=n),
        st.integers(0, 10_000),
    )
)


@settings(max_examples=60, deadline=None)
@given(cases, st.sampled_from([1, 100, 2**20]))
def test_the_shift_is_the_best_of_whole_rankings(case: tuple[list[list[int]], list[int], int], memory: int):
    histories, targets, seed = case
    scores = torch.randn(len(targets), N_ITEMS, generator=torch.Generator().manual_seed(seed))
    seq = torch.tensor([history + [0] * (6 - len(history)) for history in histories])
    batch = Interaction({"seq": seq, "row": torch.arange(len(targets))}), None, None, torch.tensor(targets)
    rows = held_out_scores(Scores(scores), [batch], memory)
    table = scores.tolist()
    tried = [-100.0, -2.03, -0.51, 0.0, 0.49, 1.97, 100.0]
    expected = [ndcg_of(table, histories, targets, shift) for shift in tried]
    assert rows.ndcg(torch.tensor(tried)).tolist() == pytest.approx(expected, abs=1e-6)
    found = best_shift(rows)
    assert ndcg_of(table, histories, targets, found) >= max(expected) - 1e-6


def test_where_nobody_comes_back_the_history_is_put_last():
    scores = torch.tensor([[0.0, 5.0, 4.0, 3.0, 2.0], [0.0, 1.0, 9.0, 8.0, 2.0]])
    seq = torch.tensor([[1, 2, 0], [3, 2, 3]])
    batch = Interaction({"seq": seq, "row": torch.arange(2)}), None, None, torch.tensor([4, 1])
    rows = held_out_scores(Scores(scores), [batch], 2**20)
    shift = best_shift(rows)
    assert shift < -8
    assert rows.ndcg(torch.tensor([shift])).item() == pytest.approx((1 / math.log2(3) + 1 / math.log2(3)) / 2)


def test_where_everybody_comes_back_the_history_is_put_first():
    scores = torch.tensor([[0.0, 1.0, 4.0, 3.0, 2.0]])
    batch = Interaction({"seq": torch.tensor([[1, 0]]), "row": torch.arange(1)}), None, None, torch.tensor([1])
    rows = held_out_scores(Scores(scores), [batch], 2**20)
    assert best_shift(rows) > 3
    assert rows.ndcg(torch.tensor([best_shift(rows)])).item() == 1


def test_each_item_of_the_history_gets_the_shift_once():
    term = RepeatTerm(9)
    term.shift.fill_(-2.5)
    pairs = term(torch.tensor([[4, 2, 4, 0], [0, 0, 0, 0], [8, 1, 0, 0]]))
    found = list(zip(pairs.rows.tolist(), pairs.items.tolist(), pairs.values.tolist(), strict=True))
    assert found == [(0, 2, -2.5), (0, 4, -2.5), (2, 1, -2.5), (2, 8, -2.5)]


def test_parts_of_the_same_rows_are_added_up():
    one = ScorePairs(torch.tensor([0, 2]), torch.tensor([3, 1]), torch.tensor([1.0, 2.0]))
    other = ScorePairs(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 4]), torch.tensor([0.5, 0.25, 4.0]))
    both = one.plus(other, 5)
    assert both.rows.tolist() == [0, 0, 2, 2]
    assert both.items.tolist() == [1, 3, 1, 4]
    assert both.values.tolist() == [0.5, 1.25, 2.0, 4.0]
    nothing = ScorePairs(*(part[:0] for part in (one.rows, one.items, one.values)))
    assert one.plus(nothing, 5) is one
    assert nothing.plus(one, 5) is one


# --- in a run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask_history", [True, False])
def test_the_fitted_term_moves_the_history_and_nothing_else(mask_history: bool, build: Build):
    parts, without = build(mask_history=mask_history), build(mask_history=mask_history, repeat_term="none")
    for each in (parts, without):
        FinetuneTrainer(each.config, each.model).fit(each.train, each.valid)
        each.model.eval()
    shift = parts.model.repeats.shift.item()
    assert shift != 0
    assert without.model.repeats.shift.item() == 0
    interaction = next(iter(of_all_rows(parts.test)))[0]
    with torch.no_grad():
        found, plain = parts.model.full_sort_predict(interaction), without.model.full_sort_predict(interaction)
    expected = plain.clone()
    for row, items in enumerate(interaction["item_id_list"].tolist()):
        for item in set(items) - {0}:
            expected[row, item] += shift
    torch.testing.assert_close(found[:, 1:], expected[:, 1:], rtol=1e-4, atol=1e-4)
    asked = Interaction({**interaction.interaction, "item_id": interaction["item_id_list"][:, 0]})
    one_by_one = found.gather(1, asked["item_id"][:, None])[:, 0]
    with torch.no_grad():
        torch.testing.assert_close(parts.model.predict(asked), one_by_one, rtol=1e-4, atol=1e-4)


def test_the_term_is_kept_with_the_gate_and_is_of_the_mixture_alone(build: Build):
    parts = build()
    parts.model.repeats.shift.fill_(-3.0)
    assert "repeats" in parts.model.phase_modules()
    assert parts.model.state_dict()["repeats.shift"] == -3
    interaction = next(iter(of_all_rows(parts.test)))[0]
    with torch.no_grad():
        of_mixture = parts.model.pair_scores(interaction)
        parts.model.scored_alone = "match"
        assert of_mixture is not None
        assert parts.model.pair_scores(interaction) is None


def test_masked_figures_stay_and_unmasked_ones_gain_on_validation_data(settings: Callable[..., dict[str, Any]]):
    def phase(**changes: Any) -> dict[str, Any]:
        asked = settings(phases=["finetune"], experts=["match", "markov"], **changes)
        found: dict[str, Any] = run_recbole("PAD", "tiny", config_dict=asked)["report"]["phases"]["finetune"]
        return found

    found, without = phase(), phase(repeat_term="none")
    assert found["test"]["masked"] == without["test"]["masked"]
    assert found["valid"]["masked"] == without["valid"]["masked"]
    assert found["valid"]["unmasked"]["all"]["ndcg@10"] > without["valid"]["unmasked"]["all"]["ndcg@10"]


def test_a_shift_that_is_there_before_the_fit_has_no_part_in_it(settings: Callable[..., dict[str, Any]]):
    """Of an initial checkpoint; and `repeat_term: none` switches it off."""
    asked = settings(phases=["finetune"], experts=["match", "markov"])
    first = run_recbole("PAD", "tiny", config_dict=asked)
    start = {"init_checkpoint": f"{first['run_folder']}/finetune.pth"}
    again = run_recbole("PAD", "tiny", config_dict={**asked, **start})["report"]
    off = run_recbole("PAD", "tiny", config_dict={**asked, **start, "repeat_term": "none"})["report"]
    never = run_recbole("PAD", "tiny", config_dict={**asked, "repeat_term": "none"})["report"]
    of = {
        name: run["phases"]["finetune"]["valid"]["unmasked"]["all"]["ndcg@10"]
        for name, run in (("first", first["report"]), ("again", again), ("off", off), ("never", never))
    }
    assert of["first"] > of["never"]
    assert of["again"] > of["off"]


def test_more_turning_points_than_are_tried_still_give_a_good_shift():
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(300, N_ITEMS, generator=generator)
    seq = torch.randint(1, N_ITEMS, (300, 6), generator=generator)
    target = torch.randint(1, N_ITEMS, (300,), generator=generator)
    rows = held_out_scores(
        Scores(scores), [(Interaction({"seq": seq, "row": torch.arange(300)}), None, None, target)], 4096
    )
    assert len(rows.turning_points()) > 400
    best = rows.ndcg(torch.tensor([best_shift(rows)]))
    assert (best >= rows.ndcg(torch.linspace(-5, 5, 301)) - 2e-3).all()
