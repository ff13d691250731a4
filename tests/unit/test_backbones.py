"""Every backbone against RecBole's own model, and the laws that PAD relies on."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole.model.sequential_recommender
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import get_model
from torch import Tensor

from recbole_pad.backbone_classes import backbone_spec, train_rows_of
from recbole_pad.backbones import BACKBONES, UNSUPPORTED
from recbole_pad.errors import InputError
from recbole_pad.model.backbone import Backbone
from recbole_pad.model.pad import PAD
from recbole_pad.trainer import PADTrainer

WITH_POSITIONS = [name for name, spec in BACKBONES.items() if spec.position_table]
CAUSAL = [name for name, spec in BACKBONES.items() if spec.rows == "sequences"]
SHRINKABLE = [name for name, spec in BACKBONES.items() if not spec.fixed_length]
N_ITEMS = 31  # of `chain`, with padding


def bert4rec_state(model: Any, seq: Tensor, length: Tensor, user: Tensor) -> Tensor:
    states = model.forward(model.reconstruct_test_data(seq, length))
    return model.gather_indexes(states, length - 1)


STOCK_CALLS: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Tensor]] = {
    "BERT4Rec": bert4rec_state,
    "Caser": lambda model, seq, length, user: model.forward(user, seq),
    "HGN": lambda model, seq, length, user: model.forward(seq, user),
    "CORE": lambda model, seq, length, user: model.forward(seq) / model.temperature,
}


def stock_state(name: str, model: Any, seq: Tensor, length: Tensor, user: Tensor) -> Tensor:
    call = STOCK_CALLS.get(name, lambda model, seq, length, user: model.forward(seq, length))
    return call(model, seq, length, user)


@pytest.fixture
def pair(prepared: Callable[..., Any]) -> Callable[..., Any]:
    """``pair(name, positions)``: our backbone, its item table, and RecBole's model of the same weights."""

    def make(name: str, positions: str = "absolute") -> tuple[Backbone, Tensor, Any]:
        settings, _, train, *_ = prepared(dataset="chain", backbone=name, positions=positions)
        stock_settings, _, stock_train, *_ = prepared(name, dataset="chain", train_neg_sample_args=None)
        seed()
        ours = Backbone(name, settings, train._dataset, positions).eval()
        table = ours.initial_items
        seed()
        stock = get_model(name)(stock_settings, stock_train._dataset).eval()
        with torch.no_grad():
            stock.item_embedding.weight[0] = 0.0  # some models give the padding row start values
            if name == "HGN":
                stock.item_embedding_for_prediction.weight[:] = stock.item_embedding.weight
        return ours, table, stock

    return make


def seed() -> None:
    torch.manual_seed(3)
    np.random.seed(3)


