"""Models with settings, as the command line writes them: ``PAD``, ``PAD:backbone=GRU4Rec:experts=[rec,llm]``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from recbole.utils import argument_list

from recbole_pad.errors import InputError
from recbole_pad.experiments.cells import Cell
from recbole_pad.keys import PROCESS_KEYS
from recbole_pad.preflight import check_model
from recbole_pad.property_files import properties, property_names, read_yaml, unread_keys
from recbole_pad.registration import MODELS
from recbole_pad.registry import pick

_RECBOLE_KEYS = (
    argument_list.general_arguments,
    argument_list.training_arguments,
    argument_list.evaluation_arguments,
    argument_list.dataset_arguments,
)


_NOT_SHARED = ("model", "dataset", "seed", "resume", "checkpoint_dir", "config_files", *PROCESS_KEYS)


@dataclass(frozen=True)
class Variant:
    """A model with settings of its own.

    Attributes:
        label: its name in tables.
        model: a model name.
        settings: over the shared ones.
    """

    label: str
    model: str
    settings: Mapping[str, Any]

    def cells(self, dataset: str, shared: Mapping[str, Any], seeds: Sequence[int]) -> list[Cell]:
        """A cell for each seed; one, of the first seed, for a model that has nothing to train.

        A model gets the shared settings that it knows: `ignored` has the others.
        """
        known = {key: value for key, value in shared.items() if key not in self.ignored(shared)}
        settings = {**known, **self.settings}
        return [
            Cell(dataset, self.label, self.model, settings, seed) for seed in (seeds if self.is_trained else seeds[:1])
        ]

    def ignored(self, shared: Mapping[str, Any]) -> list[str]:
        """Keys of shared settings that a model of ours does not read, ``hidden_size`` without training for example."""
        if self.is_trained:
            unread = unread_keys(self.model)
            return [key for key in shared if key in unread]
        ours = [("model", f"{self.model}.yaml"), ("model", "PAD.yaml"), ("protocol", "pad.yaml")]
        known = {key for parts in ours for key in properties(*parts)}
        known |= {key for keys in _RECBOLE_KEYS for key in keys}
        return [key for key in shared if key not in known]

    @property
    def is_trained(self) -> bool:
        """Whether the seed can change anything."""
        return is_trained(self.model)


def is_trained(model: str) -> bool:
    """Whether a model has anything to train, so that the seed can change its results."""
    return model not in MODELS or MODELS[model].is_trained


def parse_variants(words: Sequence[str]) -> list[Variant]:
    """Read model names with settings, separated by commas or spaces; commas inside brackets belong to values.

    ``@NAME`` or ``@FILE.yaml`` stands for all models of properties/experiment/NAME.yaml, or of a file: a mapping from
    labels to settings, of the model of that name, or of the one that the key ``model`` names.

    Raises:
        InputError: for an unknown model or file, a setting that is none, or the same variant twice.
    """
    parts = [word for text in words for word in split_outside_brackets(text, ",")]
    variants = [variant for word in parts for variant in (_of_file(word[1:]) if word[0] == "@" else [_variant(word)])]
    labels = [variant.label for variant in variants]
    doubled = [label for label in labels if labels.count(label) > 1]
    if doubled:
        raise InputError(f"models: {doubled[0]!r} stands there twice; remove one")
    if not variants:
        raise InputError("models: name at least one")
    return variants


def _variant(word: str) -> Variant:
    model, *parts = split_outside_brackets(word, ":")
    check_model(model)
    settings: list[str] = []
    for part in parts:
        if "=" in part or not settings:
            settings.append(part)
        else:  # a colon inside a value: text_encoder=file:x.npy
            settings[-1] += f":{part}"
    return Variant(word, model, _own(word, parse_settings(settings)))


def _own(label: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings, refused where the comparison sets them for each run."""
    if key := _set_for_each_run(settings):
        raise InputError(f"models: {label}: {key} cannot be set for one model; use --models, --datasets, --seeds")
    return settings


def _set_for_each_run(settings: Mapping[str, Any]) -> str | None:
    """The first of the keys that each run has of its own, if one is among the settings."""
    return next((key for key in _NOT_SHARED if key in settings), None)


def _of_file(word: str) -> list[Variant]:
    if word.endswith((".yaml", ".yml")):
        content = read_yaml(Path(word), f"models: @{word}: there is no such file")
    else:
        pick(dict.fromkeys(property_names("experiment")), word, "models: @")
        content = properties("experiment", f"{word}.yaml")
    if not isinstance(content, dict) or not all(isinstance(own, dict) for own in content.values()):
        raise InputError(f"models: @{word}: is no mapping from labels to settings, such as `SASRec: {{n_layers: 1}}`")
    variants = []
    for label, settings in content.items():
        model = settings.pop("model", label)
        check_model(model)
        variants.append(Variant(str(label), model, _own(str(label), settings)))
    return variants


def shared_settings(words: Sequence[str]) -> dict[str, Any]:
    """The settings of all runs of a comparison or an experiment, as `parse_settings`.

    Raises:
        InputError: also for a key that each run has of its own, or that only a command line can have.
    """
    settings = parse_settings(words)
    if key := _set_for_each_run(settings):
        raise InputError(
            f"{key}: cannot be set for all runs; use --models, --dataset(s), --seeds, --cells, or @FILE.yaml"
        )
    return settings


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` words (a leading ``--`` is allowed); values as in YAML.

    Raises:
        InputError: for a word without ``=``, a value that is not YAML, or a key that comes twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, is_setting, value = word.removeprefix("--").partition("=")
        if not is_setting or not key:
            raise InputError(f"setting {word!r} is not understood; settings are written key=value")
        if key in settings:
            raise InputError(f"setting {key!r} comes twice; remove one")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"setting {word!r}: {value!r} is not YAML: {error}") from error
        settings[key] = _number(settings[key])
    return settings


def _number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text."""
    if isinstance(value, str):
        try:
            return float(value) if "e" in value.lower() and value[:1] in "0123456789.-+" else value
        except ValueError:
            return value
    return value


def split_outside_brackets(text: str, separator: str) -> list[str]:
    """The parts of `text` between separators that stand in no bracket; empty parts are left out."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == separator and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
