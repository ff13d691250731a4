"""How RecBole learns about this plugin: the only place, besides `compat`, that puts something into RecBole's modules.

RecBole finds a model by module name, a trainer and a dataset class by attribute name, default settings by file name
and a data loader through a module global. Each of these five gets one entry of ours, which imports our modules when it
is asked for; calling `register` twice changes nothing. Source: docs/decisions.md, "Registration".
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import recbole.config.configurator
import recbole.data.dataset
import recbole.data.utils
import recbole.trainer
import recbole.utils.argument_list

from recbole_pad.keys import DATA_KEYS
from recbole_pad.patching import replace

_MODEL_ALIAS = "recbole.model.sequential_recommender.pad"
_MODEL_MODULE = "recbole_pad.model.pad"


def register() -> None:
    """Register PAD's model, trainer, dataset, settings and loaders with RecBole. Idempotent."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())
    _add_lazily(recbole.trainer, "PADTrainer", "recbole_pad.trainer")
    _add_lazily(recbole.data.dataset, "PADDataset", "recbole_pad.data.dataset")
    replace(recbole.config.configurator.Config, "_load_internal_config_dict", _with_our_settings)
    replace(recbole.data.utils, "get_dataloader", _with_our_loaders)
    _compare_our_data_keys()


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """RecBole's `get_model("PAD")` looks for a module of its own package: that name means our module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for the one name; None for every other."""
        return importlib.machinery.ModuleSpec(name, self) if name == _MODEL_ALIAS else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that takes its attributes from ours."""
        module = ModuleType(spec.name)
        module.__getattr__ = lambda name: getattr(importlib.import_module(_MODEL_MODULE), name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def _add_lazily(owner: ModuleType, name: str, module: str) -> None:
    """Give a module of RecBole's an attribute that is imported from ours when it is first read."""
    others = owner.__dict__.get("__getattr__")
    if name in getattr(others, "_recbole_pad", {}):
        return

    def __getattr__(asked: str) -> Any:  # noqa: N807 - PEP 562
        if asked == name:
            value = getattr(importlib.import_module(module), name)
            setattr(owner, name, value)
            return value
        if others is not None:
            return others(asked)
        raise AttributeError(f"module {owner.__name__!r} has no attribute {asked!r}")

    __getattr__._recbole_pad = {name}  # type: ignore[attr-defined]
    owner.__getattr__ = __getattr__  # type: ignore[method-assign]


def _compare_our_data_keys() -> None:
    """RecBole takes a saved dataset or loader again if the keys of this list agree: ours change the data too."""
    compared = recbole.utils.argument_list.dataset_arguments
    compared += [key for key in DATA_KEYS if key not in compared]


def _with_our_settings(original: Callable[..., None]) -> Callable[..., None]:
    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        from recbole_pad.config import add_plugin_settings

        original(self, model, model_class, dataset)
        add_plugin_settings(self, model, model_class, dataset)

    return load


def _with_our_loaders(original: Callable[[Any, str], type]) -> Callable[[Any, str], type]:
    def loader(config: Any, phase: str) -> type:
        from recbole_pad.data.loader import HistoryEvalDataLoader, LengthBucketDataLoader, evaluates_with_history

        if phase == "train" and config["model"] == "PAD":
            return LengthBucketDataLoader
        if phase != "train" and evaluates_with_history(config, phase):
            return HistoryEvalDataLoader
        return original(config, phase)

    return loader
