"""A user's own class as a backbone: how it is found, what it is asked, and what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.config import Config

from recbole_pad.backbone_classes import (
    OWN_SPEC,
    backbone_spec,
    own_files,
    own_settings_files,
    settings_file,
    train_rows_of,
)
from recbole_pad.backbones import BACKBONES
from recbole_pad.checkpoint import fingerprint
from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell
from recbole_pad.experiments.variants import parse_variants
from recbole_pad.model.backbone import Backbone
from recbole_pad.model.backbone_laws import check_laws
from recbole_pad.model.pad import PAD
from recbole_pad.trainer import PADTrainer
from recbole_pad.tune.search import _check_space, _signature
from recbole_pad.tune.space import read_space

MODULE = "own_models_of_a_test"
SOURCE = '''
import torch
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.model.sequential_recommender import BERT4Rec, GRU4Rec, HGN, SASRec
from recbole_pad.backbones import BackboneSpec


class Same(GRU4Rec):
    pad_backbone = BackboneSpec("sequences")


class Silent(GRU4Rec):
    """Says nothing of itself."""


class Packed(SASRec):
    pad_backbone = BackboneSpec("sequences", position_table="position_embedding", causal_encoder="trm_encoder")


class Mean(SequentialRecommender):
    """The mean of the history's vectors, with a setting of its own; subclasses break one law each."""

    pad_backbone = BackboneSpec("prefixes")
    calls = 0

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = torch.nn.Embedding(self.n_items, config["mean_size"], padding_idx=0)

    def forward(self, item_seq, item_seq_len):
        return self.item_embedding(item_seq).sum(1) / item_seq_len[:, None]


class Random(Mean):
    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len) + torch.randn(1)


class SecondTable(Mean):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.other = torch.nn.Embedding(self.n_items, config["mean_size"], padding_idx=0)

    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len) + self.other(item_seq).sum(1)


class NamedTable(SecondTable):
    pad_backbone = BackboneSpec("prefixes", spare_tables=("other",))


class Neighbours(Mean):
    def forward(self, item_seq, item_seq_len):
        states = super().forward(item_seq, item_seq_len)
        return states - states.mean(0)


class Padded(Mean):
    def forward(self, item_seq, item_seq_len):
        return self.item_embedding(item_seq).mean(1)


class PaddedSaysSo(Padded):
    pad_backbone = BackboneSpec("prefixes", fixed_length=True)


class Peeks(Mean):
    pad_backbone = BackboneSpec("sequences")

    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len)[:, None].expand(-1, item_seq.size(1), -1)


class Narrow(Mean):
    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len)[:, :-1]


class Another(Mean):
    def forward(self, item_seq):
        return self.item_embedding(item_seq).sum(1)


class AnotherSaysSo(Another):
    pad_backbone = BackboneSpec("prefixes", lambda core, seq, length, user: core(seq))


class NoTable(SequentialRecommender):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.items = torch.nn.Embedding(self.n_items, 4)


class SmallTable(NoTable):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = torch.nn.Embedding(3, 4)


class Plainest(SequentialRecommender):
    """Says nothing, inherits no backbone."""


class WrongSpec(Mean):
    pad_backbone = "sequences"


class WrongRows(Mean):
    pad_backbone = BackboneSpec("both")


class Plain:
    """No model."""


class Own4Rec(BERT4Rec):
    """Inherits how it is called and its mask token."""


class OwnHGN(HGN):
    """Inherits how it is called and its second table."""


class Tail(Mean):
    """Reads the newest item where left-padded code has it."""

    pad_backbone = BackboneSpec("prefixes", fixed_length=True)

    def forward(self, item_seq, item_seq_len):
        return self.item_embedding(item_seq)[:, -1] + 0 * item_seq_len[:, None]


class Constant(Mean):
    def forward(self, item_seq, item_seq_len):
        return 1 + 0 * super().forward(item_seq, item_seq_len)


class ByUser(Mean):
    def forward(self, item_seq, user):
        return super().forward(item_seq, user)


class Steps(Mean):
    """A causal mean at every position; subclasses leak."""

    pad_backbone = BackboneSpec("sequences")

    def states(self, item_seq):
        x = self.item_embedding(item_seq)
        return x.cumsum(1) / torch.arange(1, item_seq.size(1) + 1, device=x.device)[:, None]

    def forward(self, item_seq, item_seq_len):
        return self.gather_indexes(self.states(item_seq), item_seq_len - 1)


