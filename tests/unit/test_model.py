"""PAD as a model: training positions, the folded score, objectives, alignment and the start of a phase."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recbole.data.interaction import Interaction
from recbole.utils import get_model, init_seed
from torch import Tensor

from recbole_pad.backbones import BACKBONES
from recbole_pad.data import followers
from recbole_pad.model.pad import PAD
from tests.conftest import with_noise
from tests.reference import losses_loops, mmd_loops, plda_loops, rows_loops, scores_loops, transitions_loops

EXPERT_SETS = [
    ["rec", "align", "llm", "match", "markov"],
    ["rec", "align", "llm", "match"],
    ["rec", "align", "llm"],
    ["rec"],
    ["align"],
    ["llm"],
    ["rec", "llm"],
    ["align", "llm"],
    ["match", "llm", "rec"],
    ["markov", "rec"],
]
WITH_VECTORS = ["rec", "align", "llm", "match"]  # all but markov, which the joint loss cannot contain
N_ITEMS = 25  # of `tiny`, with padding
ALPHAS = [0.125, 0.25, 0.5, 1, 2]
Build = Callable[..., tuple[PAD, Any, Any]]


@pytest.fixture
def build(build: Callable[..., Any]) -> Build:
    """``build(**changes)``: a model with weights away from their start, and the train and test loader."""

    def make(**changes: Any) -> tuple[PAD, Any, Any]:
        run = build(**changes)
        return with_noise(run.model), run.train, run.test

    return make


def first_batch(loader: Any) -> Interaction:
    """A training batch, or an evaluation batch without its targets."""
    batch = next(iter(loader))
    return batch[0] if isinstance(batch, tuple) else batch


def members(model: PAD, phase: str) -> list[str]:
    return {"pretrain": ["rec"], "align": ["align"]}.get(phase, list(model.settings.experts))


def weights_of(model: PAD, phase: str, item: int) -> list[float]:
    """The gate's weights of an item, from its logits; 1 for a phase of one expert."""
    if len(members(model, phase)) == 1:
        return [1.0]
    if model.settings.gate_form == "bins":
        logits = model.gate.items.logits[int(model.catalogue.bins[item])].tolist()
    else:
        frequency = scores_loops.log_frequencies(model.catalogue.counts.tolist())[item]
        ends = zip(model.gate.items.level.tolist(), model.gate.items.slope.tolist(), strict=True)
        logits = [level + slope * frequency for level, slope in ends]
    return scores_loops.gate_weights(logits, model.settings.gate_norm)


def user_weights_of(model: PAD, phase: str, newest: int) -> list[float]:
    """The gate's weights of a user by the newest item; 1 for a phase of one expert, and for `gate_users: none`."""
    names = members(model, phase)
    if len(names) == 1 or model.settings.gate_users == "none":
        return [1.0] * len(names)
    frequency = scores_loops.log_frequencies(model.catalogue.counts.tolist())[newest]
    return scores_loops.user_weights(model.gate.users.slope.tolist(), frequency)


def train_sequences(train: Any) -> list[list[int]]:
    histories = train._dataset.train_histories
    return [part.tolist() for part in np.split(histories.items, histories.offsets[1:-1])]


def expert_scores(model: PAD, phase: str, interaction: Interaction, train: Any) -> list[list[list[float]]]:
    """[row][item][expert] -> the expert's own score, without the gate; users and items one at a time."""
    sequence = [interaction[key] for key in ("item_id_list", "item_length", "user_id")]
    n_items = len(model.catalogue.bins)
    pairs = transitions_loops.cosines(train_sequences(train))
    columns = []
    for name in members(model, phase):
        rows = []
        for row in range(len(interaction)):
            alone = [values[row : row + 1] for values in sequence]
            history = alone[0][0, : int(alone[1])].tolist()
            if name == "markov":
                decay = model.settings.markov_decay
                rows.append([transitions_loops.score(history, i, pairs, decay) for i in range(n_items)])
                continue
            expert = model.experts[name]
            state = expert.backbone.last_state(expert.items(None), *alone)[0].tolist()
            vectors = [expert.items(torch.tensor([i]))[0].tolist() for i in range(n_items)]
            rows.append([scores_loops.score([1.0], [state], [vector]) for vector in vectors])
        columns.append(rows)
    return [[list(of_item) for of_item in zip(*of_row, strict=True)] for of_row in zip(*columns, strict=True)]


