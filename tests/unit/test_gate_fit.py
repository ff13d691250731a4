from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import get_model, init_seed

from recbole_pad.model import gate_fit
from recbole_pad.model.gate_fit import (
    Candidates,
    HeldOutRows,
    _bounded_rows,
    _mask,
    _scores,
    _smooth_ndcg,
    fit_gate,
    held_out_rows,
)
from recbole_pad.nn.ragged import Ragged
from recbole_pad.phase_trainers import FinetuneTrainer


@pytest.fixture
def model(prepared: Callable[..., Any]) -> tuple[Any, Any]:
    """(model in its last phase, validation loader with histories)."""
    config, _, train_data, valid_data, _ = prepared(mask_history=True, train_windows="last")  # fixes the order of rows
    init_seed(3, True)
    return get_model("PAD")(config, train_data._dataset).eval(), valid_data


def items_of(lists: Ragged, row: int) -> list[int]:
    """The items of one list."""
    return lists.items[lists.offsets[row] : lists.offsets[row + 1]].tolist()


def test_smooth_ndcg_is_the_reciprocal_log_rank_where_scores_lie_far_apart():
    scores = torch.tensor([[90.0, 60.0, 30.0, 0.0]]).expand(4, -1)
    loss = _smooth_ndcg(scores, torch.arange(4))
    ranks = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert torch.allclose(loss, -1 / torch.log2(1 + ranks), atol=1e-5)


def test_fitting_changes_the_gate_and_nothing_else(model: tuple[Any, Any]):
    network, loader = model
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fit_gate(network, loader, torch.ones(network.n_items), seed=1)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"gate.items.level", "gate.items.slope", "gate.users.slope"}


class WithMaskedTargets:
    """A loader whose first rows of each batch have their target masked, and nothing else is."""

    def __init__(self, loader: Any, share: float) -> None:
        self.loader, self.share = loader, share

    def __iter__(self) -> Iterator[Any]:
        for interaction, _, users, target in self.loader:
            first = torch.arange(int(self.share * len(target)))
            yield interaction, (first, target[first]), users, target


@pytest.mark.parametrize(("share", "warned"), [(0.02, False), (0.5, True), (1.0, True)])
def test_targets_that_the_protocol_masks_are_left_out_and_counted(
    model: tuple[Any, Any], share: float, warned: bool, caplog: pytest.LogCaptureFixture
):
    network, loader = model
    sizes = [len(target) for *_, target in loader]
    n_rows, n_masked = sum(sizes), sum(int(share * size) for size in sizes)
    rows = held_out_rows(network, WithMaskedTargets(loader, share))
    assert (rows.n_masked_targets, len(rows.target)) == (n_masked, n_rows - n_masked)
    before = {name: value.clone() for name, value in network.gate.state_dict().items()}
    fitted = fit_gate(network, WithMaskedTargets(loader, share), torch.ones(network.n_items), seed=1)
    assert fitted == (share < 1)
    assert (n_masked > 0.05 * n_rows) == warned, "else the case shows nothing"
    moved = any(not torch.equal(value, before[name]) for name, value in network.gate.state_dict().items())
    assert moved == fitted
    assert (f"{100 * n_masked / n_rows:.0f} % of the validation targets stand in" in caplog.text) == warned