class NamedArguments(Steps):
    def forward(self, item_seq, item_seq_len):
        return self.gather_indexes(output=self.states(item_seq), gather_index=item_seq_len - 1)


class FarAhead(Steps):
    def states(self, item_seq):
        x = self.item_embedding(item_seq)
        return super().states(item_seq) + x + x[:, 7:].sum(1, keepdim=True)


class GatedAtZero(Steps):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.alpha = torch.nn.Parameter(torch.zeros(1))

    def states(self, item_seq):
        return super().states(item_seq) + self.alpha * self.item_embedding(item_seq).sum(1, keepdim=True)


class Before(Steps):
    """Its own state is that of the last item but one."""

    def forward(self, item_seq, item_seq_len):
        return self.gather_indexes(self.states(item_seq), (item_seq_len - 2).clamp(min=0))


class Windowed(SASRec):
    pad_backbone = BackboneSpec("sequences", position_table="position_embedding", causal_encoder="trm_encoder")

    def get_attention_mask(self, item_seq, bidirectional=False):
        return super().get_attention_mask(item_seq, bidirectional)


class Mixed(SASRec):
    """Packed rows are one row for what stands before the encoder."""

    pad_backbone = BackboneSpec("sequences", position_table="position_embedding", causal_encoder="trm_encoder")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.gru = torch.nn.GRU(config["hidden_size"], config["hidden_size"], batch_first=True)

    def forward(self, item_seq, item_seq_len):
        positions = self.position_embedding(torch.arange(item_seq.size(1), device=item_seq.device)[None])
        x = self.gru(self.item_embedding(item_seq) + positions)[0]
        return self.gather_indexes(self.trm_encoder(x, None, True)[-1], item_seq_len - 1)


class FromOne(Steps):
    pad_backbone = BackboneSpec("sequences", position_table="positions")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.positions = torch.nn.Embedding(config["MAX_ITEM_LIST_LENGTH"] + 1, config["mean_size"])

    def states(self, item_seq):
        return super().states(item_seq) + self.positions(torch.arange(1, item_seq.size(1) + 1)[None])


class FromZero(FromOne):
    def states(self, item_seq):
        return Steps.states(self, item_seq) + self.positions(torch.arange(item_seq.size(1))[None])


class NotFinite(Mean):
    def forward(self, item_seq, item_seq_len):
        return super().forward(item_seq, item_seq_len) / (item_seq_len[:, None] - 1)


class Scaled(torch.nn.Embedding):
    def forward(self, items):
        return 8 * super().forward(items)


class ScaledTable(Mean):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.item_embedding = Scaled(self.n_items, config["mean_size"], padding_idx=0)


class NoKey(Mean):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.size = config["no_such_key"] + 1


class NoSuchTable(Mean):
    pad_backbone = BackboneSpec("prefixes", position_table="nowhere")


class NoEmbedding(Mean):
    pad_backbone = BackboneSpec("prefixes", position_table="table")

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.table = torch.nn.Linear(3, 3)


class NoPositions(SASRec):
    pad_backbone = BackboneSpec("sequences", causal_encoder="trm_encoder")