def literal_scores(model: PAD, phase: str, interaction: Interaction, train: Any) -> Tensor:
    """sum_k g_k(u) w_k(i) s_k(u, i) of all items but padding."""
    rows = []
    newest = interaction["item_id_list"].gather(1, interaction["item_length"][:, None] - 1)[:, 0].tolist()
    for item, of_row in zip(newest, expert_scores(model, phase, interaction, train), strict=True):
        of_user = user_weights_of(model, phase, item)
        row = []
        for i in range(1, len(of_row)):
            gated = zip(of_user, weights_of(model, phase, i), of_row[i], strict=True)
            row.append(sum(g * w * score for g, w, score in gated))
        rows.append(row)
    return torch.tensor(rows)


# --- positions ---------------------------------------------------------------------------------------------


class Places:
    """Stands in for an expert: the state of position t of a row is (row, t), the last state (row, -1)."""

    @property
    def backbone(self) -> Places:
        return self

    def __call__(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        rows, columns = map(torch.arange, item_seq.shape)
        return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=2)

    def position_states(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        return self(table, item_seq, item_seq_len, user)[item_seq > 0]

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        return torch.stack([torch.arange(len(item_seq)), torch.full((len(item_seq),), -1)], dim=1)


@pytest.fixture
def all_positions_model(build: Build) -> PAD:
    return build(phases=["pretrain"])[0]


# the model is not changed by a call: one serves all examples
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_position_predicts_the_next_item_and_the_last_the_target(data, all_positions_model: PAD):
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=6))
    items = [data.draw(st.lists(st.integers(1, N_ITEMS - 1), min_size=n, max_size=n)) for n in lengths]
    target = data.draw(st.lists(st.integers(1, N_ITEMS - 1), min_size=len(items), max_size=len(items)))
    item_seq = [row + [0] * (8 - len(row)) for row in items]
    users = list(range(3, 3 + len(items)))
    batch = {"user_id": users, "item_id": target, "item_id_list": item_seq, "item_length": lengths}
    positions = all_positions_model._positions(
        Interaction({key: torch.tensor(values) for key, values in batch.items()})
    )

    expected = rows_loops.positions(item_seq, target)
    assert positions.target.tolist() == [item for _, _, item in expected]
    assert positions.target_user.tolist() == [users[row] for row, _, _ in expected]
    assert positions.item_seq.size(1) == max(lengths)
    states = positions.states(Places(), torch.zeros(1), positions.item_seq)
    assert states.tolist() == [[row, t] for row, t, _ in expected]
    assert (positions.target > 0).all()
    assert (positions.item_seq[positions.is_position] > 0).all()


def test_prefix_rows_have_one_position_each(build: Build):
    model, train, _ = build(phases=["pretrain"], train_rows="prefixes")
    batch = first_batch(train)
    positions = model._positions(batch)
    assert torch.equal(positions.target, batch["item_id"])
    assert torch.equal(positions.target_user, batch["user_id"])
    states = positions.states(Places(), torch.zeros(1), positions.item_seq)
    assert states.tolist() == [[row, -1] for row in range(len(batch))]


# --- scores ------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("experts", "gate_norm", "gate_form", "gate_users"),
    [(experts, "softplus", "log_frequency", users) for experts in EXPERT_SETS for users in ("newest", "none")]
    + [
        (experts, norm, form, "newest")
        for experts in EXPERT_SETS[:3]
        for norm in ("sigmoid", "softmax", "softplus")
        for form in ("bins", "log_frequency")
        if (norm, form) != ("softplus", "log_frequency")
    ],
    ids=str,
)
def test_the_folded_score_is_the_sum_over_the_experts(build: Build, experts, gate_norm, gate_form, gate_users):
    model, train, test = build(
        experts=experts,
        gate_norm=gate_norm,
        gate_form=gate_form,
        gate_users=gate_users,
        n_bins=4,
        eval_batch_size=6,
    )
    interaction = first_batch(test)
    assert model.phase == "finetune"
    assert len(set(model.catalogue.bins.tolist())) == 5
    got = model.full_sort_predict(interaction)
    torch.testing.assert_close(got[:, 1:], literal_scores(model, "finetune", interaction, train), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("phase", ["pretrain", "align"])
def test_in_the_first_two_phases_one_expert_scores_without_the_gate(build: Build, phase: str):
    model, train, test = build(eval_batch_size=8)
    interaction = first_batch(test)
    model.phase = phase
    got = model.full_sort_predict(interaction)
    torch.testing.assert_close(got[:, 1:], literal_scores(model, phase, interaction, train), rtol=1e-4, atol=1e-4)
    finetune = literal_scores(model, "finetune", interaction, train)
    assert not torch.allclose(got[:, 1:], finetune, atol=0.1)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"backbone": "GRU4Rec"}, {"backbone": "NARM"}, {"backbone": "Caser"}])
