import sys
from collections.abc import Callable
from typing import Any

import pytest
import recbole.config.configurator
import recbole.data.dataset
import recbole.data.utils
import recbole.trainer
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.model.general_recommender import BPR
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer

from recbole_pad import registration
from recbole_pad.data.dataset import PADDataset
from recbole_pad.data.loader import HistoryEvalDataLoader, LengthBucketDataLoader
from recbole_pad.model.pad import PAD
from recbole_pad.trainer import PADTrainer


def hooks() -> list[Any]:
    """RecBole's objects that the plugin replaces or adds to."""
    return [
        recbole.config.configurator.Config._load_internal_config_dict,
        recbole.data.utils.get_dataloader,
        recbole.trainer.PADTrainer,
        recbole.data.dataset.PADDataset,
        sys.modules["recbole.model.sequential_recommender.pad"],
    ]


def test_recbole_finds_pad_by_its_name(config: Callable[..., Any]):
    settings = config()
    assert get_model("PAD") is PAD
    assert get_trainer(settings["MODEL_TYPE"], "PAD") is PADTrainer
    assert type(create_dataset(settings)) is PADDataset


def test_a_second_register_changes_nothing():
    before = hooks()
    registration.register()
    assert hooks() == before
    for function in before[:2]:
        assert not hasattr(function.__wrapped__, "__wrapped__")


def test_recboles_own_models_and_trainers_are_found_as_before(config: Callable[..., Any]):
    assert get_model("SASRec") is SASRec
    assert get_model("BPR") is BPR
    settings = config("SASRec", train_neg_sample_args=None)
    assert get_trainer(settings["MODEL_TYPE"], "SASRec") is Trainer
    assert type(create_dataset(settings)) is recbole.data.dataset.SequentialDataset


@pytest.mark.parametrize(
    ("model", "changes", "train", "evaluation"),
    [
        ("PAD", {}, LengthBucketDataLoader, HistoryEvalDataLoader),
        ("PAD", {"protocol": "recbole"}, LengthBucketDataLoader, FullSortEvalDataLoader),
        ("SASRec", {"train_neg_sample_args": None}, TrainDataLoader, HistoryEvalDataLoader),
        (
            "SASRec",
            {"train_neg_sample_args": None, "protocol": "recbole"},
            TrainDataLoader,
            FullSortEvalDataLoader,
        ),
        ("BPR", {}, TrainDataLoader, FullSortEvalDataLoader),
    ],
)
def test_loaders_follow_model_and_protocol(
    model: str, changes: dict[str, Any], train: type, evaluation: type, prepared: Callable[..., Any]
):
    _, _, *loaders = prepared(model, **changes)
    assert [type(loader) for loader in loaders] == [train, evaluation, evaluation]


def test_recboles_config_of_a_stock_model_is_not_touched(settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """Without the key `protocol`, a stock model's settings equal those that RecBole alone would read."""
    asked = settings("GRU4Rec", load_col={"inter": ["user_id", "item_id", "timestamp"]}, train_neg_sample_args=None)
    for key in ("inner_size", "hidden_dropout_prob", "attn_dropout_prob"):
        del asked[key]
    with_plugin = Config(model="GRU4Rec", dataset="tiny", config_dict=dict(asked)).final_config_dict
    name = "_load_internal_config_dict"
    monkeypatch.setattr(Config, name, getattr(Config, name).__wrapped__)
    alone = Config(model="GRU4Rec", dataset="tiny", config_dict=dict(asked)).final_config_dict
    assert with_plugin == alone


def test_pads_classes_are_pickled_under_the_plugins_name():
    """So that a process that never imported the plugin finds it when it reads a checkpoint."""
    for cls in (PAD, PADTrainer, PADDataset):
        assert cls.__module__.startswith("recbole_pad.")


def test_a_saved_dataset_is_not_taken_again_when_a_setting_of_ours_differs(config):
    from recbole.data import create_dataset

    create_dataset(config(save_dataset=True, train_rows="sequences"))
    again = create_dataset(config(save_dataset=False, train_rows="sequences"))
    other = create_dataset(config(save_dataset=False, train_rows="prefixes"))
    assert (again.train_rows, other.train_rows) == ("sequences", "prefixes")
