"""How RecBole learns about this plugin: the only place that touches RecBole's own objects besides `compat`.

RecBole finds a model by module name, a trainer and a dataset class by attribute name, default settings by file name
and a data loader through a module global. Each of these five gets one entry of ours; calling `register` twice
changes nothing. Source: docs/decisions.md, "Registration".
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import recbole.config.configurator
import recbole.data.dataset
import recbole.data.utils
import recbole.trainer
import recbole.utils.argument_list

import recbole_pad.model.pad as pad_module
from recbole_pad.config import DATA_KEYS, add_plugin_settings
from recbole_pad.data.dataset import PADDataset
from recbole_pad.data.loader import HistoryEvalDataLoader, LengthBucketDataLoader, evaluates_with_history
from recbole_pad.model.pad import PAD
from recbole_pad.trainer import PADTrainer


def register() -> None:
    """Register PAD's model, trainer, dataset, settings and loaders with RecBole. Idempotent."""
    sys.modules.setdefault("recbole.model.sequential_recommender.pad", pad_module)
    recbole.trainer.PADTrainer = PADTrainer
    recbole.data.dataset.PADDataset = PADDataset
    _wrap_settings()
    _wrap_loaders()
    _compare_our_data_keys()


def _compare_our_data_keys() -> None:
    """RecBole takes a saved dataset or loader again if the keys of this list agree: ours change the data too."""
    compared = recbole.utils.argument_list.dataset_arguments
    compared += [key for key in DATA_KEYS if key not in compared]


def _wrap_settings() -> None:
    original = recbole.config.configurator.Config._load_internal_config_dict
    if getattr(original, "_recbole_pad", False):
        return

    @functools.wraps(original)
    def wrapper(self: Any, model: str, model_class: type, dataset: str) -> None:
        original(self, model, model_class, dataset)
        add_plugin_settings(self, model, model_class, dataset)

    wrapper._recbole_pad = True  # type: ignore[attr-defined]
    recbole.config.configurator.Config._load_internal_config_dict = wrapper


def _wrap_loaders() -> None:
    original = recbole.data.utils.get_dataloader
    if getattr(original, "_recbole_pad", False):
        return

    @functools.wraps(original)
    def wrapper(config: Any, phase: str) -> type:
        if phase == "train" and config["model"] == PAD.__name__:
            return LengthBucketDataLoader
        if phase != "train" and evaluates_with_history(config, phase):
            return HistoryEvalDataLoader
        loader: type = original(config, phase)
        return loader

    wrapper._recbole_pad = True  # type: ignore[attr-defined]
    recbole.data.utils.get_dataloader = wrapper