@pytest.mark.parametrize("phase", ["pretrain", "align", "finetune"])
def test_predict_is_the_candidates_column_of_the_full_score(build: Build, phase: str, changes: dict[str, Any]):
    model, _, test = build(**changes)
    model.phase = phase
    interaction = first_batch(test)
    full = model.full_sort_predict(interaction)
    assert full.shape == (len(interaction), N_ITEMS)
    for shift in range(3):
        candidates = (interaction["item_id"] + 7 * shift) % (N_ITEMS - 1) + 1
        asked = Interaction({**interaction.interaction, "item_id": candidates})
        expected = full[torch.arange(len(full)), candidates]
        torch.testing.assert_close(model.predict(asked), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("decay", [0.0, 0.6, 1.0])
def test_the_match_expert_sums_decayed_cosines_to_the_history(build: Build, decay: float):
    """Four times unit text vectors on both sides: 16 times the cosine, weighted by decay^j."""
    model, _, test = build(experts=["match"], phases=["finetune"], match_decay=decay, eval_batch_size=6)
    interaction = first_batch(test)
    text = model.catalogue.text_vectors.tolist()
    got = model.full_sort_predict(interaction)
    for row, items in enumerate(interaction["item_id_list"].tolist()):
        history = [item for item in items if item]
        for candidate in range(1, N_ITEMS):
            expected = sum(
                16 * decay**j * mmd_loops.cosine(text[item], text[candidate])
                for j, item in enumerate(reversed(history))
            )
            assert got[row, candidate].item() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_the_match_expert_sees_texts_in_the_space_of_pairs(build: Build):
    """`match_metric: plda`, by loops over the followers in the training histories; the width is that of the space."""
    model, train, test = build(experts=["match"], phases=["finetune"], match_metric="plda", match_decay=0.6)
    text = model.catalogue.text_vectors.double().numpy()
    lengths = np.linalg.norm(text, axis=1, keepdims=True)
    unit = text / np.where(lengths > 0, lengths, 1)
    pairs = []
    histories = train._dataset.train_histories
    for start, end in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        items = histories.items[start:end].tolist()
        pairs += [
            (items[place], items[place + step], 0.5 ** (step - 1))
            for place in range(len(items))
            for step in (1, 2, 3)
            if place + step < len(items)
        ]
    similar = plda_loops.similarities(unit, pairs)
    assert similar is not None
    interaction = first_batch(test)
    got = model.full_sort_predict(interaction)
    for row, items in enumerate(interaction["item_id_list"].tolist()):
        history = [item for item in items if item]
        expected = sum(16 * 0.6**j * similar[item] for j, item in enumerate(reversed(history)))
        assert got[row, 1:].tolist() == pytest.approx(expected[1:].tolist(), abs=1e-2)
    assert model.item_vectors().size(1) == np.linalg.matrix_rank(similar, tol=1e-4)


@torch.no_grad()
def test_where_pairs_say_nothing_the_match_expert_compares_by_cosine(
    build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    options: dict[str, Any] = {"experts": ["match"], "phases": ["finetune"]}
    cosine = build(match_metric="cosine", **options)[0].item_vectors()
    monkeypatch.setattr(followers, "fit_plda", lambda rows, pairs: None)
    with caplog.at_level("WARNING"):
        assert torch.equal(build(match_metric="plda", **options)[0].item_vectors(), cosine)
    assert "cosine is used" in caplog.text


@torch.no_grad()
@pytest.mark.parametrize("train_rows", ["sequences", "prefixes"])
def test_match_states_of_all_positions_are_those_of_the_prefixes(build: Build, train_rows: str):
    model, train, _ = build(experts=["rec", "match"], match_decay=0.6, train_rows=train_rows)
    batch = first_batch(train)
    states, _, _ = literal_positions(model, "finetune", batch)
    vectors = model.experts["match"].items(None).tolist()
    places = rows_loops.positions(batch["item_id_list"].tolist(), batch["item_id"].tolist())
    if train_rows == "prefixes":
        places = [(row, int(batch["item_length"][row]) - 1, 0) for row in range(len(batch))]
    for state, (row, t, _) in zip(states, places, strict=True):
        prefix = [vectors[item] for item in batch["item_id_list"][row, : t + 1].tolist()]
        assert state[1] == pytest.approx(scores_loops.decayed_history(prefix, 0.6), abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("experts", EXPERT_SETS[:2], ids=str)
def test_user_and_item_vectors_multiply_to_the_score(build: Build, experts: list[str]):
    """What a serving index holds; items asked for one by one are rows of the whole table. Markov's pairs come to it."""
    model, _, test = build(experts=experts)
    interaction = first_batch(test)
    users, items = model.user_vectors(interaction), model.item_vectors()
    width = 3 * 16 + model.catalogue.text_vectors.size(1)
    assert users.shape == (len(interaction), width)
    assert items.shape == (N_ITEMS, width)
    scores = users @ items.T
    pairs = model.pair_scores(interaction)
    assert (pairs is None) == ("markov" not in experts)
    if pairs is not None:
        assert len(pairs.rows)
        for row, item, value in zip(pairs.rows.tolist(), pairs.items.tolist(), pairs.values.tolist(), strict=True):
            scores[row, item] += value
    torch.testing.assert_close(scores, model.full_sort_predict(interaction), rtol=1e-4, atol=1e-4)
    ids = torch.tensor([3, 24, 1, 3])
    torch.testing.assert_close(model.item_vectors(ids), items[ids])
    assert not items[0].any()


@torch.no_grad()
@pytest.mark.parametrize("backbone", BACKBONES)
def test_scores_do_not_depend_on_padding_batch_mates_or_a_copy(build: Build, backbone: str):
    model, _, test = build(backbone=backbone)
    interaction = first_batch(test)
    interaction = interaction[torch.argsort(interaction["item_length"])]  # the last row alone is the longest
    expected = model.full_sort_predict(interaction)
    tolerance = {"rtol": 1e-3, "atol": 1e-4 * expected.abs().max().item()}
    for rows in ([0], [5, 2], list(range(6))):
        torch.testing.assert_close(model.full_sort_predict(interaction[rows]), expected[rows], **tolerance)
    if not BACKBONES[backbone].fixed_length:
        wider = torch.nn.functional.pad(interaction["item_id_list"], (0, 5))
        padded = Interaction({**interaction.interaction, "item_id_list": wider})
        torch.testing.assert_close(model.full_sort_predict(padded), expected, **tolerance)
    torch.testing.assert_close(copy.deepcopy(model).full_sort_predict(interaction), expected, **tolerance)


@torch.no_grad()
def test_scores_are_the_callers_own(build: Build):
    """RecBole writes -inf into them: neither the next scores nor the item vectors may change."""
    model, _, test = build()
    interaction = first_batch(test)
    for phase in ("pretrain", "align", "finetune"):
        model.phase = phase
        model.eval()
        first = model.full_sort_predict(interaction)
        before = first.clone()
        first.fill_(-torch.inf)
        assert torch.equal(model.full_sort_predict(interaction), before)


@torch.no_grad()
def test_a_changed_weight_counts_after_the_next_switch_to_evaluation(build: Build):
    """Item vectors are computed once per evaluation; RecBole calls `eval` before each one."""
    model, train, test = build(phases=["pretrain"])
    interaction = first_batch(test)
    before = model.full_sort_predict(interaction)
    model.experts["rec"].items.weight.mul_(2.0)
    model.eval()
    after = model.full_sort_predict(interaction)
    torch.testing.assert_close(
        after[:, 1:], literal_scores(model, "pretrain", interaction, train), rtol=1e-4, atol=1e-4
    )
    assert not torch.allclose(after, before)


# --- the loss ----------------------------------------------------------------------------------------------


def recorded_negatives(model: PAD, phase: str) -> list[Tensor]:
    """Negatives as they are drawn from now on."""
    drawn: list[Tensor] = []

    def recording(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any) -> Tensor:
            drawn.append(draw(*args).clone())
            return drawn[-1]

        return wrapper

    sampler = model.samplers[phase]
    name = "draw_unseen_by" if model.phase_settings[phase].loss == "bce" else "draw"
    setattr(sampler, name, recording(getattr(sampler, name)))
    return drawn


def literal_positions(
    model: PAD, phase: str, batch: Interaction
) -> tuple[list[list[list[float]]], list[int], list[int]]:
    """Of each training position the states of all experts, from its row alone, the item that follows, and its own."""
    item_seq = batch["item_id_list"].tolist()
    states: list[list[list[float]]] = []
    targets: list[int] = []
    newest: list[int] = []
    experts = [model.experts[name] for name in members(model, phase) if name != "markov"]
    for row, t, item in rows_loops.positions(item_seq, batch["item_id"].tolist()):
        n = int(batch["item_length"][row])
        if not model.trains_all_positions and t < n - 1:
            continue
        alone = batch["item_id_list"][row : row + 1], torch.tensor([n]), batch["user_id"][row : row + 1]
        if model.trains_all_positions:
            states.append([expert.backbone(expert.items(None), *alone)[0, t].tolist() for expert in experts])
        else:
            states.append([expert.backbone.last_state(expert.items(None), *alone)[0].tolist() for expert in experts])
        targets.append(item)
        newest.append(item_seq[row][t])
    return states, targets, newest


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"train_rows": "prefixes"}, {"backbone": "NARM"}], ids=str)
@pytest.mark.parametrize("phase", ["pretrain", "align", "finetune"])
@pytest.mark.parametrize("negatives", ["seen", "all"])
@pytest.mark.parametrize("loss", ["ce", "bce", "sampled_softmax"])
def test_the_loss_is_the_formula_on_literal_scores(build: Build, loss, negatives, phase, changes):
    by_popularity = phase == "align"
    model, train, _ = build(
        loss=loss,
        negatives=negatives,
        n_negatives=5,
        negative_sampling="popularity" if by_popularity else "uniform",
        align_loss="none",
        expert_loss="joint",
        experts=WITH_VECTORS,
        train_batch_size=4,
        n_bins=4,
        **changes,
    )
    model.phase = phase
    batch = first_batch(train)
    drawn = recorded_negatives(model, phase) if loss != "ce" else []
    got = model.calculate_loss(batch)

    states, targets, newest = literal_positions(model, phase, batch)
    n_items = len(model.catalogue.bins)
    experts = [model.experts[name] for name in members(model, phase)]
    vectors = [[expert.items(torch.tensor([i]))[0].tolist() for expert in experts] for i in range(n_items)]
    weights = [weights_of(model, phase, max(i, 1)) for i in range(n_items)]
    of_users = [user_weights_of(model, phase, item) for item in newest]
    both = [[[g * w for g, w in zip(of_user, row, strict=True)] for row in weights] for of_user in of_users]
    scores = [
        [scores_loops.score(gates[i], state, vectors[i]) for i in range(n_items)]
        for gates, state in zip(both, states, strict=True)
    ]
    pos = [row[target] for row, target in zip(scores, targets, strict=True)]
    counts = model.catalogue.counts.tolist()
    if loss == "ce":
        allowed = [i > 0 and (negatives == "all" or counts[i] > 0) for i in range(n_items)]
        assert allowed.count(False) == (1 if negatives == "all" else 1 + counts[1:].count(0))
        expected = losses_loops.softmax_ce(scores, targets, allowed)
    elif loss == "bce":
        (neg,) = drawn
        assert neg.shape == (len(targets), 5)
        expected = losses_loops.bce(
            pos, [[row[i] for i in items] for row, items in zip(scores, neg.tolist(), strict=True)]
        )
    else:
        (neg,) = drawn
        assert neg.shape == (5,)
        in_pool = [i > 0 and (counts[i] > 0 or (negatives == "all" and not by_popularity)) for i in range(n_items)]
        mass = [counts[i] if by_popularity else 1 for i in range(n_items)]
        total = sum(m for m, pooled in zip(mass, in_pool, strict=True) if pooled)
        times = [5 * m / total for m in mass]
        expected = losses_loops.sampled_softmax(
            pos,
            [[row[i] for i in neg.tolist()] for row in scores],
            [[i == target for i in neg.tolist()] for target in targets],
            [[times[i] for i in neg.tolist()]] * len(targets),
        )
    assert got.item() == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_with_separate_losses_each_trained_expert_has_its_own(build: Build):
    """The sum over rec, align and llm of the cross entropy of their own scores, without gate, match and markov."""
    model, train, _ = build(expert_loss="separate", train_batch_size=4)
    batch = first_batch(train)
    got = model.calculate_loss(batch).item()
    states, targets, _ = literal_positions(model, "finetune", batch)
    counts = model.catalogue.counts.tolist()
    alone = {}
    for k, name in enumerate(["rec", "align", "llm"]):
        vectors = model.experts[name].items(None).tolist()
        scores = [[scores_loops.score([1.0], [own[k]], [vector]) for vector in vectors] for own in states]
        alone[name] = losses_loops.softmax_ce(scores, targets, [count > 0 for count in counts])
    assert got == pytest.approx(sum(alone.values()), rel=1e-4)
    model.gate.items.level.add_(1.0)
    assert model.calculate_loss(batch).item() == got
    model.start_experts({"rec", "align"})
    assert model.calculate_loss(batch).item() == pytest.approx(alone["llm"], rel=1e-4)


