"""The rivals of PAD: equal to PAD's own experts where they are built from the same parts, else to literal loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.utils import get_model, get_trainer
from torch import Tensor

from recbole_pad.data.dataset import PADDataset
from recbole_pad.data.loader import LengthBucketDataLoader
from recbole_pad.errors import InputError
from recbole_pad.experiments.variants import Variant
from recbole_pad.keys import DATA_KEYS
from recbole_pad.nn.text_transforms import transform_text
from recbole_pad.preflight import model_names, settled_config
from recbole_pad.property_files import model_settings, properties, property_file, unread_keys
from recbole_pad.registration import MODELS
from recbole_pad.rivals.llmesr import CrossAttention, DualEncoder
from recbole_pad.rivals.tower import Tower
from recbole_pad.rivals.trainer import RivalTrainer
from recbole_pad.rivals.unisrec import MoEAdaptor
from recbole_pad.tune.search import _check_space
from recbole_pad.tune.space import read_space
from tests.reference import mmd_loops, rivals_loops, text_transforms_svd

NAMES = [name for name, model in MODELS.items() if model.trainer.endswith("RivalTrainer")]
WITH_IDS = ["IDRec", "IDTextSum", "IDTextConcat", "InfoNCEAligned", "LLMInit", "UniSRec", "LLMESR"]
BACKBONES = ["SASRec", "GRU4Rec", "BERT4Rec", "Caser", "CORE"]  # packed, causal, masked, of fixed length, scaled
PROPERTIES = property_file()
TINY = {
    "state": "ERROR", "show_progress": False, "MAX_ITEM_LIST_LENGTH": 8, "epochs": 2, "train_batch_size": 16,
    "eval_batch_size": 64, "text_encoder": "tfidf", "seed": 7,
}  # fmt: skip
SIZES = {"hidden_size": 16, "embedding_size": 16, "inner_size": 32, "n_layers": 1}

Make = Callable[..., Any]


@pytest.fixture
def config(data_path: Path) -> Make:
    """``config(model, dataset="tiny", **changes)``: a RecBole Config, of small sizes that the backbone knows."""

    def make(model: str, dataset: str = "tiny", **changes: Any) -> Any:
        file = Path(recbole.__file__).parent / "properties" / "model" / f"{changes.get('backbone', 'SASRec')}.yaml"
        known = yaml.safe_load(file.read_text())
        sizes = {key: value for key, value in SIZES.items() if key in known}
        return settled_config(model, dataset, None, {**TINY, **sizes, "data_path": str(data_path), **changes})

    return make


@pytest.fixture
def built(config: Make) -> Make:
    """``built(model, **changes)``: (the model as it starts, train and test loader)."""
    from recbole.data import create_dataset, data_preparation

    def make(model: str, dataset: str = "tiny", **changes: Any) -> Any:
        asked = config(model, dataset, **changes)
        train, _, test = data_preparation(asked, create_dataset(asked))
        return get_model(model)(asked, train._dataset), train, test

    return make


@pytest.fixture
def moved(built: Make) -> Make:
    """As `built`, in evaluation mode, with weights away from their start."""

    def make(model: str, **changes: Any) -> Any:
        network, train, test = built(model, **changes)
        torch.manual_seed(5)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return network.eval(), train, test

    return make


def first_test_batch(test: Any) -> Any:
    return next(iter(test))[0]


def row(batch: Any, number: int) -> Any:
    return {key: batch[key][number : number + 1] for key in ("item_id_list", "item_length", "user_id")}


# --- how they are found -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_recbole_finds_the_model_its_trainer_its_dataset_and_our_loader(name: str, built: Make, config: Make):
    model, train, _ = built(name)
    assert isinstance(model, Tower)
    assert type(model).__name__ == name
    assert name in model_names()
    assert get_trainer(config(name)["MODEL_TYPE"], name) is RivalTrainer
    assert (type(train), type(train._dataset)) == (LengthBucketDataLoader, PADDataset)


# --- keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_shared_keys_have_pads_values_but_for_what_the_experts_differ_in(name: str):
    pad = properties("model", "PAD.yaml")
    differing = {key for key, value in model_settings(name).items() if key in pad and pad[key] != value}
    assert differing - {"learning_rate"} <= {
        "MoRec": set(),
        "IDTextSum": {"id_dropout"},
        "IDTextConcat": {"id_dropout", "fusion_init"},
        "InfoNCEAligned": {"id_dropout", "infonce_temperature"},
        "LLMInit": {"unseen_items"},
        "WhitenRec": {"adapter_layers", "adapter_activation"},
        "LLMESR": {"unseen_items"},
    }.get(name, set())


@pytest.mark.parametrize(
    "file", sorted((PROPERTIES / "base").glob("*.yaml")) + [PROPERTIES / "model" / f"{n}.yaml" for n in NAMES]
)
def test_every_key_is_documented(file: Path):
    for line in file.read_text().splitlines():
        if re.match(r"\w", line) and not line.startswith("bases"):
            assert re.fullmatch(r"\S+: .+  # .+", line), line


def test_a_key_of_pads_that_a_rival_does_not_read_is_refused(config: Make):
    for name, key, value in (
        ("MoRec", "mmd_weight", 0.1),
        ("IDRec", "adapter_layers", 1),
        ("IDRec", "align.learning_rate", 0.1),
        ("LLMInit", "text_transform", "none"),
        ("WhitenRec", "unseen_items", "raw"),
    ):
        with pytest.raises(InputError, match=rf"^{key}: PAD reads that, {name} does not; .*model/{name}.yaml"):
            config(name, **{key: value})


def test_keys_of_the_data_are_known_to_all_of_them(config: Make):
    for name in NAMES:
        assert not unread_keys(name) & set(DATA_KEYS)
        config(name, text_encoder="tfidf", n_bins=5)


def test_an_unknown_key_is_refused_with_the_nearest(config: Make):
    with pytest.raises(InputError, match=r"'relaxed_group' \(did you mean 'relaxed_groups'\?\).*model/WhitenRec.yaml"):
        config("WhitenRec", relaxed_group=2)
    with pytest.raises(InputError, match="loss_type: UniSRec's loss is set by the key `loss`"):
        config("UniSRec", loss_type="BPR")


def test_a_comparison_leaves_out_what_a_rival_does_not_read():
    shared = {"epochs": 3, "mmd_weight": 0.1, "text_encoder": "tfidf", "align.epochs": 2}
    assert Variant("MoRec", "MoRec", {}).ignored(shared) == ["mmd_weight", "align.epochs"]
    assert Variant("PAD", "PAD", {}).ignored(shared) == []
    assert Variant("SASRec", "SASRec", {}).ignored(shared) == []


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("InfoNCEAligned", {"aligned_items": "both"}, "aligned_items: 'both' is not known"),
        ("InfoNCEAligned", {"infonce_weight": -1}, r"infonce_weight: -1 is not a number in \[0, "),
        ("InfoNCEAligned", {"infonce_temperature": 0}, "infonce_temperature: 0 is not"),
        ("LLMInit", {"init_axes": "ica"}, "init_axes: 'ica' is not known"),
        ("WhitenRec", {"relaxed_groups": 0}, "relaxed_groups: 0 is not a whole number"),
        ("WhitenRec", {"relaxed_groups": 999}, "'group_whiten:999' asks for 999"),
        ("UniSRec", {"fine_tuning": "full"}, "fine_tuning: 'full' is not known"),
        ("UniSRec", {"adaptor_experts": 0}, "adaptor_experts: 0 is not a whole number"),
        ("UniSRec", {"adaptor_dropout": 1.0}, "adaptor_dropout: 1.0 is not"),
        ("UniSRec", {"temperature": 0}, "temperature: 0 is not"),
        ("UniSRec", {"contrast_weight": "x"}, "contrast_weight: 'x' is not"),
        ("LLMESR", {"cross_attention": "sum"}, "cross_attention: 'sum' is not known"),
        ("LLMESR", {"cross_heads": 3}, "cross_heads: 3 does not divide the hidden size, 16"),
        ("LLMESR", {"similar_users": 0}, "similar_users: 0 is not a whole number"),
        ("LLMESR", {"distillation_weight": -0.1}, "distillation_weight: -0.1 is not"),
        ("MoRec", {"loss": "bpr"}, "loss: 'bpr' is not known"),
        ("IDRec", {"backbone": "SRGNN"}, "SRGNN cannot serve as a backbone"),
    ],
)
def test_bad_values_are_refused(built: Make, name: str, changes: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        built(name, **changes)


@pytest.mark.parametrize("name", NAMES)
def test_the_shipped_space_has_its_own_keys_and_none_that_is_not_read(name: str, config: Make):
    space = read_space(None, name)
    base = config(name)
    _check_space(space, base, lambda chosen: config(name, **chosen))
    own = set(properties("model", f"{name}.yaml")) - {"bases"}
    searched = {entry.key for entry in space.parameters}
    assert not searched & unread_keys(name)
    assert name == "IDRec" or name == "MoRec" or searched & own


# --- equal to PAD's experts -------------------------------------------------------------------------------

OF_PAD = [  # a rival, PAD's phase, and what makes PAD's expert the same
    ("IDRec", "pretrain", {}, {}),
    ("MoRec", "finetune", {"experts": ["llm"]}, {}),
    ("IDTextSum", "align", {"align_loss": "none", "fusion": "add", "id_dropout": 0.0}, {}),
    (
        "IDTextConcat",
        "align",
        {"align_loss": "none", "fusion": "concat", "id_dropout": 0.0, "fusion_init": "xavier"},
        {},
    ),
    (
        "InfoNCEAligned",
        "align",
        {"align_loss": "infonce", "mmd_weight": 0.1, "id_dropout": 0.0},
        {"aligned_items": "fused", "infonce_temperature": 0.1},
    ),
]


@pytest.mark.parametrize("loss", ["ce", "bce", "sampled_softmax"])
@pytest.mark.parametrize(("name", "phase", "of_pad", "own"), OF_PAD)
def test_the_model_is_an_expert_of_pad_with_its_start_loss_and_scores(
    built: Make, name: str, phase: str, of_pad: dict[str, Any], own: dict[str, Any], loss: str
):
    rival, train, test = built(name, loss=loss, n_negatives=3, **own)
    pad, _, _ = built("PAD", loss=loss, n_negatives=3, phases=[phase], learning_rate=0.001, **of_pad)
    batch, losses = next(iter(train)), []
    for model in (rival, pad):
        torch.manual_seed(3)
        value = model.calculate_loss(batch)
        losses.append([float(part) for part in (value if isinstance(value, tuple) else (value,))])
    if name == "InfoNCEAligned" and loss != "ce":  # PAD also aligns the negatives that it has drawn
        assert losses[0][0] == losses[1][0]
    else:
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    with torch.no_grad():
        assert torch.equal(*(model.eval().full_sort_predict(first_test_batch(test)) for model in (rival, pad)))


# --- scores -----------------------------------------------------------------------------------------------


def literal_scores(model: Tower, batch: Any) -> Tensor:
    """Users and items one at a time."""
    table = model.items(None)
    rows = []
    for number in range(len(batch)):
        one = row(batch, number)
        state = model.encoder.last_state(table, one["item_id_list"], one["item_length"], one["user_id"])
        state = model.scored_states(state)[0]
        items = [model.scored_items(model.items(torch.tensor([item])))[0] for item in range(1, model.n_items)]
        rows.append(torch.stack([(state * item).sum() for item in items]))
    return torch.stack(rows)


@pytest.mark.parametrize("backbone", ["SASRec", "Caser"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_inner_products_of_states_and_items(moved: Make, name: str, backbone: str, monkeypatch: Any):
    model, _, test = moved(name, backbone=backbone)
    batch = first_test_batch(test)
    with torch.no_grad():
        expected = literal_scores(model, batch)
        torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], expected, atol=1e-4, rtol=1e-4)
        batch["item_id"] = torch.arange(len(batch)) % (model.n_items - 1) + 1
        own = expected[torch.arange(len(batch)), batch["item_id"] - 1]
        torch.testing.assert_close(model.predict(batch), own, atol=1e-4, rtol=1e-4)
        monkeypatch.setattr(Tower, "_memory", 400)  # a catalogue that is too large to be kept
        model.eval()
        assert model._every_item() is None
        torch.testing.assert_close(model.full_sort_predict(batch)[:, 1:], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_kept_vectors_do_not_outlive_the_weights(moved: Make, name: str):
    model, _, test = moved(name)
    batch = first_test_batch(test)
    with torch.no_grad():
        before = model.full_sort_predict(batch)
        changed = {key: value + 0.1 for key, value in model.state_dict().items()}
        model.load_state_dict(changed)
        after = model.full_sort_predict(batch)
        assert not torch.allclose(before, after)
        model.train()
        model.eval()
        assert torch.equal(model.full_sort_predict(batch), after)


@pytest.mark.parametrize("name", NAMES)
def test_start_values_depend_on_the_seed_alone(built: Make, name: str):
    torch.manual_seed(1)
    first = built(name)[0].state_dict()
    torch.manual_seed(2)
    again, other = built(name)[0].state_dict(), built(name, seed=8)[0].state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", NAMES)
def test_text_vectors_are_neither_trained_nor_stored(built: Make, name: str):
    model, train, _ = built(name)
    assert not any("text_vectors" in key or "similar" in key for key in model.state_dict())
    loss = model.calculate_loss(next(iter(train)))
    (sum(loss) if isinstance(loss, tuple) else loss).backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "a weight that nothing trains"
    assert (model.text_fingerprint is None) == (name == "IDRec")


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("IDRec", "LLMInit")])
def test_text_vectors_that_stay_on_disk_give_the_same_scores(built: Make, name: str):
    scores = []
    for memory_mb in (1024, 0):
        model, train, test = built(name, text_memory_mb=memory_mb)
        model.eval().calculate_loss(next(iter(train)))
        with torch.no_grad():
            scores.append(model.full_sort_predict(first_test_batch(test)))
        assert (model.catalogue.text_on_disk is None) == (memory_mb > 0)
    torch.testing.assert_close(*scores)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_lowers_the_loss_of_its_batch(moved: Make, name: str, backbone: str):
    """The gradient is that of the loss: a small enough step along it goes down."""
    model, train, _ = moved(name, backbone=backbone)
    batch = next(iter(train))

    def loss() -> Tensor:
        value = model.calculate_loss(batch)
        return sum(value) if isinstance(value, tuple) else value

    before = loss()
    before.backward()
    with torch.no_grad():
        total = sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * before / total * parameter.grad
    change = (before - loss()).item() / before.item()
    assert change == pytest.approx(1e-3, rel=0.15)


@pytest.mark.parametrize("name", ["MoRec", "UniSRec", "LLMESR"])
def test_bfloat16_scores_are_near_those_of_float32(built: Make, name: str):
    batches = []
    for precision in ("float32", "bfloat16"):
        model, train, test = built(name, precision=precision)
        loss = model.eval().calculate_loss(next(iter(train)))
        with torch.no_grad():
            batches.append((model.full_sort_predict(first_test_batch(test)), loss))
    (exact, loss), (near, near_loss) = batches
    assert exact.dtype == near.dtype == torch.float32
    assert 0 < (exact - near).abs().max() < 0.1 * exact.abs().max()
    assert torch.stack(list(near_loss if isinstance(near_loss, tuple) else [near_loss])).tolist() == pytest.approx(
        torch.stack(list(loss if isinstance(loss, tuple) else [loss])).tolist(), rel=0.05, abs=1e-3
    )


@pytest.mark.parametrize("name", [name for name in WITH_IDS if name not in ("IDRec", "LLMInit")])
def test_an_item_without_training_is_scored_by_its_text(moved: Make, name: str):
    """Two never-seen items share the ID half, where it is the mean of the rarest, and differ by their text."""
    model, _, _ = moved(name, unseen_items="mean", **({"aligned_items": "fused"} if name == "InfoNCEAligned" else {}))
    unseen = (~model.catalogue.seen).nonzero().flatten()[1:]
    assert len(unseen) >= 2
    vectors = model.item_vectors(unseen)
    assert not torch.allclose(vectors[0], vectors[1])
    ids = next(module for module in model.items.modules() if type(module).__name__ == "IDVectors")
    halves = ids(unseen)
    assert torch.equal(halves[0], halves[1])


# --- LLMInit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LLMInit", "LLMESR"])
def test_the_table_starts_from_the_principal_components_at_the_usual_scale(built: Make, name: str):
    usual = built("IDRec" if name == "LLMInit" else "IDTextSum")[0].items
    usual = (usual if name == "LLMInit" else usual.ids).weight[1:]
    model, train, _ = built(name)
    ids = model.items if name == "LLMInit" else model.items.first
    table = train._dataset.text_table
    items = np.asarray(table.read(), dtype=np.float64)[1:]
    k = min(16, table.width)
    components = text_transforms_svd.pca(items, k)
    scaled = components * (usual.std().item() / components.std(ddof=1))
    np.testing.assert_allclose(ids.weight[1:, :k].detach().numpy(), scaled, atol=1e-5)
    assert torch.equal(ids.weight[1:, k:], usual[:, k:])
    assert (ids.weight[0] == 0).all()
    assert ids.weight.requires_grad


def test_text_narrower_than_the_table_leaves_the_last_columns_random(built: Make):
    usual, started = (built(name, hidden_size=64)[0].items.weight for name in ("IDRec", "LLMInit"))
    width = built("MoRec")[0].catalogue.text_width
    assert width < 64, "the tiny texts span fewer directions than their vectors have columns"
    assert torch.equal(usual[:, width:], started[:, width:])
    assert not torch.equal(usual[:, :width], started[:, :width])


def test_whitened_components_have_equal_variance(built: Make):
    weight = built("LLMInit", init_axes="whiten", hidden_size=4)[0].items.weight[1:]
    spread = weight.std(dim=0, correction=0)
    torch.testing.assert_close(spread, spread.mean().expand(4), rtol=1e-3, atol=0)


# --- WhitenRec --------------------------------------------------------------------------------------------


def correlated(seed: int, n_items: int = 80, width: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.vstack([np.zeros(width), rng.normal(size=(n_items, width)) @ rng.normal(size=(width, width)) + 2.0])


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), n_groups=st.integers(1, 7))
def test_group_whitening_is_the_inverse_root_of_each_groups_covariance(seed: int, n_groups: int):
    vectors = correlated(seed)
    got = transform_text(vectors, f"group_whiten:{n_groups}")
    assert (got[0] == 0).all()
    expected = rivals_loops.group_whiten(vectors[1:], n_groups)
    conditions = [
        np.linalg.cond(np.cov(vectors[1:, columns].T, bias=True).reshape(len(columns), -1))
        for columns in np.array_split(np.arange(7), n_groups)
    ]
    if max(conditions) < 1e4:  # directions of less variance are noise, and are dropped
        np.testing.assert_allclose(got[1:].numpy(), expected, atol=0.03)


@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_each_group_has_the_covariance_identity_and_groups_stay_correlated(n_groups: int):
    got = transform_text(correlated(0, 500), f"group_whiten:{n_groups}")[1:].double().numpy()
    covariance = np.cov(got.T, bias=True)
    groups = np.array_split(np.arange(7), n_groups)
    for columns in groups:
        np.testing.assert_allclose(covariance[np.ix_(columns, columns)], np.eye(len(columns)), atol=2e-2)
    between = covariance - np.eye(7)
    assert (np.abs(between).max() > 0.1) == (n_groups > 1)


def test_group_whitening_drops_columns_without_variance_and_refuses_equal_vectors():
    vectors = correlated(1)
    vectors[1:, 2:4] = 5.0
    got = transform_text(vectors, "group_whiten:2")
    assert got.shape == vectors.shape
    assert got.isfinite().all()
    assert (got[:, 2:4].abs() < 1e-5).all()
    with pytest.raises(InputError, match="all text vectors are equal"):
        transform_text(np.ones((5, 3)), "group_whiten:2")
    for spec in ("group_whiten", "group_whiten:8"):
        with pytest.raises(InputError, match="group_whiten"):
            transform_text(correlated(1), spec)


@pytest.mark.parametrize("n_groups", [1, 3])
def test_one_head_reads_both_whitened_vectors_and_their_sum_is_the_item(moved: Make, n_groups: int):
    model, train, _ = moved("WhitenRec", relaxed_groups=n_groups)
    raw = np.asarray(train._dataset.text_table.read(), dtype=np.float64)
    layers = list(model.items.parts[0].adapter.layers)
    assert [type(layer).__name__ for layer in layers] == ["Linear", "ReLU", "Dropout", "Linear"]

    def head(vectors: Tensor) -> Tensor:
        hidden = torch.relu(vectors @ layers[0].weight.T + layers[0].bias)
        return hidden @ layers[3].weight.T + layers[3].bias

    expected = sum(head(transform_text(raw, f"group_whiten:{n}")) for n in sorted({1, n_groups}))
    torch.testing.assert_close(model.item_vectors()[1:], expected[1:], atol=1e-4, rtol=1e-4)
    assert len({id(part.adapter) for part in model.items.parts}) == 1


@pytest.mark.parametrize(("name", "part"), [("WhitenRec", "parts"), ("UniSRec", "parts"), ("LLMESR", "second")])
def test_text_starts_as_large_as_ids(built: Make, name: str, part: str):
    model = built(name, **({"relaxed_groups": 1} if name == "WhitenRec" else {}))[0].eval()
    module = model.items.second if part == "second" else model.items.parts[0]
    assert module(None)[1:].std().item() == pytest.approx(0.02, rel=0.12)  # SASRec's `initializer_range`


# --- UniSRec ----------------------------------------------------------------------------------------------


def filled_adaptor(seed: int = 0) -> MoEAdaptor:
    torch.manual_seed(seed)
    adaptor = MoEAdaptor(text_width=5, hidden_size=3, n_experts=4, dropout=0.0)
    for parameter in adaptor.parameters():
        torch.nn.init.normal_(parameter)
    return adaptor


def test_the_adaptor_mixes_parametric_whitenings_by_hand():
    adaptor, text = filled_adaptor().eval(), torch.randn(6, 5)
    parts = [parameter.tolist() for parameter in (adaptor.shift, adaptor.weight, adaptor.gate)]
    expected = [rivals_loops.moe_adaptor(own, *parts) for own in text.tolist()]
    torch.testing.assert_close(adaptor(text), torch.tensor(expected), atol=1e-4, rtol=1e-4)


def test_the_gate_is_noisy_in_training_as_its_noise_weights_say():
    adaptor, text = filled_adaptor().train(), torch.randn(6, 5)
    torch.manual_seed(9)
    got = adaptor(text)
    torch.manual_seed(9)
    drawn = torch.randn(6, 4)
    scale = torch.log1p(torch.exp(text @ adaptor.noise)) + 0.01
    parts = [parameter.tolist() for parameter in (adaptor.shift, adaptor.weight, adaptor.gate)]
    rows = zip(text.tolist(), (drawn * scale).tolist(), strict=True)
    expected = [rivals_loops.moe_adaptor(own, *parts, noise) for own, noise in rows]
    torch.testing.assert_close(got, torch.tensor(expected), atol=1e-3, rtol=1e-3)
    assert not torch.equal(adaptor(text), adaptor(text))
    assert torch.equal(adaptor.eval()(text), adaptor(text))


def test_scores_are_cosines_by_the_temperature(moved: Make):
    model, _, test = moved("UniSRec", temperature=0.25)
    batch = first_test_batch(test)
    with torch.no_grad():
        scores = model.full_sort_predict(batch)[:, 1:]
        states = model.encoder.last_state(model.items(None), *row(batch, 0).values())
        cosines = [mmd_loops.cosine(states[0].tolist(), item.tolist()) for item in model.items(None)[1:]]
    assert scores.abs().max() <= 4.0 + 1e-4
    assert scores[0].tolist() == pytest.approx([4 * cosine for cosine in cosines], abs=1e-3)


def test_the_inductive_setting_has_no_ids_and_the_transductive_adds_them(moved: Make):
    text_only, both = moved("UniSRec", fine_tuning="inductive")[0], moved("UniSRec")[0]
    assert text_only.items(None).shape == both.items(None).shape
    n_ids = both.n_items * 16
    n_parameters = [sum(p.numel() for p in model.parameters()) for model in (text_only, both)]
    assert n_parameters[1] - n_parameters[0] == n_ids
    text, ids = both.items.parts
    assert torch.equal(both.items(None), text(None) + ids(None))


def test_the_sequence_item_contrast_is_that_of_the_loops(moved: Make):
    model, train, _ = moved("UniSRec", contrast_weight=0.5, temperature=0.3)
    batch = next(iter(train))
    positions = model._reader.positions(batch)
    table = model.items(None)
    states = positions.states(model.encoder, table, positions.item_seq)
    target = positions.target.tolist()
    assert len(set(target)) < len(target), "some target repeats"
    expected = rivals_loops.sequence_item_contrast(
        states.tolist(), [table[item].tolist() for item in target], target, 0.3
    )
    assert model.calculate_loss(batch)[1].item() == pytest.approx(0.5 * expected, rel=1e-4)


# --- InfoNCEAligned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("aligned_items", ["id", "fused"])
def test_infonce_compares_the_distinct_items_of_the_batch(moved: Make, aligned_items: str):
    model, train, _ = moved("InfoNCEAligned", aligned_items=aligned_items, infonce_weight=0.3, infonce_temperature=0.2)
    batch = next(iter(train))
    items = sorted({*batch["item_id_list"].flatten().tolist(), *batch["item_id"].tolist()} - {0})
    text = model.items.text.adapter(model.catalogue.text_vectors[items]).tolist()
    expected = mmd_loops.info_nce(text, model.items.ids.weight[items].tolist(), 0.2)
    assert model.calculate_loss(batch)[1].item() == pytest.approx(0.3 * expected, rel=1e-4)


def test_without_weight_there_is_no_second_loss(moved: Make):
    for name, key in (("InfoNCEAligned", "infonce_weight"), ("LLMESR", "distillation_weight")):
        model, train, _ = moved(name, **{key: 0.0})
        assert isinstance(model.calculate_loss(next(iter(train))), Tensor)


# --- LLM-ESR ----------------------------------------------------------------------------------------------


def test_each_view_attends_to_itself_asked_by_the_other():
    torch.manual_seed(1)
    cross = CrossAttention(hidden_size=4, n_heads=2, max_length=6, dropout=0.5).eval()
    for parameter in cross.parameters():
        torch.nn.init.normal_(parameter)
    views = torch.randn(2, 1, 5, 4)
    places = cross.positions.weight.tolist()
    inputs = [
        [[2 * x + p for x, p in zip(vector, places[t], strict=True)] for t, vector in enumerate(view[0].tolist())]
        for view in views
    ]
    got = cross(*views)
    for own, other, result, layer in (
        (inputs[0], inputs[1], got[0], cross.of_first),
        (inputs[1], inputs[0], got[1], cross.of_second),
    ):
        expected = rivals_loops.attention(
            other,
            own,
            layer.in_proj_weight.detach().numpy(),
            layer.in_proj_bias.tolist(),
            layer.out_proj.weight.detach().numpy(),
            layer.out_proj.bias.tolist(),
            heads=2,
        )
        torch.testing.assert_close(result[0], torch.tensor(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cross_attention", ["replace", "add", "none"])
@pytest.mark.parametrize("backbone", ["SASRec", "GRU4Rec"])
def test_a_position_sees_its_past_only(moved: Make, backbone: str, cross_attention: str):
    """With positions counted from the oldest item, the state of a position is the last state of its prefix."""
    positions = "absolute" if backbone == "SASRec" else "auto"
    model, train, _ = moved("LLMESR", backbone=backbone, cross_attention=cross_attention, positions=positions)
    batch = next(iter(train))
    item_seq, length, user = batch["item_id_list"][:1], batch["item_length"][:1], batch["user_id"][:1]
    table = model.items(None)
    states = model.encoder.position_states(table, item_seq, length, user)
    assert states.shape == (int(length), 2 * 16)
    for n in range(1, int(length) + 1):
        prefix = torch.where(torch.arange(item_seq.size(1)) < n, item_seq, 0)
        own = model.encoder.last_state(table, prefix, torch.tensor([n]), user)
        torch.testing.assert_close(states[n - 1], own[0], atol=1e-5, rtol=1e-4)


def test_without_cross_attention_the_views_are_two_towers_of_one_encoder(moved: Make):
    model, _, test = moved("LLMESR", cross_attention="none")
    assert isinstance(model.encoder, DualEncoder)
    batch = row(first_test_batch(test), 0)
    table = model.items(None)
    halves = [model.encoder.backbone.last_state(half.contiguous(), *batch.values()) for half in table.chunk(2, dim=1)]
    torch.testing.assert_close(model.encoder.last_state(table, *batch.values()), torch.cat(halves, dim=1))


def train_histories(dataset: Any) -> dict[int, list[int]]:
    histories = dataset.train_histories
    return {
        user: histories.items[start:end].tolist()
        for user, (start, end) in enumerate(zip(histories.offsets[:-1], histories.offsets[1:], strict=True))
        if end > start
    }


def test_similar_users_are_the_nearest_by_the_mean_text_of_their_items(built: Make):
    model, train, _ = built("LLMESR", similar_users=3)
    histories = train_histories(train._dataset)
    text = model.catalogue.text_vectors.double().tolist()
    every = rivals_loops.similar_users(histories, text, len(histories))
    vectors = {u: np.mean([text[item] for item in items], axis=0) for u, items in histories.items()}

    def cosine(a: int, b: int) -> float:
        return mmd_loops.cosine(vectors[a].tolist(), vectors[b].tolist())

    for user, expected in every.items():
        found = model.similar.neighbours[user].tolist()
        assert user not in found
        assert len(set(found)) == 3
        assert [cosine(user, other) for other in found] == pytest.approx(
            [cosine(user, other) for other in expected[:3]], abs=1e-5
        )
    for user, items in histories.items():
        length = int(model.similar.item_seq_len[user])
        assert model.similar.item_seq[user].tolist() == items[-8:] + [0] * (8 - length)


@pytest.mark.parametrize("backbone", ["SASRec", "BERT4Rec", "Caser"])
def test_users_learn_from_the_mean_state_of_similar_users(moved: Make, backbone: str):
    model, train, _ = moved("LLMESR", backbone=backbone, similar_users=2, distillation_weight=0.7)
    batch = next(iter(train))
    histories, table = train_histories(train._dataset), model.items(None)
    n_columns = batch["item_id_list"].size(1)

    def state(items: list[int], user: int) -> list[float]:
        item_seq = torch.tensor([items + [0] * (n_columns - len(items))])
        return model.encoder.last_state(table, item_seq, torch.tensor([len(items)]), torch.tensor([user]))[0].tolist()

    students, teachers = [], []
    for number in range(len(batch)):
        user, length = int(batch["user_id"][number]), int(batch["item_length"][number])
        students.append(state(batch["item_id_list"][number, :length].tolist(), user))
        similar = model.similar.neighbours[user].tolist()
        teachers.append([state(histories[other][-8:], other) for other in similar])
    expected = 0.7 * rivals_loops.distillation(students, teachers)
    assert model.calculate_loss(batch)[1].item() == pytest.approx(expected, rel=1e-4)


def test_similar_users_give_no_gradient(moved: Make):
    model, train, _ = moved("LLMESR", similar_users=2)
    batch = next(iter(train))
    model.calculate_loss(batch)[1].backward()
    positions = model._reader.positions(batch)
    read = set(positions.item_seq.flatten().tolist())
    moved_rows = set(model.items.first.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist())
    assert moved_rows <= read
    users = torch.unique(model.similar.neighbours[positions.user])
    assert not set(model.similar.item_seq[users].flatten().tolist()) <= read, "teachers read other items too"


# --- training ---------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_a_number_ends_the_training(built: Make, config: Make, tmp_path: Path):
    model, train, _ = built("IDRec")
    trainer = RivalTrainer(config("IDRec", checkpoint_dir=str(tmp_path), learning_rate=1e30), model)
    with pytest.raises(InputError, match=r"IDRec: the training loss is NaN: .* than 1e\+30, or"):
        trainer.fit(train)


def test_each_epoch_has_an_order_of_its_own_and_a_resumed_run_the_same(built: Make, config: Make, tmp_path: Path):
    orders: dict[str, list[list[int]]] = {}
    for run, epochs in (("whole", (0, 1)), ("again", (0, 1)), ("resumed", (1,))):
        model, train, _ = built("IDRec")
        trainer = RivalTrainer(config("IDRec", checkpoint_dir=str(tmp_path)), model)
        for epoch in epochs:
            seen: list[int] = []

            def spy(interaction: Any, seen: list[int] = seen, model: Any = model) -> Any:
                seen.extend(interaction["user_id"].tolist())
                return type(model).calculate_loss(model, interaction)

            trainer._train_epoch(train, epoch, spy)
            orders.setdefault(run, []).append(seen)
    assert orders["whole"] == orders["again"]
    assert orders["whole"][0] != orders["whole"][1]
    assert orders["resumed"] == orders["whole"][1:]
