from collections.abc import Callable
from typing import Any

import pytest
import torch
from recbole.utils import get_model, init_seed

from recbole_pad.model.gate_fit import _smooth_ndcg, fit_gate, held_out_rows


@pytest.fixture
def model(prepared: Callable[..., Any]) -> tuple[Any, Any]:
    """(model in its last phase, validation loader with histories)."""
    config, _, train_data, valid_data, _ = prepared(mask_history=True)
    init_seed(3, True)
    return get_model("PAD")(config, train_data._dataset).eval(), valid_data


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
    assert moved == {"gate.level", "gate.slope"}


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
    tables = network.expert_tables()
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


def test_rows_whose_target_is_masked_are_left_out(model: tuple[Any, Any]):
    network, loader = model
    expected = 0
    for _, (rows, items), _, target in loader:
        history = [set(items[rows == row].tolist()) for row in range(len(target))]
        expected += sum(int(t) not in h for t, h in zip(target, history, strict=True))
    n_rows = len(loader._dataset)
    rows = held_out_rows(network, loader)
    assert len(rows.target) == len(rows.masked) == len(rows.states[0]) == expected < n_rows