# --- alignment ---------------------------------------------------------------------------------------------


def vectors_to_align(model: PAD, ids: list[int]) -> tuple[list[list[float]], list[list[float]]]:
    items = model.experts["align"].items
    text = items.text.adapter(model.catalogue.text_vectors[torch.tensor(ids)])
    return text.tolist(), items.ids.weight[torch.tensor(ids)].tolist()


@torch.no_grad()
@pytest.mark.parametrize("loss", ["ce", "bce"])
@pytest.mark.parametrize("rows", ["unique", "all"])
@pytest.mark.parametrize("kernel", ["gaussian", "cosine"])
def test_the_alignment_loss_is_the_mmd_of_the_rows(build: Build, kernel: str, rows: str, loss: str):
    model, train, _ = build(
        loss=loss,
        align_loss="mmd",
        mmd_rows=rows,
        mmd_kernel=kernel,
        mmd_weight=0.7,
        train_batch_size=3,
        MAX_ITEM_LIST_LENGTH=7,
        bucket_by_length=False,
    )
    model.phase = "align"
    if kernel == "cosine" and rows == "all":
        model.experts["align"].items.text.adapter.layers[0].bias.data.fill_(0.1)  # padding has a direction
        model.experts["align"].items.ids.weight.data[0] = 0.1
    batch = first_batch(train)
    drawn = recorded_negatives(model, "align") if loss == "bce" else []
    assert len(set(batch["item_length"].tolist())) > 1  # so there is padding
    recommendation, alignment = model.calculate_loss(batch)
    item_seq, target = batch["item_id_list"].tolist(), batch["item_id"].tolist()
    negatives = drawn[0].flatten().tolist() if drawn else []
    if rows == "all":
        ids = scores_loops.published_mmd_rows(item_seq, target, negatives)
        assert len(ids) == 21 * (3 if loss == "bce" else 2)
    else:
        ids = sorted({item for row in item_seq for item in row} | {*target, *negatives})[1:]
        assert 2 <= len(ids) < N_ITEMS
    expected = 0.7 * mmd_loops.mk_mmd(kernel, *vectors_to_align(model, ids), ALPHAS)
    assert alignment.item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert recommendation.item() > 0


