"""Item vectors of the experts: items never seen in training, dropped ID halves, padding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_pad.model import experts
from recbole_pad.model.items import AlignedVectors, Catalogue, IDVectors, TextVectors, UnitTextVectors
from recbole_pad.model.pad import PAD
from recbole_pad.nn.adapter import FUSIONS, TextAdapter
from recbole_pad.nn.text_transforms import transform_text
from tests.reference import mmd_loops, scores_loops

PHASES = ["pretrain", "align", "finetune"]


def catalogue_of(counts: list[int], width: int = 5) -> Catalogue:
    """Random text vectors; bins do not matter to item vectors."""
    text = torch.randn(len(counts), width)
    text[0] = 0.0
    return Catalogue(torch.tensor(counts), torch.tensor(counts) > 0, torch.ones(len(counts), dtype=torch.long), text)


def id_weights(model: PAD) -> list[torch.nn.Parameter]:
    tables = {"rec": lambda items: items.weight, "align": lambda items: items.ids.weight}
    return [tables[name](model.experts[name].items) for name in ("rec", "align") if name in model.experts]


@pytest.fixture
def build(prepared: Callable[..., Any]) -> Callable[..., tuple[PAD, Any, Tensor, Interaction]]:
    """``build(**changes)``: a model, its train loader, ids of the unseen items, a batch that reads them."""

    def make(**changes: Any) -> tuple[PAD, Any, Tensor, Interaction]:
        config, whole, train, _, test = prepared(**changes)
        model = PAD(config, train._dataset).eval()
        unseen = torch.tensor([whole.token2id("item_id", token) for token in ("i24", "i25")])
        assert (torch.from_numpy(whole.train_counts)[unseen] == 0).all()
        batch = next(iter(test))[0]
        sequences = batch["item_id_list"].clone()
        sequences[:, 0] = unseen[0]
        return model, train, unseen, Interaction({**batch.interaction, "item_id_list": sequences})

    return make


# --- items never seen in training --------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("phase", PHASES)
def test_the_untrained_vector_of_an_unseen_item_enters_no_score(build, phase: str):
    model, _, unseen, batch = build(unseen_items="mean")
    model.phase = phase
    before = model.full_sort_predict(batch)
    for weight in id_weights(model):
        weight[unseen] = torch.randn(2, weight.size(1))
    model.eval()
    assert torch.equal(model.full_sort_predict(batch), before)


@torch.no_grad()
@pytest.mark.parametrize("phase", PHASES)
def test_with_raw_vectors_it_does(build, phase: str):
    model, _, unseen, batch = build(unseen_items="raw")
    model.phase = phase
    before = model.full_sort_predict(batch)
    for weight in id_weights(model):
        weight[unseen] = torch.randn(2, weight.size(1))
    model.eval()
    difference = (model.full_sort_predict(batch) - before)[:, unseen].abs()
    assert difference.mean() > 0.1


def test_an_unseen_item_has_the_mean_of_the_thousand_rarest():
    torch.manual_seed(1)
    counts = [0, *torch.randint(0, 40, (1300,)).tolist()]
    catalogue = catalogue_of(counts)
    initial = torch.randn(len(counts), 3)
    vectors = IDVectors(initial, catalogue, "mean")(None)
    rarest = sorted((count, item) for item, count in enumerate(counts) if item and count)[:1000]
    expected = torch.stack([initial[item] for _, item in rarest]).mean(dim=0)
    n_unseen = 0
    for item in range(1, len(counts)):
        if counts[item]:
            assert torch.equal(vectors[item], initial[item])
        else:
            torch.testing.assert_close(vectors[item], expected)
            n_unseen += 1
    assert n_unseen > 10
    assert len(rarest) < sum(count > 0 for count in counts)


def test_the_mean_of_fewer_than_a_thousand_is_that_of_all_seen_items():
    initial = torch.arange(10.0).view(5, 2)
    vectors = IDVectors(initial, catalogue_of([0, 2, 0, 7, 1]), "mean")(None)
    assert vectors.flatten().tolist() == pytest.approx([0, 0, 2, 3, 16 / 3, 19 / 3, 6, 7, 8, 9])


@pytest.mark.parametrize("sampling", ["uniform", "popularity"])
@pytest.mark.parametrize("unseen_items", ["mean", "raw"])
@pytest.mark.parametrize("loss", ["ce", "bce", "sampled_softmax"])
@pytest.mark.parametrize("phase", PHASES)
def test_no_gradient_reaches_an_unseen_item_when_negatives_are_seen_items(build, phase, loss, unseen_items, sampling):
    model, train, unseen, _ = build(
        loss=loss, unseen_items=unseen_items, negative_sampling=sampling, negatives="seen", n_negatives=20
    )
    model.phase = phase
    for batch in train:
        losses = model.train().calculate_loss(batch)
        (sum(losses) if isinstance(losses, tuple) else losses).backward()
    grads = [weight.grad for weight in id_weights(model) if weight.grad is not None]
    assert len(grads) == (2 if phase == "finetune" else 1)
    seen = (model.catalogue.counts > 0).nonzero().squeeze(1)
    for grad in grads:
        assert grad[seen].any()
        assert not grad[unseen].any()
        assert not grad[0].any()


@pytest.mark.parametrize("loss", ["ce", "bce", "sampled_softmax"])
@pytest.mark.parametrize("phase", PHASES)
def test_as_negatives_unseen_items_are_trained_as_published(build, phase: str, loss: str):
    changes = {"unseen_items": "raw", "negatives": "all", "n_negatives": 200, "id_dropout": 0.0}
    model, train, unseen, _ = build(loss=loss, **changes)
    model.phase = phase
    for batch in train:
        losses = model.train().calculate_loss(batch)
        (sum(losses) if isinstance(losses, tuple) else losses).backward()
    for weight in id_weights(model):
        if weight.grad is not None:
            assert weight.grad[unseen].any(dim=1).all()


# --- dropped ID halves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", ["mean", "raw"])
def test_in_training_about_the_asked_share_of_rows_is_the_mean(unseen: str):
    torch.manual_seed(2)
    counts = [0, *range(1, 3001)]
    initial = torch.randn(len(counts), 4)
    items = IDVectors(initial, catalogue_of(counts), unseen, dropout=0.3).train()
    mean = initial[1:1001].mean(dim=0)
    for ids in (None, torch.arange(len(counts))):
        vectors = items(ids)[1:]
        is_own = (vectors == initial[1:]).all(dim=1)
        is_mean = torch.isclose(vectors, mean, atol=1e-6).all(dim=1)
        assert (is_own ^ is_mean).all()
        assert 0.27 < is_mean.double().mean().item() < 0.33  # 3000 draws: 3.6 standard deviations
    assert not torch.equal(items(None), items(None))


def test_in_evaluation_nothing_is_dropped():
    counts = [0, *range(1, 50)]
    initial = torch.randn(len(counts), 4)
    items = IDVectors(initial, catalogue_of(counts), "raw", dropout=0.9).eval()
    assert torch.equal(items(None)[1:], initial[1:])


def test_id_dropout_belongs_to_the_aligned_expert_alone(build):
    model, *_ = build(id_dropout=0.4)
    assert model.experts["rec"].items.dropout == 0
    assert model.experts["align"].items.ids.dropout == 0.4


# --- text and fusion ---------------------------------------------------------------------------------------


def all_kinds(catalogue: Catalogue) -> dict[str, torch.nn.Module]:
    n_items = len(catalogue.counts)
    ids = IDVectors(torch.randn(n_items, 4), catalogue, "mean")
    text = TextVectors(TextAdapter(5, 4, 1, "gelu", 0.0), catalogue)
    torch.nn.init.ones_(text.adapter.layers[0].bias)
    return {
        "rec": ids,
        "llm": text,
        "align": AlignedVectors(ids, text, FUSIONS["concat"](4, "gelu", 0.0, "xavier")),
        "add": AlignedVectors(ids, text, FUSIONS["add"](4, "gelu", 0.0, "xavier")),
        "match": UnitTextVectors(catalogue, 4.0),
    }


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rec", "llm", "align", "add", "match"])
def test_padding_is_zero_and_items_asked_for_are_rows_of_the_whole_table(kind: str):
    torch.manual_seed(3)
    items = all_kinds(catalogue_of([0, 3, 0, 1, 9]))[kind].eval()
    table = items(None)
    assert len(table) == 5
    assert not table[0].any()
    assert table[1:].any(dim=1).all()
    ids = torch.tensor([4, 0, 2, 2, 1])
    torch.testing.assert_close(items(ids), table[ids])


@torch.no_grad()
def test_aligned_vectors_are_the_fusion_of_both_halves():
    """v = gelu(W [e ; t] + c), with t the adapter's output; and e + t."""
    torch.manual_seed(4)
    catalogue = catalogue_of([0, 3, 5, 1, 9])
    kinds = all_kinds(catalogue)
    ids, text = kinds["rec"](None).double(), kinds["llm"](None).double()
    linear = kinds["align"].fusion.linear
    for item in range(1, 5):
        assert kinds["add"](None)[item].tolist() == pytest.approx((ids[item] + text[item]).tolist(), abs=1e-5)
        both = [*ids[item].tolist(), *text[item].tolist()]
        rows = zip(linear.weight.tolist(), linear.bias.tolist(), strict=True)
        hidden = [sum(w * x for w, x in zip(row, both, strict=True)) + bias for row, bias in rows]
        expected = torch.nn.functional.gelu(torch.tensor(hidden))
        assert kinds["align"](None)[item].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