def test_fitting_is_the_same_for_the_same_seed(model: tuple[Any, Any]):
    network, loader = model
    start = {name: value.clone() for name, value in network.gate.state_dict().items()}
    results = []
    for _ in range(2):
        network.gate.load_state_dict(start)
        torch.manual_seed(len(results))  # the global generator has no say
        fit_gate(network, loader, torch.ones(network.n_items), seed=1)
        results.append([value.clone() for value in network.gate.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def weights_when(knowing: str, network: Any, loader: Any) -> torch.Tensor:
    """Gate weights (V, E) after a fit in which the states of one expert point at the held-out target's own vector."""
    tables = network.expert_vectors(torch.arange(network.n_items))
    expert = list(network.settings.experts).index(knowing)
    generator = torch.Generator().manual_seed(5)
    answers = {}
    for interaction, _, _, target in loader:
        answers.update(zip(interaction[network.USER_ID].tolist(), target.tolist(), strict=True))

    def states(interaction: Any) -> list[torch.Tensor]:
        users = interaction[network.USER_ID].tolist()
        made_up = [torch.randn(len(users), table.size(1), generator=generator) for table in tables]
        made_up[expert] = torch.stack([tables[expert][answers[user]] for user in users]) * 100
        return made_up

    network.expert_states = states
    fit_gate(network, loader, torch.ones(network.n_items), seed=1)
    return network.gate_weights().detach()[network.catalogue.seen]


def test_the_expert_that_knows_the_answers_gains_weight_on_every_item(model: tuple[Any, Any]):
    network, loader = model
    rec, llm = (list(network.settings.experts).index(name) for name in ("rec", "llm"))
    start = {name: value.clone() for name, value in network.gate.state_dict().items()}
    rec_knows = weights_when("rec", network, loader)
    network.gate.load_state_dict(start)
    llm_knows = weights_when("llm", network, loader)
    assert (rec_knows[:, rec] / rec_knows[:, llm] > llm_knows[:, rec] / llm_knows[:, llm]).all()


@pytest.mark.parametrize("knowing", ["rec", "llm"])
@pytest.mark.parametrize("frequent", [True, False])
def test_an_expert_that_is_right_for_users_of_frequent_newest_items_gains_slope(
    model: tuple[Any, Any], knowing: str, frequent: bool
):
    """Right only where the newest item is frequent, or rare: elsewhere it guesses. All other experts say nothing."""
    network, loader = model
    tables = network.expert_vectors(torch.arange(network.n_items))
    expert = list(network.settings.experts).index(knowing)
    generator = torch.Generator().manual_seed(5)
    answers = {}
    for interaction, _, _, target in loader:
        is_frequent = network.catalogue.log_frequency[network.newest_items(interaction)] > 0
        assert 0 < int(is_frequent.sum()) < len(target)
        for user, item, knows in zip(
            interaction["user_id"].tolist(), target.tolist(), is_frequent == frequent, strict=True
        ):
            answers[user] = item if knows else None

    def states(interaction: Any) -> list[torch.Tensor]:
        users = interaction["user_id"].tolist()
        made_up = [torch.zeros(len(users), table.size(1)) for table in tables]
        made_up[expert] = torch.randn(len(users), tables[expert].size(1), generator=generator)
        for row, user in enumerate(users):
            if answers[user] is not None:
                made_up[expert][row] = tables[expert][answers[user]] * 100
        return made_up

    network.expert_states = states
    fit_gate(network, loader, torch.ones(network.n_items), seed=1)
    slopes = network.gate.users.slope.tolist()
    own, others = slopes[expert], [slope for place, slope in enumerate(slopes) if place != expert]
    assert own > max(0, *others) if frequent else own < min(0, *others)


def test_a_gate_that_treats_users_alike_is_fitted_without_them(prepared: Callable[..., Any]):
    config, _, train_data, valid_data, _ = prepared(gate_users="none", mask_history=True)
    network = get_model("PAD")(config, train_data._dataset).eval()
    fit_gate(network, valid_data, torch.ones(network.n_items), seed=1)
    assert set(network.gate.state_dict()) == {"items.level", "items.slope"}
    assert (network.user_weights(torch.arange(1, 5)) == 1).all()


def test_rows_whose_target_is_masked_are_left_out(model: tuple[Any, Any]):
    network, loader = model
    expected = 0
    for _, (rows, items), _, target in loader:
        history = [set(items[rows == row].tolist()) for row in range(len(target))]
        expected += sum(int(t) not in h for t, h in zip(target, history, strict=True))
    n_rows = len(loader._dataset)
    rows = held_out_rows(network, loader)
    assert len(rows.target) == len(rows.masked.offsets) - 1 == len(rows.states[0]) == expected < n_rows


def test_rows_keep_their_own_states_targets_and_history(model: tuple[Any, Any]):
    """Row by row, as the loader gives them; the loader's pairs in any order."""
    network, loader = model
    expected = []
    batches = []
    for interaction, (rows, items), positive_u, target in loader:
        states = [state.detach() for state in network.expert_states(interaction)]
        for row, item in enumerate(target.tolist()):
            history = sorted(items[rows == row].tolist())
            if item not in history:
                expected.append((item, history, torch.cat([state[row] for state in states]).tolist()))
        shuffled = torch.randperm(len(rows))
        batches.append((interaction, (rows[shuffled], items[shuffled]), positive_u, target))
    kept = held_out_rows(network, batches)
    for place, (item, history, states) in enumerate(expected):
        assert (int(kept.target[place]), sorted(items_of(kept.masked, place))) == (item, history)
        assert torch.cat([state[place] for state in kept.states]).tolist() == pytest.approx(states, abs=1e-6)


@pytest.mark.parametrize("bound", ["_MAX_ROWS", "_PAIR_MEMORY", None])
def test_rows_beyond_the_memory_are_left_out_and_the_log_says_so(
    bound: str | None, prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    config, _, train_data, valid_data, _ = prepared(mask_history=False, eval_batch_size=9)
    network = get_model("PAD")(config, train_data._dataset).eval()
    caplog.set_level("WARNING")
    every = held_out_rows(network, valid_data)
    assert not every.is_cut
    assert len(every.target) == len(valid_data._dataset) > 27
    of_rows = every.pairs[0].offsets.tolist()
    limits = {"_MAX_ROWS": 10, "_PAIR_MEMORY": gate_fit._PAIR_BYTES * (of_rows[9] + 1), None: 0}
    if bound is not None:
        monkeypatch.setattr(gate_fit, bound, limits[bound])
    rows = held_out_rows(network, valid_data)
    n_rows = 18 if bound else len(every.target)  # whole batches: that of the last row, or pair, is the second
    assert rows.target.tolist() == every.target[:n_rows].tolist()
    assert rows.pairs[0].items.tolist() == every.pairs[0].items[: of_rows[n_rows]].tolist()
    assert rows.is_cut == (bound is not None)
    fit_gate(network, valid_data, torch.ones(network.n_items), seed=1)
    assert ("validation rows, from batches drawn at random; the others are left out" in caplog.text) == rows.is_cut


def test_of_too_many_rows_any_may_be_taken_and_each_is_as_the_loader_gives_it(
    prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    """The first rows of a loader are the oldest: a gate fitted on them alone would be one of the past."""
    config, _, train_data, valid_data, _ = prepared(mask_history=True, eval_batch_size=9)
    network = get_model("PAD")(config, train_data._dataset).eval()
    every = held_out_rows(network, valid_data)
    monkeypatch.setattr(gate_fit, "_MAX_ROWS", 10)
    taken = set()
    for seed in range(9):
        rows = _bounded_rows(network, valid_data, seed)
        assert 10 <= len(rows.target) <= 18
        distance = torch.cdist(torch.cat(rows.states, dim=1), torch.cat(every.states, dim=1))
        assert distance.min(dim=1).values.max() < 1e-2
        same = distance.argmin(dim=1)
        assert rows.target.tolist() == every.target[same].tolist()
        assert rows.newest.tolist() == every.newest[same].tolist()
        taken |= set(same.tolist())
    assert max(taken) >= len(every.target) - 9


def test_without_histories_nothing_is_masked(prepared: Callable[..., Any]):
    config, _, train_data, valid_data, _ = prepared(mask_history=False)
    network = get_model("PAD")(config, train_data._dataset).eval()
    rows = held_out_rows(network, valid_data)
    assert len(rows.target) == len(valid_data._dataset)
    assert not len(rows.masked.items)
    assert not _mask(rows, torch.arange(3), torch.arange(1, 5)).any()


@settings(max_examples=60)
@given(
    masked=st.lists(st.lists(st.integers(1, 9), max_size=5), min_size=1, max_size=5),
    items=st.sets(st.integers(1, 9), min_size=1),
    data=st.data(),
)
def test_the_mask_says_which_candidates_are_in_the_rows_history(masked, items, data):
    batch = data.draw(st.lists(st.integers(0, len(masked) - 1), max_size=6))
    pairs = [(row, item) for row, own in enumerate(masked) for item in own]
    row, item = (torch.tensor([pair[k] for pair in pairs], dtype=torch.long) for k in (0, 1))
    of_rows = Ragged.from_pairs(row, item, len(masked))
    nothing = torch.ones(len(masked), dtype=torch.long)
    rows = HeldOutRows([], [], nothing, nothing, of_rows)
    candidates = sorted(items)
    mask = _mask(rows, torch.tensor(batch, dtype=torch.long), torch.tensor(candidates))
    assert mask.tolist() == [[item in masked[row] for item in candidates] for row in batch]


def _ranked(history: Any, _: Any, target: torch.Tensor) -> list[int]:
    """Rows of a batch whose target is not masked."""
    masked = set(zip(history[0].tolist(), history[1].tolist(), strict=True))
    return [row for row, item in enumerate(target.tolist()) if (row, item) not in masked]


@pytest.mark.parametrize("limit", [20_000, 9])
def test_scores_of_a_batch_are_the_models_own(model: tuple[Any, Any], limit: int, monkeypatch: pytest.MonkeyPatch):
    """Of all items, or of a sample of nine and the batch's targets; masked ones far below."""
    network, loader = model
    monkeypatch.setattr(gate_fit, "_MAX_ITEMS", limit)
    rows = held_out_rows(network, loader)
    candidates = Candidates.draw(network, rows.target, torch.Generator().manual_seed(1))
    batch = torch.tensor([4, 0, 7])
    with torch.no_grad():
        for parameter in network.gate.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        network.eval()  # drops the vectors that were folded with the old weights
        scores, place = _scores(network, candidates, rows, batch)
        every = torch.cat([network.full_sort_predict(own)[_ranked(*others)] for own, *others in loader])[batch]
    wanted = set(candidates.sample.tolist()) | set(rows.target[batch].tolist())
    assert len(candidates.sample) == min(limit, network.n_items - 1)
    assert scores.shape == (3, len(wanted))
    for row, index in enumerate(batch.tolist()):
        masked = items_of(rows.masked, index)
        for column, item in enumerate(sorted(wanted)):
            expected = -1e9 if item in masked else every[row, item].item()
            assert scores[row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert sorted(wanted)[place[row]] == rows.target[index]


@pytest.mark.parametrize("limit", [20_000, 9])
def test_withheld_items_are_no_candidates_but_for_targets(
    model: tuple[Any, Any], limit: int, monkeypatch: pytest.MonkeyPatch
):
    network, loader = model
    monkeypatch.setattr(gate_fit, "_MAX_ITEMS", limit)
    target = held_out_rows(network, loader).target
    withheld = torch.zeros(network.n_items, dtype=torch.bool)
    withheld[[2, 5, 7, int(target[0])]] = True
    found = Candidates.draw(network, target, torch.Generator().manual_seed(1), withheld)
    assert not withheld[found.sample].any()
    assert len(found.sample) == min(limit, network.n_items - 1 - int(withheld.sum()))
    items, _ = found.of(target[:1])
    assert set(items.tolist()) == set(found.sample.tolist()) | {int(target[0])}


@pytest.mark.parametrize("withheld", [None, 0.2])
def test_the_gate_is_fitted_without_the_items_that_a_cold_split_withholds(
    withheld: float | None, prepared: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    given: list[Any] = []
    monkeypatch.setattr("recbole_pad.phase_trainers.fit_gate", lambda *arguments: given.append(arguments[-1]))
    changes = {} if withheld is None else {"cold_split": withheld}
    config, whole, train_data, valid_data, _ = prepared(mask_history=True, epochs=0, **changes)
    network = get_model("PAD")(config, train_data._dataset)
    FinetuneTrainer(config, network).fit(train_data, valid_data, saved=False)
    if withheld is None:
        assert given == [None]
    else:
        assert given[0].tolist() == whole.withheld_items.tolist()


def test_of_a_large_catalogue_the_vectors_of_the_sample_and_the_targets_are_all_that_is_computed(
    model: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
):
    network, loader = model
    monkeypatch.setattr(gate_fit, "_MAX_ITEMS", 5)
    monkeypatch.setattr(gate_fit, "_STAGES", ((gate_fit._cross_entropy, 3),))
    asked: list[list[int]] = []
    original = network.expert_vectors
    monkeypatch.setattr(network, "expert_vectors", lambda ids: asked.append(ids.tolist()) or original(ids))
    targets = set(held_out_rows(network, loader).target.tolist())
    fit_gate(network, loader, torch.ones(network.n_items), seed=1)
    (ids,) = asked
    assert ids[0] == 0
    assert ids == sorted(set(ids))
    assert targets < set(ids)
    assert len(set(ids) - targets - {0}) <= 5
