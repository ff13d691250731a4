"""How RecBole learns about this plugin; `compat` has what is repaired in RecBole, `speedups` what is faster in it.

RecBole finds a model by module name, a trainer and a dataset class by attribute name, default settings by file name
and a data loader through a module global. Each of these gets an entry of ours, which imports our modules when it is
asked for; calling `register` twice changes nothing. Source: docs/decisions.md, "Registration".
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import recbole.config.configurator
import recbole.data.dataset
import recbole.data.utils
import recbole.trainer
import recbole.trainer.trainer
import recbole.utils.argument_list

from recbole_pad import process_group
from recbole_pad.keys import DATA_KEYS
from recbole_pad.patching import replace


@dataclass(frozen=True)
class OurModel:
    """Where a model of ours is, and the classes that RecBole looks for under ``<model>Trainer``, ``<model>Dataset``.

    Attributes:
        module: the module that holds the class of the model's name.
        trainer: ``module:class``.
        dataset: ``module:class``.
        is_trained: whether it has anything to train, so that its results depend on the seed. Then it has a backbone,
            and is trained on batches of rows of similar length.
        has_phases: whether it is trained phase by phase, so that phases can be cached and a run resumed.
    """

    module: str
    trainer: str
    dataset: str = "recbole_pad.data.dataset:PADDataset"
    is_trained: bool = True
    has_phases: bool = False


_TRAINING_FREE = OurModel(
    "recbole_pad.baselines.models", "recbole_pad.baselines.trainer:TrainingFreeTrainer", is_trained=False
)


def _rival(module: str) -> OurModel:
    return OurModel(f"recbole_pad.rivals.{module}", "recbole_pad.rivals.trainer:RivalTrainer")


MODELS: dict[str, OurModel] = {
    "PAD": OurModel("recbole_pad.model.pad", "recbole_pad.trainer:PADTrainer", has_phases=True),
    "Popularity": _TRAINING_FREE,
    "MarkovChain": _TRAINING_FREE,
    "SLIT": _TRAINING_FREE,
    "TextKNN": _TRAINING_FREE,
    "MarkovTextKNN": _TRAINING_FREE,
    "IDRec": _rival("ids_and_text"),
    "MoRec": _rival("ids_and_text"),
    "IDTextSum": _rival("ids_and_text"),
    "IDTextConcat": _rival("ids_and_text"),
    "InfoNCEAligned": _rival("ids_and_text"),
    "LLMInit": _rival("llm_init"),
    "WhitenRec": _rival("whitenrec"),
    "UniSRec": _rival("unisrec"),
    "LLMESR": _rival("llmesr"),
}
_MODEL_MODULES = {
    f"recbole.model.sequential_recommender.{name.lower()}": model.module for name, model in MODELS.items()
}


def has_phases(model: str) -> bool:
    """Whether a model, ours or any other, is trained phase by phase."""
    return model in MODELS and MODELS[model].has_phases


def has_our_backbone(model: str) -> bool:
    """Whether a model is one of ours that trains a backbone; its batches are those of our loader."""
    return model in MODELS and MODELS[model].is_trained


def register() -> None:
    """Register our models, trainers, datasets, settings and loaders with RecBole. Idempotent."""
    if not any(isinstance(finder, _ModelFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _ModelFinder())
    _add_lazily(recbole.trainer, {f"{name}Trainer": model.trainer for name, model in MODELS.items()})
    _add_lazily(recbole.data.dataset, {f"{name}Dataset": model.dataset for name, model in MODELS.items()})
    replace(recbole.config.configurator.Config, "_load_internal_config_dict", _with_our_settings)
    replace(recbole.data.utils, "get_dataloader", _with_our_loaders)
    _let_processes_run_anywhere()
    _compare_our_data_keys()


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """RecBole's `get_model("PAD")` looks for a module of its own package: such a name means our module."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A spec for the names of our models; None for every other."""
        return importlib.machinery.ModuleSpec(name, self) if name in _MODEL_MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module that takes its attributes from ours."""
        module, ours = ModuleType(spec.name), _MODEL_MODULES[spec.name]
        module.__getattr__ = lambda name: getattr(importlib.import_module(ours), name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def _add_lazily(owner: ModuleType, sources: Mapping[str, str]) -> None:
    """Give a module of RecBole's attributes that are imported from ours (``module:name``) when first read."""
    others = owner.__dict__.get("__getattr__")
    if getattr(others, "_recbole_pad", None) == sources:
        return

    def __getattr__(asked: str) -> Any:  # noqa: N807 - PEP 562
        if asked in sources:
            value = pkgutil.resolve_name(sources[asked])
            setattr(owner, asked, value)
            return value
        if others is not None:
            return others(asked)
        raise AttributeError(f"module {owner.__name__!r} has no attribute {asked!r}")

    __getattr__._recbole_pad = sources  # type: ignore[attr-defined]
    owner.__getattr__ = __getattr__  # type: ignore[method-assign]


def _let_processes_run_anywhere() -> None:
    """RecBole's distributed runs: on the CPU too, and one process writes."""
    replace(recbole.config.configurator.Config, "_init_device", process_group.on_any_device)
    replace(recbole.trainer.trainer.AbstractTrainer, "__init__", process_group.with_ddp_on_any_device)
    replace(recbole.trainer.trainer.Trainer, "_save_checkpoint", process_group.by_first_process)
    replace(recbole.trainer.trainer, "get_tensorboard", process_group.for_first_process)


def _compare_our_data_keys() -> None:
    """RecBole takes a saved dataset or loader again if the keys of this list agree: ours change the data too."""
    compared = recbole.utils.argument_list.dataset_arguments
    compared += [key for key in DATA_KEYS if key not in compared]


def _with_our_settings(original: Callable[..., None]) -> Callable[..., None]:
    def load(self: Any, model: str, model_class: type, dataset: str) -> None:
        from recbole_pad.settings_layers import add_plugin_settings

        original(self, model, model_class, dataset)
        add_plugin_settings(self, model, model_class, dataset)

    return load


def _with_our_loaders(original: Callable[[Any, str], type]) -> Callable[[Any, str], type]:
    def loader(config: Any, phase: str) -> type:
        from recbole_pad.data.loader import HistoryEvalDataLoader, LengthBucketDataLoader, evaluates_with_history

        if phase == "train" and has_our_backbone(config["model"]):
            return LengthBucketDataLoader
        if phase != "train" and evaluates_with_history(config, phase):
            return HistoryEvalDataLoader
        return original(config, phase)

    return loader