@torch.no_grad()
def test_match_vectors_have_one_length_and_the_directions_of_the_text():
    torch.manual_seed(5)
    catalogue = catalogue_of([0, 1, 1, 1])
    vectors, text = UnitTextVectors(catalogue, 4.0)(None).tolist(), catalogue.text_vectors.tolist()
    for a in range(1, 4):
        for b in range(1, 4):
            expected = 16 * mmd_loops.cosine(text[a], text[b])
            assert mmd_loops.dot(vectors[a], vectors[b]) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_items_without_text_are_no_neighbours_of_each_other():
    """A text that is the mean of the others is, centred and whitened, zero up to rounding; that says nothing."""
    raw = np.random.default_rng(3).normal(size=(200, 6)).astype(np.float32)
    raw[[20, 30, 40]] = np.delete(raw, [20, 30, 40], axis=0).mean(axis=0)
    text = torch.zeros(201, 6)
    text[1:] = transform_text(torch.from_numpy(np.vstack([np.zeros(6, np.float32), raw])), "whiten")[1:]
    ones = torch.ones(201, dtype=torch.long)
    catalogue = Catalogue(ones, ones > 0, ones, text)
    vectors = UnitTextVectors(catalogue, 4.0)(None)
    without_text = [0, 21, 31, 41]
    lengths = vectors.norm(dim=1)
    assert lengths[without_text].tolist() == [0, 0, 0, 0]
    assert np.delete(lengths.numpy(), without_text) == pytest.approx(4.0, abs=1e-5)