@torch.no_grad()
def test_infonce_pairs_each_item_with_itself(build: Build):
    model, train, _ = build(align_loss="infonce", infonce_temperature=0.5, mmd_weight=0.3, train_batch_size=3)
    model.phase = "align"
    batch = first_batch(train)
    ids = {item for row in batch["item_id_list"].tolist() for item in row} | {*batch["item_id"].tolist()}
    expected = 0.3 * mmd_loops.info_nce(*vectors_to_align(model, sorted(ids - {0})), 0.5)
    assert model.calculate_loss(batch)[1].item() == pytest.approx(expected, rel=1e-4)


def test_the_alignment_gradient_reaches_text_and_id_side_and_no_other_expert(build: Build):
    model, train, _ = build()
    model.train()
    model.phase = "align"
    _, alignment = model.calculate_loss(first_batch(train))
    alignment.backward()
    reached = {
        name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    adapter = {f"experts.align.items.text.adapter.layers.0.{kind}" for kind in ("weight", "bias")}
    assert reached == {"experts.align.items.ids.weight", *adapter}


@pytest.mark.parametrize("changes", [{"mmd_weight": 0.0}, {"align_loss": "none"}, {"align.mmd_weight": 0.0}], ids=str)
def test_without_alignment_the_loss_is_the_recommendation_loss(build: Build, changes: dict[str, Any]):
    model, train, _ = build(**changes)
    model.phase = "align"
    batch = first_batch(train)
    alone = model.calculate_loss(batch)
    assert isinstance(alone, Tensor)
    other, _, _ = build()
    other.phase = "align"
    assert torch.equal(alone, other.calculate_loss(batch)[0])


@pytest.mark.parametrize("phase", ["pretrain", "finetune"])
def test_the_other_phases_have_one_loss_that_reaches_their_experts(build: Build, phase: str):
    model, train, _ = build(expert_loss="joint", experts=WITH_VECTORS)
    model.train()
    model.phase = phase
    loss = model.calculate_loss(first_batch(train))
    loss.backward()
    names = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()]
    reached = {name if name.startswith("gate") else name.split(".")[1] for name in names}
    gate = {"gate.items.level", "gate.items.slope", "gate.users.slope"}
    assert reached == ({"rec"} if phase == "pretrain" else {"rec", "align", "llm", *gate})