class Normed(Mean):
    """Weight norm computes the weight anew at each call."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["mean_size"]
        self.old_norm = torch.nn.utils.spectral_norm(torch.nn.Linear(size, size))
        self.new_norm = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(size, size))
        self.batch_norm = torch.nn.BatchNorm1d(size)

    def forward(self, item_seq, item_seq_len):
        return self.batch_norm(self.new_norm(self.old_norm(super().forward(item_seq, item_seq_len))))


class Keyed(SASRec):
    """With a settings file of its own, that names one key."""
'''


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module above, importable; returns its file."""
    folder = tmp_path / "own"
    folder.mkdir()
    file = folder / f"{MODULE}.py"
    file.write_text(SOURCE, encoding="utf-8")
    (folder / "Mean.yaml").write_text("mean_size: 12\n", encoding="utf-8")
    (folder / "Keyed.yaml").write_text("my_key: 0.5\nhidden_dropout_prob: 0.25\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    yield file
    sys.modules.pop(MODULE, None)


def build(prepared: Callable[..., Any], name: str, **changes: Any) -> Backbone:
    settings, _, train, *_ = prepared(dataset="chain", backbone=f"{MODULE}:{name}", **changes)
    backbone = Backbone(settings["backbone"], settings, train._dataset)
    check_laws(settings["backbone"], backbone, settings["MAX_ITEM_LIST_LENGTH"])
    return backbone


def pretrained(prepared: Callable[..., Any], backbone: str, **more: Any) -> tuple[dict[str, float], str]:
    """Test result after phase 1, and the fingerprint of the phase."""
    changes = {"phases": ["pretrain"], "learning_rate": 0.001, **more}
    settings, _, train, valid, test = prepared(dataset="chain", backbone=backbone, **changes)
    model = PAD(settings, train._dataset)
    trainer = PADTrainer(settings, model)
    trainer.fit(train, valid, verbose=False, saved=False)
    return dict(trainer.evaluate(test, load_best_model=False)), fingerprint(settings, train._dataset, "pretrain")


def test_an_own_class_trains_like_recboles_model_of_which_it_is_a_copy(prepared):
    for stock, own in [("GRU4Rec", "Same"), ("SASRec", "Packed")]:
        expected, name_of_stock = pretrained(prepared, stock)
        found, name_of_own = pretrained(prepared, f"{MODULE}:{own}")
        assert 0 < expected["mrr@10"] < 1
        assert found == expected
        assert name_of_own != name_of_stock


def test_an_own_class_that_says_nothing_learns_from_prefixes(prepared):
    found, _ = pretrained(prepared, f"{MODULE}:Silent", dropout_prob=0.0)
    expected, _ = pretrained(prepared, "GRU4Rec", train_rows="prefixes", dropout_prob=0.0)
    assert found == pytest.approx(expected, rel=1e-3)  # fixed_length only adds columns of padding


def test_all_phases_run_on_an_own_class_with_its_own_settings(prepared):
    settings, _, train, valid, _test = prepared(dataset="chain", backbone=f"{MODULE}:Mean", epochs=1)
    model = PAD(settings, train._dataset)
    PADTrainer(settings, model).fit(train, valid, verbose=False, saved=False)
    assert model.phase == "finetune"
    assert model._expert("rec").backbone.width == 12


def test_rivals_run_on_an_own_class(prepared):
    from recbole.utils import get_model

    settings, _, train, *_ = prepared("IDTextSum", dataset="chain", backbone=f"{MODULE}:Packed")
    loss = get_model("IDTextSum")(settings, train._dataset).calculate_loss(next(iter(train)))
    assert torch.isfinite(loss)


def test_settings_come_from_recbole_and_from_a_file_beside_each_own_class(config, own_models):
    recbole_file = settings_file("GRU4Rec")
    assert recbole_file is not None
    assert recbole_file.name == "GRU4Rec.yaml"
    assert settings_file(f"{MODULE}:Same") == recbole_file
    assert own_settings_files(f"{MODULE}:Same") == own_settings_files("SASRec") == []
    assert settings_file(f"{MODULE}:Padded") is None
    assert own_settings_files(f"{MODULE}:Padded") == [own_models.with_name("Mean.yaml")]
    own_models.with_name("Padded.yaml").write_text("mean_size: 14\n", encoding="utf-8")
    assert own_settings_files(f"{MODULE}:Padded") == [own_models.with_name(f"{n}.yaml") for n in ("Mean", "Padded")]
    assert config(backbone=f"{MODULE}:Padded")["mean_size"] == 14
    assert config(backbone=f"{MODULE}:Mean")["mean_size"] == 12
    assert config(backbone=f"{MODULE}:Mean", mean_size=20)["mean_size"] == 20
    with pytest.raises(InputError, match="unknown config key 'mean_size'"):
        config(backbone="SASRec", mean_size=20)


def test_a_file_of_an_own_class_wins_over_the_model_it_inherits_from_and_over_pad(prepared):
    settings, *_ = prepared(dataset="chain", backbone=f"{MODULE}:Keyed", hidden_dropout_prob=0.4)
    assert (settings["my_key"], settings["hidden_dropout_prob"], settings["n_layers"]) == (0.5, 0.4, 2)
    base = {"dataset": "chain", "backbone": f"{MODULE}:Keyed", "data_path": settings["data_path"]}
    assert Config("PAD", config_dict=base)["hidden_dropout_prob"] == 0.25


@pytest.mark.parametrize("content", ["- a\n", "a: [\n", "word\n"])
def test_a_settings_file_that_is_no_mapping_is_refused(config, own_models, content: str):
    own_models.with_name("Mean.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"Mean\.yaml"):
        config(backbone=f"{MODULE}:Mean")


def test_what_a_class_says_of_itself_is_its_spec():
    assert backbone_spec(f"{MODULE}:Same").rows == "sequences"
    assert backbone_spec(f"{MODULE}:Plainest") is OWN_SPEC
    inherited = backbone_spec(f"{MODULE}:Own4Rec")
    assert (inherited.call, inherited.has_mask_token) == (BACKBONES["BERT4Rec"].call, True)
    assert (inherited.rows, inherited.fixed_length, inherited.position_table) == ("prefixes", True, None)
    assert backbone_spec(f"{MODULE}:OwnHGN").spare_tables == BACKBONES["HGN"].spare_tables
    assert train_rows_of("auto", f"{MODULE}:Silent") == "prefixes"
    with pytest.raises(InputError, match=f"train_rows: sequences .* {MODULE}:Silent does not give"):
        train_rows_of("sequences", f"{MODULE}:Silent")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_of_a_test:Net", r"cannot be imported \(ModuleNotFoundError.*PYTHONPATH"),
        (f"{MODULE}:Nothing", r"cannot be imported \(AttributeError"),
        (f"{MODULE}:", "no class that inherits from recbole.model.abstract_recommender.SequentialRecommender"),
        (":Net", r"cannot be imported \(ValueError"),
        (f"{MODULE}:Plain", "no class that inherits from"),
        (f"{MODULE}:torch", "no class that inherits from"),
        (f"{MODULE}:WrongSpec", r"pad_backbone of .* is 'sequences'; make it a recbole_pad.backbones.BackboneSpec"),
        (f"{MODULE}:WrongRows", "rows sequences or prefixes"),
    ],
)
def test_a_name_that_is_no_model_is_refused_before_the_data_are_read(config, name: str, message: str):
    with pytest.raises(InputError, match=message):
        config(backbone=name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NoTable", "item_embedding must be a plain nn.Embedding of all items, 31 rows here .*, and there is none"),
        ("SmallTable", r"item_embedding must be .* and it is Embedding\(3, 4\)"),
        ("ScaledTable", r"item_embedding must be a plain nn.Embedding .* and it is Scaled\(31, 12"),
        ("Tail", "does not change with the newest item.*not at -1"),
        ("Constant", "does not change with the newest item"),
        ("ByUser", "its forward takes user where the lengths would be given"),
        ("FarAhead", "its states see later items"),
        ("GatedAtZero", "its states see later items"),
        ("Before", "with RecBole's gather_indexes its state is another one"),
        ("Windowed", "get_attention_mask of its own"),
        ("Mixed", "depends on the other rows of the batch"),
        ("FromOne", "looks up positions from 1 on"),
        ("NotFinite", r"states are not finite for rows of \[8, 7, 4, 2, 1\] items"),
        ("NoKey", r"made it raises TypeError.*own_models_of_a_test.py, line \d+\)"),
        ("NoSuchTable", "AttributeError.*nowhere"),
        ("NoEmbedding", "table is a Linear, and must be a Embedding"),
        ("NoPositions", "causal_encoder needs a position_table"),
        ("Random", "two calls in evaluation mode differ"),
        ("SecondTable", "its states change when items are numbered otherwise.*spare_tables"),
        ("Neighbours", "depends on the other rows of the batch"),
        ("Padded", "depend on the number of padded columns; set fixed_length=True"),
        ("Peeks", 'its states see later items.*rows="prefixes"'),
        ("Narrow", r"must have the shape \(5, 12\) here, and are \(5, 11\)"),
        ("Another", r"called on a few rows it raises TypeError.*pad_backbone"),
    ],
)
def test_a_class_that_breaks_a_law_is_refused_with_the_remedy(prepared, name: str, message: str):
    with pytest.raises(InputError, match=message):
        build(prepared, name)