def test_text_vectors_get_no_gradient(build):
    model, train, *_ = build()
    model.train().calculate_loss(next(iter(train))).backward()
    assert not model.catalogue.text_vectors.requires_grad
    assert not list(model.catalogue.parameters())


# --- text on disk ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", PHASES)
def test_a_model_whose_text_is_on_disk_scores_and_learns_as_one_that_holds_it(build, phase: str):
    losses, scores = [], []
    for memory_mb in (1, 0):
        model, train, _, batch = build(text_memory_mb=memory_mb, loss="bce", text_transform="whiten")
        assert (model.catalogue.text_on_disk is None) == (memory_mb == 1)
        assert (model.catalogue.text_vectors is None) == (memory_mb == 0)
        model.phase = phase
        with torch.no_grad():
            scores.append(model.full_sort_predict(batch))
        torch.manual_seed(6)
        step = model.train().calculate_loss(next(iter(train)))
        total = sum(step) if isinstance(step, tuple) else step
        total.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        losses.append([total.detach(), *grads])
    assert torch.equal(*scores)
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))


def test_a_copy_of_a_model_shares_the_file(build):
    """RecBole copies the whole model to count its operations."""
    model, *_ = build(text_memory_mb=0)
    other = copy.deepcopy(model)
    assert other.catalogue.text_on_disk is model.catalogue.text_on_disk
    assert model.catalogue.text_width not in {buffer.size(-1) for buffer in other.buffers() if buffer.dim() == 2}