@pytest.mark.parametrize("phase", ["pretrain", "align", "finetune"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_step_lowers_the_loss_of_its_batch(build: Build, backbone: str, phase: str):
    """The gradient is that of the loss: a small enough step along it goes down."""
    step = 3e-5 if backbone == "SINE" else 1e-3  # SINE picks its intentions by top-k: its loss has jumps
    model, train, _ = build(backbone=backbone, align_loss="none")
    model.phase = phase
    batch = first_batch(train)
    before = model.calculate_loss(batch)
    before.backward()
    with torch.no_grad():
        total = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= step * before / total * parameter.grad
    change = (before - model.calculate_loss(batch)).item() / before.item()
    assert change == pytest.approx(step, rel=0.1)


# --- phases ------------------------------------------------------------------------------------------------


def test_the_aligned_expert_starts_as_a_copy_of_the_trained_id_expert(build: Build):
    model, _, _ = build(align_start="pretrain")
    model.phase = "align"
    rec, align = model.experts["rec"], model.experts["align"]
    adapter = copy.deepcopy(align.items.text.state_dict())
    model.start_experts({"rec"})
    assert torch.equal(align.items.ids.weight, rec.items.weight)
    for name, value in rec.backbone.state_dict().items():
        assert torch.equal(align.backbone.state_dict()[name], value), name
    for name, value in adapter.items():
        assert torch.equal(align.items.text.state_dict()[name], value)
    with torch.no_grad():
        rec.items.weight.zero_()
    assert align.items.ids.weight.any()  # a copy, not the same tensor


def test_with_a_random_start_the_aligned_expert_keeps_its_own_start_values(build: Build):
    model, _, _ = build(align_start="random")
    model.phase = "align"
    before = copy.deepcopy(model.state_dict())
    model.start_experts({"rec"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(model.experts["align"].items.ids.weight, model.experts["rec"].items.weight)
    assert model.learning_experts() == ("align",)


@pytest.mark.parametrize("trained", [set(), {"rec", "align"}, {"align"}])
def test_an_expert_that_is_trained_or_has_no_trained_source_stays_as_it_is(build: Build, trained: set[str]):
    model, _, _ = build()
    model.phase = "align"
    before = copy.deepcopy(model.state_dict())
    model.start_experts(trained)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_start_values_of_an_expert_do_not_depend_on_the_other_experts(prepared):
    def start(**changes: Any) -> dict[str, Tensor]:
        config, _, train, *_ = prepared(**changes)
        torch.manual_seed(changes.get("n_bins", 1))
        return PAD(config, train._dataset).state_dict()

    every = start()
    for changes in ({"phases": ["pretrain"]}, {"experts": ["llm"], "phases": ["finetune"]}, {"n_bins": 3}):
        some = {name: value for name, value in start(**changes).items() if name.startswith("experts")}
        assert some
        assert all(torch.equal(value, every[name]) for name, value in some.items())
    assert not torch.equal(start(seed=8)["experts.rec.items.weight"], every["experts.rec.items.weight"])
    assert not torch.equal(every["experts.llm.items.adapter.layers.0.weight"], every["experts.align.items.text.adapter.layers.0.weight"])  # fmt: skip # noqa: E501


def test_a_phase_keeps_the_state_of_its_own_experts_only(build: Build):
    model, _, _ = build()
    expected = {
        "pretrain": {"experts.rec"},
        "align": {"experts.align"},
        "finetune": {f"experts.{name}" for name in EXPERT_SETS[0]} | {"gate", "repeats"},
    }
    for phase, names in expected.items():
        model.phase = phase
        assert set(model.phase_modules()) == names
        assert all(module is model.get_submodule(name) for name, module in model.phase_modules().items())


@pytest.mark.parametrize(
    ("trained", "retrain", "expected"),
    [
        ({"rec", "align"}, False, ("llm",)),
        ({"rec", "align"}, True, ("rec", "align", "llm")),
        ({"rec"}, False, ("align", "llm")),
        (set(), False, ("rec", "align", "llm")),
    ],
)
def test_the_last_phase_trains_what_no_earlier_phase_has_trained(build: Build, trained, retrain, expected):
    model, _, _ = build(retrain_experts=retrain)
    model.phase = "finetune"
    model.start_experts(trained)
    assert model.learning_experts() == expected
    model.phase = "align"
    assert model.learning_experts() == ("align",)


def test_experts_that_a_phase_does_not_train_have_no_dropout_in_it(build: Build):
    """The gate and the other experts would learn beside noise that is not there when items are scored."""
    model, _, _ = build(expert_loss="joint", gate_fit="train", experts=["rec", "align", "llm"])
    model.phase = "finetune"
    model.start_experts({"rec", "align"})
    model.train()
    modes = {name: {module.training for module in model.experts[name].modules()} for name in model.experts}
    assert modes == {"rec": {False}, "align": {False}, "llm": {True}}
    model.phase = "align"
    model.train()
    assert model.experts["align"].training
    model.eval()
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("experts", "expert_loss", "learns"),
    [
        (["match"], "joint", False),
        (["match"], "separate", False),
        (["rec"], "joint", False),
        (["rec", "match"], "separate", False),
        (["rec", "match"], "joint", True),
        (["llm"], "separate", True),
    ],
)
def test_a_phase_learns_if_it_has_an_untrained_expert_or_a_gate_in_its_loss(build: Build, experts, expert_loss, learns):
    model, _, _ = build(experts=experts, phases=["pretrain", "finetune"], expert_loss=expert_loss)
    model.start_experts({"rec"})
    assert model.phase == "finetune"
    assert model.learns() is learns


def test_text_is_not_read_when_no_phase_needs_it(prepared, data_path):
    config, _, train, *_ = prepared(phases=["pretrain"], text_encoder="file:nowhere.npy")
    model = PAD(config, train._dataset)
    assert set(model.experts) == {"rec"}
    assert model.catalogue.text_vectors is None
    assert model.text_fingerprint is None


def test_text_vectors_are_not_part_of_a_checkpoint(build: Build):
    model, _, _ = build()
    widths = {tuple(value.shape) for value in model.state_dict().values()}
    assert tuple(model.catalogue.text_vectors.shape) not in widths
    assert not [name for name in model.state_dict() if name.startswith(("catalogue", "samplers"))]


def test_scores_follow_new_weights_and_another_phase_without_a_call_of_eval(prepared):
    config, _, train_data, _, test_data = prepared()
    init_seed(1, True)
    model = get_model("PAD")(config, train_data._dataset).eval()
    interaction = next(iter(test_data))[0]
    with torch.no_grad():
        before = model.full_sort_predict(interaction)
        state = {name: value + 0.1 if "experts.rec" in name else value for name, value in model.state_dict().items()}
        model.load_state_dict(state)
        changed = model.full_sort_predict(interaction)
        model.phase = "pretrain"
        alone = model.full_sort_predict(interaction)
    assert not torch.allclose(before, changed)
    assert not torch.allclose(changed, alone)