@pytest.mark.parametrize(
    "name",
    [
        "NamedTable", "PaddedSaysSo", "AnotherSaysSo", "Same", "Silent", "Steps", "NamedArguments", "Own4Rec", "OwnHGN",
        "FromZero", "Normed", "Keyed",
    ],
)  # fmt: skip
def test_sound_classes_and_the_remedies_are_taken(prepared, name: str):
    backbone = build(prepared, name)
    assert backbone.training
    assert backbone.lookup.weight is None


@pytest.mark.parametrize("name", ["broken", "exits"])
def test_a_module_that_raises_when_imported_is_one_error(config, own_models, name: str):
    own_models.with_name("broken.py").write_text("x = undefined\n")
    own_models.with_name("exits.py").write_text("raise RuntimeError('no GPU')\n")
    with pytest.raises(InputError, match=f"backbone: '{name}:Net' cannot be imported"):
        config(backbone=f"{name}:Net")


@pytest.mark.parametrize("name", BACKBONES)
def test_recboles_models_keep_the_laws(prepared, name: str):
    settings, _, train, *_ = prepared(dataset="chain", backbone=name)
    backbone = Backbone(name, settings, train._dataset)
    check_laws(name, backbone, settings["MAX_ITEM_LIST_LENGTH"])
    assert backbone.training


