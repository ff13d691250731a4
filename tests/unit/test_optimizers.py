"""Row-wise updates of ID tables, the optimizers of a phase stepped as one, fused and clipped."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_pad import checkpoint, optimizers
from recbole_pad.checkpoint import RunFolder
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.errors import InputError
from recbole_pad.model.pad import PAD
from recbole_pad.optimizers import Optimizers, RowAdam, clip_grad_norm, row_tables, updates_rows, with_rows
from recbole_pad.phase_trainers import PHASE_TRAINERS
from tests.reference import row_adam_loops

PHASES = ("pretrain", "align", "finetune")
SAMPLED = {"loss": "bce", "n_negatives": 3}
Build = Callable[..., SimpleNamespace]


@pytest.fixture
def build(build: Build) -> Build:
    """Its loss samples items."""
    return partial(build, **SAMPLED)


def trainer_of(run: SimpleNamespace, phase: str, folder: RunFolder | None = None) -> Any:
    return PHASE_TRAINERS[phase](run.config, run.model, folder)


def trained(run: SimpleNamespace, phase: str, n_epochs: int = 2) -> dict[str, Tensor]:
    """The model's state after epochs of a phase from a fixed seed, as RecBole's loop runs them."""
    trainer = trainer_of(run, phase)
    torch.manual_seed(5)
    for epoch in range(n_epochs):
        trainer._train_epoch(run.train, epoch)
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def table_weights(model: PAD) -> dict[str, nn.Parameter]:
    return {"rec": model.experts["rec"].items.weight, "align": model.experts["align"].items.ids.weight}


def named_rows(grad: Tensor) -> set[int]:
    return set(grad.coalesce().indices()[0].tolist())


def looked_up(rows: list[int], n_rows: int, gradient: Tensor) -> Tensor:
    """The sparse gradient of a lookup of these rows, `gradient` (n, d) of its result."""
    table = torch.zeros(n_rows, gradient.size(1), requires_grad=True)
    nn.functional.embedding(torch.tensor(rows), table, sparse=True).backward(gradient)
    assert table.grad is not None
    return table.grad


# --- lazy Adam ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(
    named=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=6),
    decoupled=st.booleans(),
    weight_decay=st.sampled_from([0.0, 0.3]),
)
def test_it_equals_the_formula_written_out_for_each_number(named, decoupled: bool, weight_decay: float):
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(5, 2, generator=generator)
    gradients = [torch.randn(len(rows), 2, generator=generator) for rows in named]
    table = nn.Parameter(start.clone())
    optimizer = RowAdam([table], lr=0.1, weight_decay=weight_decay, decoupled=decoupled)
    for rows, gradient in zip(named, gradients, strict=True):
        table.grad = looked_up(rows, 5, gradient)
        optimizer.step()
    steps = [list(zip(rows, g.tolist(), strict=True)) for rows, g in zip(named, gradients, strict=True)]
    expected = row_adam_loops.lazy_adam(start.tolist(), steps, 0.1, weight_decay, decoupled)
    torch.testing.assert_close(table.detach(), torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
@pytest.mark.parametrize("decoupled", [True, False])
def test_where_every_row_is_named_it_is_torch_adam(decoupled: bool, weight_decay: float):
    dense, rows = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.zeros(6, 3))
    rows.data.copy_(dense.data)
    torch_class = torch.optim.AdamW if decoupled else torch.optim.Adam
    one = torch_class([dense], lr=0.05, weight_decay=weight_decay)
    other = RowAdam([rows], lr=0.05, weight_decay=weight_decay, decoupled=decoupled)
    for _ in range(5):
        gradient = torch.randn(6, 3)
        dense.grad, rows.grad = gradient.clone(), looked_up(list(range(6)), 6, gradient)
        one.step()
        other.step()
    torch.testing.assert_close(rows, dense, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("learner", "cls"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_learner_says_how_named_rows_decay(learner: str, cls: type, config: Callable[..., Any]):
    settings = settings_of(config, learner=learner, learning_rate=0.1, weight_decay=0.5)
    expected, table = nn.Parameter(torch.ones(6, 3)), nn.Parameter(torch.ones(6, 3))
    optimizer = with_rows(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), [table], settings, None)
    expected.grad = torch.randn(6, 3)
    table.grad = looked_up(list(range(6)), 6, expected.grad)
    cls([expected], lr=0.1, weight_decay=0.5).step()
    optimizer.step()
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=1e-6)


def test_without_weight_decay_it_is_torch_sparse_adam():
    """They differ in where epsilon stands."""
    ours, theirs = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.zeros(6, 3))
    theirs.data.copy_(ours.data)
    one = RowAdam([ours], lr=0.05, eps=1e-12)
    other = torch.optim.SparseAdam([theirs], lr=0.05, eps=1e-12)
    for named in ([0, 3, 3], [1, 3], [0, 5, 1, 1]):
        ours.grad = looked_up(named, 6, torch.randn(len(named), 3))
        theirs.grad = ours.grad.clone()
        one.step()
        other.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_rows_that_are_not_named_keep_weights_and_moments():
    table = nn.Parameter(torch.randn(6, 3))
    optimizer = RowAdam([table], lr=0.1, weight_decay=0.5)
    table.grad = looked_up([0, 1, 2, 3, 4, 5], 6, torch.randn(6, 3))
    optimizer.step()
    state = optimizer.state[table]
    tables = [table.detach(), state["exp_avg"], state["exp_avg_sq"]]
    before = [value.clone() for value in tables]
    table.grad = looked_up([1, 4, 1], 6, torch.randn(3, 3))
    optimizer.step()
    for value, old in zip(tables, before, strict=True):
        changed = (value != old).any(dim=1)
        assert changed.tolist() == [False, True, False, False, True, False]


def test_a_dense_gradient_is_refused():
    table = nn.Parameter(torch.randn(6, 3))
    table.grad = torch.ones(6, 3)
    with pytest.raises(ValueError, match="sparse gradient"):
        RowAdam([table], lr=0.1).step()


# --- several as one ----------------------------------------------------------------------------------------


def two_parameters() -> tuple[nn.Parameter, nn.Parameter, Optimizers]:
    torch.manual_seed(2)
    dense, table = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(6, 3))
    parts = {"dense": torch.optim.AdamW([dense], lr=0.1), "rows": RowAdam([table], lr=0.1)}
    return dense, table, Optimizers(parts)


def give_gradients(dense: nn.Parameter, table: nn.Parameter, scale: float = 1.0) -> None:
    dense.grad = torch.randn(4) * scale
    table.grad = looked_up([1, 3, 1], 6, torch.randn(3, 3)) * scale


def test_the_parts_step_as_they_do_alone():
    dense, table, together = two_parameters()
    other_dense, other_table, alone = two_parameters()
    for _ in range(3):
        give_gradients(dense, table)
        other_dense.grad, other_table.grad = dense.grad.clone(), table.grad.clone()
        together.step()
        for part in alone.parts.values():
            part.step()
    assert torch.equal(dense, other_dense)
    assert torch.equal(table, other_table)
    together.zero_grad()
    assert dense.grad is None
    assert table.grad is None


def test_a_stored_state_continues_as_if_not_interrupted(tmp_path: Path):
    dense, table, optimizer = two_parameters()
    give_gradients(dense, table)
    optimizer.step()
    torch.save({"optimizer": optimizer.state_dict(), "weights": [dense.data, table.data]}, tmp_path / "state.pth")
    stored = torch.load(tmp_path / "state.pth", weights_only=True)
    other_dense, other_table, other = two_parameters()
    other_dense.data, other_table.data = stored["weights"]
    other.load_state_dict(stored["optimizer"])
    for parameters, each in (((dense, table), optimizer), ((other_dense, other_table), other)):
        torch.manual_seed(3)
        give_gradients(*parameters)
        each.step()
    assert torch.equal(dense, other_dense)
    assert torch.equal(table, other_table)


def test_a_grad_scaler_takes_its_factor_out_of_all_gradients():
    dense, table, optimizer = two_parameters()
    other_dense, other_table, plain = two_parameters()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))
    torch.manual_seed(3)
    give_gradients(dense, table, scale=8.0)
    torch.manual_seed(3)
    give_gradients(other_dense, other_table)
    scaler.step(optimizer)
    plain.step()
    torch.testing.assert_close(dense, other_dense, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(table, other_table, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("norm_type", [2.0, 1.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1000.0])
def test_gradients_are_clipped_as_their_dense_equals_are(max_norm: float, norm_type: float):
    dense, table, _ = two_parameters()
    give_gradients(dense, table)
    expected = [nn.Parameter(dense.data), nn.Parameter(table.data)]
    expected[0].grad, expected[1].grad = dense.grad.clone(), table.grad.to_dense()
    how = {"max_norm": max_norm, "norm_type": norm_type}
    nn.utils.clip_grad_norm_(expected, **how)
    clip_grad_norm([dense, table, nn.Parameter(torch.ones(1))], how)
    torch.testing.assert_close(dense.grad, expected[0].grad)
    torch.testing.assert_close(table.grad.to_dense(), expected[1].grad)


# --- in a phase --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [SAMPLED, {"loss": "sampled_softmax", "n_negatives": 6}], ids=["bce", "sampled"])
@pytest.mark.parametrize("phase", PHASES)
def test_with_sgd_row_wise_steps_equal_dense_ones(phase: str, changes: dict[str, Any], build: Build):
    """Plain SGD leaves rows without a gradient alone: the same weights, but for the order of sums."""
    how = {**changes, "learner": "sgd", "learning_rate": 0.1, "id_dropout": 0.3}
    dense = build(**how, sparse_updates="never")
    start = {name: value.clone() for name, value in dense.model.state_dict().items()}
    dense_state = trained(dense, phase)
    rows = trained(build(**how, sparse_updates="always"), phase)
    tables = [name for name in start if name.endswith(("items.weight", "items.ids.weight"))]
    assert any(not torch.equal(start[name], dense_state[name]) for name in tables)
    for name, value in dense_state.items():
        torch.testing.assert_close(rows[name], value, atol=2e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("phase", PHASES)
def test_a_step_names_the_rows_that_it_reads_and_moves_no_other(phase: str, build: Build, monkeypatch):
    """One user, few negatives: most of the 25 items stay as they are, in weights and moments."""
    run = build(sparse_updates="always", id_dropout=0.0, train_batch_size=1, n_negatives=1)
    trainer = trainer_of(run, phase)
    batch = next(iter(run.train))
    drawn: list[int] = []
    original = PAD._steps

    def spy(model, positions, negatives, sampler):
        drawn.extend(negatives.flatten().tolist())
        return original(model, positions, negatives, sampler)

    monkeypatch.setattr(PAD, "_steps", spy)
    before = {name: weight.detach().clone() for name, weight in table_weights(run.model).items()}
    trainer._train_epoch([batch], 0)
    read = {0, *batch["item_id_list"].flatten().tolist(), *batch["item_id"].tolist(), *drawn}
    n_trained = 0
    for name, weight in table_weights(run.model).items():
        moved = set((weight != before[name]).any(dim=1).nonzero().flatten().tolist())
        if weight.grad is None:
            assert not moved
            continue
        n_trained += 1
        assert weight.grad.is_sparse
        assert moved <= named_rows(weight.grad) <= read
        assert moved
        assert len(read) < 20
    assert n_trained == (2 if phase == "finetune" else 1)


def test_the_rarest_items_are_part_of_a_step_only_if_their_mean_is_read(build: Build):
    """ids are dropped: then the gradient of the mean reaches the rarest items (here: all seen ones)."""
    for dropout, reaches_all in ((0.0, False), (0.9, True)):
        run = build(sparse_updates="always", id_dropout=dropout, train_batch_size=1, n_negatives=1)
        trainer_of(run, "align")._train_epoch([next(iter(run.train))], 0)
        named = named_rows(table_weights(run.model)["align"].grad)
        seen = set(run.model.catalogue.seen_ids.tolist())
        assert (seen <= named) == reaches_all


def test_every_parameter_is_in_one_group_and_the_gate_keeps_its_own(build: Build):
    run = build(sparse_updates="always", weight_decay=0.1, gate_learning_rate=0.25, retrain_experts=True)
    trainer = trainer_of(run, "finetune")
    groups = trainer.optimizer.param_groups
    parameters = [id(parameter) for group in groups for parameter in group["params"]]
    expected = {id(parameter) for module in run.model.phase_modules().values() for parameter in module.parameters()}
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == expected
    (gate,) = (group for group in groups if group["params"] and group["params"][0] is next(run.model.gate.parameters()))
    assert (gate["lr"], gate["weight_decay"]) == (0.25, 0.0)
    (rows,) = trainer.optimizer.parts["rows"].param_groups
    assert (rows["lr"], rows["weight_decay"]) == (run.config["learning_rate"], 0.1)
    assert {id(p) for p in rows["params"]} == {id(p) for p in table_weights(run.model).values()}


def test_a_phase_with_full_softmax_stays_dense_beside_one_that_samples(build: Build):
    run = build(**{"sparse_updates": "auto", "pretrain.loss": "ce"})
    assert not any(run.model._updates_rows.values())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optimizers, "SPARSE_FROM", run.model.n_items - 1)
        run = build(**{"sparse_updates": "auto", "pretrain.loss": "ce"})
    for phase, is_sparse in (("pretrain", False), ("align", True), ("finetune", True), ("pretrain", False)):
        run.model.phase = phase
        experts = list(run.model.experts.values())
        assert len(row_tables(experts)) == (2 if is_sparse else 0)
        assert isinstance(trainer_of(run, phase).optimizer, Optimizers) == is_sparse


def test_clipping_works_with_sparse_gradients(build: Build):
    how = {"learner": "sgd", "learning_rate": 0.5, "clip_grad_norm": {"max_norm": 0.05}}
    expected = trained(build(**how, sparse_updates="never"), "align")
    got = trained(build(**how, sparse_updates="always"), "align")
    without = trained(build(**{**how, "clip_grad_norm": None}, sparse_updates="always"), "align")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=2e-6, rtol=1e-5, msg=name)
    table = "experts.align.items.ids.weight"
    assert (without[table] - expected[table]).abs().max() > 1e-3


@pytest.mark.parametrize("phase", PHASES)
def test_a_resumed_phase_ends_as_one_that_was_not_interrupted(phase: str, build: Build, tmp_path: Path):
    how = {"sparse_updates": "always", "epochs": 3, "stopping_step": 9, "id_dropout": 0.3, "learner": "adamw"}
    run, folder, other_folder = build(**how), RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    best, last = folder.phase_file(phase), folder.last_file
    kept: list[tuple[bytes, bytes]] = []
    trainer = trainer_of(run, phase, folder)
    trainer.fit(run.train, run.valid, callback_fn=lambda *_: kept.append((best.read_bytes(), last.read_bytes())))
    other_folder.path.mkdir()  # as a run leaves it that is killed in its third epoch
    other_folder.phase_file(phase).write_bytes(kept[1][0])
    other_folder.last_file.write_bytes(kept[2][1])
    content = checkpoint.load(other_folder.last_file)
    assert content["epoch"] == 2
    assert set(content["optimizer"]) == {"dense", "rows"}
    other = build(**how)
    resumed = trainer_of(other, phase, other_folder)
    resumed.continue_from(content)
    resumed.fit(other.train, other.valid)
    assert resumed.record.train_loss == trainer.record.train_loss
    for name, value in run.model.state_dict().items():
        if name.startswith(tuple(run.model.phase_modules())):
            assert torch.equal(value, other.model.state_dict()[name]), name


# --- when --------------------------------------------------------------------------------------------------


def settings_of(config: Callable[..., Any], **changes: Any) -> PADConfig:
    return PADConfig.read(phase_view(config(**{**SAMPLED, **changes}), "pretrain"))


def test_auto_begins_at_a_hundred_thousand_items(config: Callable[..., Any]):
    auto = settings_of(config)
    assert not updates_rows(auto, 99_999, True, "pretrain")
    assert updates_rows(auto, 100_000, True, "pretrain")
    assert not updates_rows(auto, 10**9, False, "pretrain")
    assert updates_rows(settings_of(config, sparse_updates="always"), 10, True, "pretrain")
    assert not updates_rows(settings_of(config, sparse_updates="never"), 10**9, True, "pretrain")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"loss": "ce"}, "loss: ce"),
        ({"learner": "rmsprop"}, "learner: rmsprop"),
        ({"learner": "sgd", "weight_decay": 0.1}, "learner: sgd with weight_decay"),
        ({"learner": "adagrad", "weight_decay": 0.1}, "learner: adagrad with weight_decay"),
    ],
)
def test_what_has_no_row_wise_form_is_refused_or_with_auto_done_densely(changes, named, build: Build, caplog):
    with pytest.raises(InputError, match=f"sparse_updates: always is not possible in phase pretrain: {named}"):
        build(sparse_updates="always", **changes)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(optimizers, "SPARSE_FROM", 1)
        run = build(**changes)
    assert not isinstance(trainer_of(run, "pretrain").optimizer, Optimizers)
    assert (named in caplog.text) == ("loss" not in changes)


@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd", "adagrad"])
def test_every_learner_with_a_row_wise_form_trains(learner: str, build: Build):
    run = build(sparse_updates="always", learner=learner, learning_rate=0.05)
    before = table_weights(run.model)["rec"].detach().clone()
    trainer = trainer_of(run, "pretrain")
    trainer._train_epoch(run.train, 0)
    first = trainer.record.train_loss[-1]
    for epoch in range(1, 15):
        trainer._train_epoch(run.train, epoch)
    assert trainer.record.train_loss[-1] < first
    assert not torch.equal(before, table_weights(run.model)["rec"])


def test_sparse_adam_alone_is_refused_with_what_to_set(build: Build):
    with pytest.raises(InputError, match="learner: adam and sparse_updates: always"):
        trainer_of(build(learner="sparse_adam"), "pretrain")


# --- fused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparse", ["always", "never"])
@pytest.mark.parametrize("learner", ["adam", "adamw", "sgd"])
def test_fused_updates_equal_plain_ones(learner: str, sparse: str, build: Build):
    """Within float32 rounding, over six steps."""
    how = {"learner": learner, "weight_decay": 0.0, "sparse_updates": sparse}
    plain = trained(build(**how), "align")
    run = build(**how, fused_optimizer=True)
    trainer = trainer_of(run, "align")
    dense = trainer.optimizer.parts["dense"] if sparse == "always" else trainer.optimizer
    assert all(group["fused"] for group in dense.param_groups)
    fused = trained(run, "align")
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, atol=2e-4, rtol=1e-4, msg=name)


def test_a_learner_without_a_fused_form_is_refused(build: Build):
    with pytest.raises(InputError, match="fused_optimizer: True is for adam, adamw, sgd, not for learner: adagrad"):
        trainer_of(build(learner="adagrad", fused_optimizer=True), "pretrain")