def batch(n_rows: int = 6, n_columns: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """(item_seq, item_seq_len, user): right-padded rows of lengths from 1 to all columns."""
    generator = torch.Generator().manual_seed(11)
    length = torch.linspace(1, n_columns, n_rows).round().long()
    seq = torch.randint(1, N_ITEMS, (n_rows, n_columns), generator=generator)
    return seq * (torch.arange(n_columns) < length[:, None]), length, torch.arange(1, n_rows + 1)


def random_backbone(prepared: Callable[..., Any], name: str, positions: str = "auto") -> tuple[Backbone, Tensor]:
    """A backbone with weights away from their start values, and a table of item vectors."""
    settings, _, train, *_ = prepared(dataset="chain", backbone=name, positions=positions)
    seed()
    backbone = Backbone(name, settings, train._dataset, positions).eval()
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    table = torch.randn(N_ITEMS, backbone.width)
    table[0] = 0.0
    return backbone, table


# --- against RecBole's own model ---------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_the_state_with_absolute_positions_is_recboles(pair, name: str):
    ours, table, stock = pair(name)
    seq, length, user = batch()
    got = ours.last_state(table, seq, length, user)
    expected = stock_state(name, stock, seq, length, user)
    assert got.shape == (len(seq), ours.width)
    assert expected.abs().max() > 0
    # STAMP's states are near 1e-6 at its start values
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_the_score_of_all_items_is_recboles(pair, prepared, name: str):
    ours, table, stock = pair(name)
    interaction = next(iter(prepared(name, dataset="chain", train_neg_sample_args=None)[4]))[0]
    state = ours.last_state(table, interaction["item_id_list"], interaction["item_length"], interaction["user_id"])
    vectors = torch.nn.functional.normalize(table, dim=-1) if name == "CORE" else table
    expected = stock.full_sort_predict(interaction)
    torch.testing.assert_close(state @ vectors.T, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("name", BACKBONES)
def test_start_values_are_recboles(pair, name: str):
    """Also the order of random draws: the item table is taken out after the constructor."""
    ours, table, stock = pair(name)
    own = dict(ours.core.named_parameters())
    theirs = dict(stock.named_parameters())
    tables = {"item_embedding.weight"} | {f"{spare}.weight" for spare in ours.spec.spare_tables}
    assert set(theirs) - set(own) == tables
    for path in set(theirs) - tables:
        assert torch.equal(own[path], theirs[path]), path
    assert torch.equal(table, theirs["item_embedding.weight"][:N_ITEMS])
    if name == "BERT4Rec":
        assert torch.equal(ours.mask_vector, theirs["item_embedding.weight"][N_ITEMS])


# --- positions counted from the newest item ----------------------------------------------------------------


@torch.no_grad()
def test_recency_is_left_padding_with_positions_from_the_right(pair):
    """SASRec by its own layers on left-padded sequences; the newest item, last column, has position 0."""
    ours, table, stock = pair("SASRec", "recency")
    seq, length, user = batch()
    n_columns = seq.size(1)
    left = torch.stack([torch.cat([row[n:], row[:n]]) for row, n in zip(seq, length, strict=True)])
    assert (left[:, -1] > 0).all()
    positions = torch.tensor([n_columns - 1 - column for column in range(n_columns)])
    hidden = stock.LayerNorm(stock.item_embedding(left) + stock.position_embedding.weight[positions])
    expected = stock.trm_encoder(hidden, stock.get_attention_mask(left), output_all_encoded_layers=True)[-1]
    got = ours(table, seq, length, user)
    for row, n in enumerate(length.tolist()):
        torch.testing.assert_close(got[row, :n], expected[row, n_columns - n :], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.last_state(table, seq, length, user), expected[:, -1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", WITH_POSITIONS)
def test_recency_is_recboles_model_with_its_position_table_turned_round(pair, name: str):
    """One row at a time, without padding: then position n-1-t is the table upside down."""
    ours, table, stock = pair(name, "recency")
    path, _, attribute = BACKBONES[name].position_table.rpartition(".")
    position_table = getattr(stock.get_submodule(path), attribute).weight
    original = position_table.clone()
    seq, length, user = batch()
    got = ours.last_state(table, seq, length, user)
    for row, n in enumerate(length.tolist()):
        position_table[:n] = original[:n].flip(0)
        expected = stock_state(name, stock, seq[row : row + 1, :n], length[row : row + 1], user[row : row + 1])
        torch.testing.assert_close(got[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_auto_counts_from_the_newest_where_there_is_a_position_table(prepared, name: str):
    backbone, table = random_backbone(prepared, name)
    explicit, _ = random_backbone(prepared, name, "recency" if name in WITH_POSITIONS else "absolute")
    assert set(backbone.state_dict()) == set(explicit.state_dict())
    torch.testing.assert_close(backbone.last_state(table, *batch()), explicit.last_state(table, *batch()))


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - set(WITH_POSITIONS)))
def test_recency_without_a_position_table_is_refused(prepared, name: str):
    with pytest.raises(InputError, match=f"positions: recency .* {name}"):
        random_backbone(prepared, name, "recency")


# --- laws --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "positions"),
    [(name, "absolute") for name in CAUSAL] + [(name, "recency") for name in CAUSAL if name in WITH_POSITIONS],
)
def test_no_state_sees_a_later_item(prepared, name: str, positions: str):
    backbone, table = random_backbone(prepared, name, positions)
    seq = torch.randint(1, N_ITEMS, (5, 8))
    length, user = torch.full((5,), 8), torch.arange(1, 6)
    states = backbone(table, seq, length, user)
    assert states.shape == (5, 8, backbone.width)
    for t in range(7):
        changed = seq.clone()
        changed[:, t + 1 :] = seq[:, t + 1 :] % (N_ITEMS - 1) + 1  # every later item becomes another
        other = backbone(table, changed, length, user)
        assert torch.equal(other[:, : t + 1], states[:, : t + 1])
        assert (other[:, t + 1] != states[:, t + 1]).any(dim=1).all()


@torch.no_grad()
@pytest.mark.parametrize("name", CAUSAL)
def test_with_absolute_positions_a_state_is_that_of_the_prefix(prepared, name: str):
    backbone, table = random_backbone(prepared, name, "absolute")
    seq, length, user = batch()
    states = backbone(table, seq, length, user)
    for t in range(seq.size(1)):
        rows = length > t
        last = torch.full((int(rows.sum()),), t + 1)
        expected = backbone.last_state(table, seq[rows, : t + 1], last, user[rows])
        torch.testing.assert_close(states[rows, t], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", BACKBONES)
def test_a_state_does_not_depend_on_the_other_rows(prepared, name: str):
    backbone, table = random_backbone(prepared, name)
    seq, length, user = batch()
    together = backbone.last_state(table, seq, length, user)
    for row in range(len(seq)):
        one = slice(row, row + 1)
        alone = backbone.last_state(table, seq[one], length[one], user[one])
        torch.testing.assert_close(alone, together[one], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", SHRINKABLE)
def test_a_state_does_not_depend_on_the_padding(prepared, name: str):
    backbone, table = random_backbone(prepared, name)
    seq, length, user = batch(n_rows=4, n_columns=5)
    wider = torch.nn.functional.pad(seq, (0, 3))
    expected = backbone.last_state(table, seq, length, user)
    torch.testing.assert_close(backbone.last_state(table, wider, length, user), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_gradients_reach_the_vectors_of_the_items_in_the_sequences_and_no_others(prepared, name: str):
    backbone, table = random_backbone(prepared, name)
    table.requires_grad_()
    seq = torch.tensor([[3, 5, 7, 9, 11, 2, 4, 6]])
    state = backbone.last_state(table, seq, torch.tensor([8]), torch.tensor([1]))
    (state * torch.randn_like(state)).sum().backward()
    reached = table.grad[1:].ne(0).any(dim=1).nonzero().squeeze(1) + 1
    expected = {2, 3, 4, 5, 6, 7, 9, 11}
    if name == "BERT4Rec":
        expected -= {3}  # RecBole: the oldest item makes room for the mask
    assert set(reached.tolist()) == expected


@pytest.mark.parametrize("name", BACKBONES)
def test_no_table_stays_in_the_module(prepared, name: str):
    """A kept table would drag its graph along: RecBole deep-copies models to count their operations."""
    backbone, table = random_backbone(prepared, name)
    expected = backbone.last_state(table.requires_grad_(), *batch())
    assert backbone.lookup.weight is None
    assert backbone.lookup.num_embeddings == 0
    torch.testing.assert_close(copy.deepcopy(backbone).last_state(table, *batch()), expected, rtol=0, atol=0)
    with pytest.raises(AssertionError, match="outside"):
        backbone.core.item_embedding(torch.tensor([1]))


def test_no_table_stays_in_the_module_after_an_error(prepared):
    backbone, table = random_backbone(prepared, "SASRec")
    seq, length, user = batch()
    with pytest.raises(IndexError):
        backbone(table, seq + N_ITEMS, length, user)
    assert backbone.lookup.weight is None


@torch.no_grad()
def test_a_table_of_some_items_gives_the_same_states(prepared):
    """As in a training step: only the items of the step are computed, and BERT4Rec's mask row moves."""
    for name in BACKBONES:
        backbone, table = random_backbone(prepared, name)
        seq, length, user = batch()
        ids = torch.unique(torch.cat([seq.flatten(), torch.tensor([0])]))
        assert len(ids) < N_ITEMS
        expected = backbone.last_state(table, seq, length, user)
        got = backbone.last_state(table[ids], torch.searchsorted(ids, seq), length, user)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# --- the table of backbones --------------------------------------------------------------------------------


def test_every_sequential_model_of_recbole_is_a_backbone_or_named_with_a_reason():
    folder = Path(recbole.model.sequential_recommender.__file__).parent
    found = set()
    for stem in [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]:
        module = importlib.import_module(f"recbole.model.sequential_recommender.{stem}")
        classes = [name for name, _ in inspect.getmembers(module, inspect.isclass) if name.lower() == stem]
        assert len(classes) == 1
        found.add(classes[0])
    assert not set(BACKBONES) & set(UNSUPPORTED)
    assert found == {*BACKBONES, *UNSUPPORTED}
    assert all(issubclass(get_model(name), SequentialRecommender) for name in BACKBONES)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_model_that_cannot_serve_is_refused_with_its_reason(config, name: str):
    with pytest.raises(InputError) as error:
        config(backbone=name)
    assert str(error.value).startswith(f"backbone: {name} cannot serve")
    assert UNSUPPORTED[name] in str(error.value)
    assert all(other in str(error.value) for other in BACKBONES)


def test_an_unknown_backbone_gets_the_nearest_name(config):
    with pytest.raises(InputError, match=r"backbone: 'SASrec' is not known \(did you mean 'SASRec'\?\)"):
        config(backbone="SASrec")
    with pytest.raises(InputError, match="choose one of SASRec, GRU4Rec"):
        backbone_spec("Nothing")


def test_rows_follow_the_backbone():
    assert CAUSAL == ["SASRec", "GRU4Rec"]
    for name, spec in BACKBONES.items():
        assert train_rows_of("auto", name) == spec.rows
        assert train_rows_of("prefixes", name) == "prefixes"
        if spec.rows == "sequences":
            assert train_rows_of("sequences", name) == "sequences"
        else:
            with pytest.raises(InputError, match=f"train_rows: sequences .* {name} does not give"):
                train_rows_of("sequences", name)


# --- a known answer ----------------------------------------------------------------------------------------

# Epochs at learning rate 0.01 and whether history is masked. CORE, SINE and HGN mix the vectors of the
# history into the state, so that its items score best: the ring shows behind them, once they are masked.
LEARNS = {
    "SASRec": (15, "recbole"),
    "GRU4Rec": (20, "recbole"),
    "BERT4Rec": (25, "recbole"),
    "NARM": (12, "recbole"),
    "Caser": (40, "recbole"),
    "CORE": (8, "pad"),
    "LightSANs": (5, "recbole"),
    "FEARec": (5, "recbole"),
    "STAMP": (15, "recbole"),
    "SINE": (30, "pad"),
    "HGN": (12, "pad"),
}


def reciprocal_rank_on_the_ring(prepared: Callable[..., Any], **changes: Any) -> float:
    """Train on `chain`, where item k is always followed by k + 1, and return the MRR of the test targets."""
    quiet: dict[str, Any] = {
        "stopping_step": 100,
        "valid_metric": "MRR@10",
        "train_batch_size": 32,
        "learning_rate": 0.01,
    }
    if changes["backbone"] == "BERT4Rec":
        quiet["n_layers"] = 1  # two layers fall into a collapsed solution for some seeds
    if BACKBONES[changes["backbone"]].position_table or changes["backbone"] in ("LightSANs", "FEARec"):
        quiet |= {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0}
    settings, _, train, valid, test = prepared(dataset="chain", **quiet, **changes)
    model = PAD(settings, train._dataset)
    trainer = PADTrainer(settings, model)
    assert trainer.evaluate(test, load_best_model=False)["mrr@10"] < 0.3
    trainer.fit(train, valid, verbose=False, saved=False)
    assert model.phase == changes["phases"][-1]
    return float(trainer.evaluate(test, load_best_model=False)["mrr@10"])


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_learns_that_k_is_followed_by_k_plus_1(prepared, name: str):
    epochs, protocol = LEARNS[name]
    reached = reciprocal_rank_on_the_ring(
        prepared, backbone=name, phases=["pretrain"], epochs=epochs, protocol=protocol
    )
    assert reached > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("gate_fit", "expert_loss"), [("valid", "separate"), ("train", "joint")])
def test_three_phases_learn_that_k_is_followed_by_k_plus_1(prepared, gate_fit: str, expert_loss: str):
    """Without the Markov expert, which knows the ring before anything is trained."""
    reached = reciprocal_rank_on_the_ring(
        prepared,
        backbone="SASRec",
        phases=["pretrain", "align", "finetune"],
        epochs=12,
        gate_fit=gate_fit,
        expert_loss=expert_loss,
        experts=["rec", "align", "llm", "match"],
    )
    assert reached > 0.9