def test_a_recbole_model_that_looks_ahead_would_be_found(prepared):
    """BERT4Rec reads both ways; a spec that claims causal states for such a model is refused."""
    settings, _, train, *_ = prepared(dataset="chain", backbone="SASRec")
    backbone = Backbone("SASRec", settings, train._dataset, positions="absolute")
    both = backbone.last_state

    def peeking(table, seq, length, user):
        return table[seq].sum(1, keepdim=True).expand(-1, seq.size(1), -1)

    backbone.forward = peeking
    backbone.last_state = lambda *rows: both(*rows) + peeking(*rows)[:, 0]
    with pytest.raises(InputError, match="see later items"):
        check_laws("SASRec", backbone, settings["MAX_ITEM_LIST_LENGTH"])


def test_trying_the_laws_leaves_the_random_state_and_the_weights(prepared):
    backbone = build(prepared, "Normed")
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in backbone.state_dict().items()}
    check_laws(f"{MODULE}:Normed", backbone, 8)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.state_dict().items())


def test_results_are_kept_apart_when_the_source_or_the_settings_file_changes(prepared, own_models):
    name = f"{MODULE}:Mean"
    assert own_files(name) == [own_models, own_models.with_name("Mean.yaml")]
    assert own_files("SASRec") == []

    def names() -> tuple[str, str]:
        settings, _, train, *_ = prepared(dataset="chain", backbone=name)
        cell = Cell("chain", "PAD", "PAD", {"backbone": name}, 1)
        return fingerprint(settings, train._dataset, "pretrain"), cell.digest

    first = names()
    assert names() == first
    own_models.write_text(SOURCE + "\n# another line\n", encoding="utf-8")
    second = names()
    assert second[0] != first[0]
    assert second[1] != first[1]
    own_models.with_name("Mean.yaml").write_text("mean_size: 16\n", encoding="utf-8")
    third = names()
    assert third[0] != second[0]
    assert third[1] != second[1]


def test_the_class_of_the_documentation_is_a_causal_backbone(prepared, own_models):
    text = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
    code, settings_of_it = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("python", "yaml"))
    own_models.write_text(code, encoding="utf-8")
    own_models.with_name("CausalCNN.yaml").write_text(settings_of_it, encoding="utf-8")
    settings, _, train, *_ = prepared(dataset="chain", backbone=f"{MODULE}:CausalCNN")
    assert Backbone(settings["backbone"], settings, train._dataset).width == settings["cnn_size"] == 64
    assert train._dataset.train_rows == "sequences"
    assert all(name in text for name in BACKBONES)


def test_compare_takes_an_own_class():
    (variant,) = parse_variants([f"PAD:backbone={MODULE}:Mean:mean_size=20"])
    assert variant.settings == {"backbone": f"{MODULE}:Mean", "mean_size": 20}


def test_a_study_knows_the_module_and_the_keys_of_an_own_class(config, tmp_path: Path, own_models):
    name = f"{MODULE}:Mean"
    (tmp_path / "space.yaml").write_text(f"backbone: {{choice: [SASRec, '{name}']}}\nmean_size: {{choice: [8, 16]}}\n")
    space, base = read_space(str(tmp_path / "space.yaml"), "PAD"), config(backbone=name)
    _check_space(space, base, lambda chosen: config(backbone=name, mean_size=chosen.get("mean_size", 8)))
    before = _signature(base, space, "none")
    own_models.write_text(SOURCE + "\n# another line\n", encoding="utf-8")
    after = _signature(base, space, "none")
    data, data_after = before.pop("data"), after.pop("data")
    assert before == after
    changed = {key for key in data if data[key] != data_after[key]}
    assert changed
    assert all(own_models.name in key for key in changed)