def test_a_sample_of_the_text_is_spread_over_the_items_without_padding():
    catalogue = catalogue_of([0, *[1] * 1000])
    assert torch.equal(catalogue.text_sample(1000), catalogue.text_vectors[1:])
    sample = catalogue.text_sample(100)
    places = [int((catalogue.text_vectors == row).all(dim=1).nonzero().squeeze()) for row in sample]
    assert places[0] == 1
    assert places[-1] == 1000
    steps = {after - before for before, after in pairwise(places)}
    assert steps == {10, 11}


def test_adapters_of_large_catalogues_are_scaled_on_a_sample(build, monkeypatch: pytest.MonkeyPatch):
    """With 12 of 25 items, for the aligned and the text expert."""
    monkeypatch.setattr(experts, "SCALE_ROWS", 12)
    measured: list[Tensor] = []
    original = TextAdapter.match_scale
    monkeypatch.setattr(
        TextAdapter, "match_scale", lambda self, rows, std: measured.append(rows) or original(self, rows, std)
    )
    model, *_ = build(adapter_init="matched")
    assert len(measured) == 2
    assert all(torch.equal(rows, model.catalogue.text_sample(12)) and len(rows) == 12 for rows in measured)


# --- ID tables ---------------------------------------------------------------------------------------------


def test_the_table_takes_its_start_values_over_without_a_copy():
    initial = torch.randn(4, 3)
    assert IDVectors(initial, catalogue_of([0, 1, 1, 1]), "mean").weight.data_ptr() == initial.data_ptr()


def test_no_two_experts_share_a_table_and_no_expert_keeps_its_backbones(build):
    model, *_ = build()
    n_items = len(model.catalogue.counts)
    tables = [value for value in model.state_dict().values() if value.dim() == 2 and value.size(0) == n_items]
    assert len(tables) == len({table.data_ptr() for table in tables}) == 2


def test_start_values_do_not_depend_on_the_other_experts(build):
    every = build(experts=["rec", "align", "llm", "match"])[0].state_dict()
    alone = build(phases=["finetune"], experts=["llm"])[0].state_dict()
    assert alone
    assert all(torch.equal(every[name], value) for name, value in alone.items() if name.startswith("experts."))


def test_looking_all_up_and_asking_for_rows_have_gradients_of_the_same_value():
    """Sparse and dense gradients of a lookup with dropped and unseen items agree."""
    torch.manual_seed(8)
    catalogue = catalogue_of([0, 3, 0, 1, 9, 2])
    initial, ids, upstream = torch.randn(6, 4), torch.tensor([0, 2, 4, 5]), torch.randn(4, 4)
    grads = []
    for sparse in (False, True):
        items = IDVectors(initial.clone(), catalogue, "mean", dropout=0.5).train()
        items.sparse = sparse
        torch.manual_seed(9)
        items(ids).backward(upstream)
        grads.append(items.weight.grad)
    assert not grads[0].is_sparse
    assert grads[1].is_sparse
    torch.testing.assert_close(grads[1].to_dense(), grads[0])


def test_own_rows_are_neither_replaced_nor_dropped():
    initial = torch.randn(6, 4)
    items = IDVectors(initial.clone(), catalogue_of([0, 3, 0, 1, 9, 2]), "mean", dropout=0.9).train()
    assert torch.equal(items.own_rows(torch.tensor([2, 4, 4])), initial[[2, 4, 4]])


# --- the catalogue -----------------------------------------------------------------------------------------


def test_log_frequency_is_standardised_over_the_items():
    counts = [0, 4, 0, 17, 1, 1]
    expected = scores_loops.log_frequencies(counts)
    assert catalogue_of(counts).log_frequency.tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_counts_have_a_finite_log_frequency():
    assert catalogue_of([0, 2, 2, 2]).log_frequency[1:].tolist() == [0, 0, 0]


def test_the_model_knows_the_counts_and_bins_of_the_training_split(build, prepared):
    model, train, *_ = build(n_bins=4)
    assert model.catalogue.counts.tolist() == train._dataset.train_counts.tolist()
    assert model.catalogue.bins.tolist() == train._dataset.bins.tolist()
    assert model.catalogue.seen_ids.tolist() == [i for i, n in enumerate(train._dataset.train_counts) if n > 0]
