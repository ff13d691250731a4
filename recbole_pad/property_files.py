"""What the files of settings say: ours (`properties/`), RecBole's, those of own backbones, and a user's."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from recbole_pad.backbone_classes import own_settings_files, settings_file
from recbole_pad.errors import InputError
from recbole_pad.keys import DATA_KEYS, PHASE_KEYS
from recbole_pad.phases import PHASES

KEYS_OF_PHASES = frozenset(f"{phase}.{key}" for phase in PHASES for key in PHASE_KEYS)
SELECTED_FEATURES = "selected_features"  # of RecBole's models that read columns of items


def properties(*parts: str) -> dict[str, Any]:
    """The content of one of our property files, or an empty dict if there is none of that name."""
    file = property_file(*parts)
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {} if file.is_file() else {}


def read_yaml(path: Path, missing: str) -> Any:
    """The content of a user's YAML file.

    Raises:
        InputError: with the text `missing` where there is no such file, or for a file that is not YAML.
    """
    if not path.is_file():
        raise InputError(missing)
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: is not YAML: {' '.join(str(error).split())}") from error


def property_file(*parts: str) -> Path:
    """Where our property file of this name is, if there is one."""
    return Path(str(resources.files("recbole_pad.properties"))).joinpath(*parts)


def property_names(folder: str) -> list[str]:
    """Names (without suffix) of our property files in a folder."""
    return sorted(
        entry.name.removesuffix(".yaml") for entry in property_file(folder).iterdir() if entry.name.endswith(".yaml")
    )


def model_settings(model: str) -> dict[str, Any]:
    """The settings of one of our models, or an empty dict: its file, over the files of `base/` that it names."""
    own = properties("model", f"{model}.yaml")
    settings: dict[str, Any] = {}
    for base in own.pop("bases", []):
        settings.update(properties("base", f"{base}.yaml"))
    return {**settings, **own}


def shipped_settings(model: str, dataset: str) -> dict[str, Any]:
    """All that our property files say of a model on a dataset, under the protocol `pad`; see `settings_layers`.

    Of PAD's file, which stands below those of our other models, those keys that the model reads.
    """
    ours, unread = model_settings(model), unread_keys(model)
    of_pad = properties("model", "PAD.yaml") if ours else {}
    of_data = {key: value for key, value in of_pad.items() if key not in unread}
    of_dataset = properties("dataset", f"{dataset}.yaml")
    if SELECTED_FEATURES not in recbole_keys(model):
        of_dataset.pop(SELECTED_FEATURES, None)
    return {**properties("protocol", "pad.yaml"), **of_data, **ours, **of_dataset}


def recbole_keys(model: str) -> set[str]:
    """The keys that RecBole's property file of a model names; of an own class that of the model it inherits from."""
    file = settings_file(model)
    return set(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file else set()


def unread_keys(model: str) -> set[str]:
    """PAD's keys that a model does not read, so that they are refused; empty unless the model's file names its `bases`.

    Keys of the data are no such keys: the dataset and its loaders read them.
    """
    if "bases" not in properties("model", f"{model}.yaml"):
        return set()
    return (set(properties("model", "PAD.yaml")) | KEYS_OF_PHASES) - set(model_settings(model)) - set(DATA_KEYS)


def own_backbone_settings(backbone: str) -> dict[str, Any]:
    """The keys of an own backbone's files and their defaults.

    Raises:
        InputError: for a file that is no mapping.
    """
    settings: dict[str, Any] = {}
    for file in own_settings_files(backbone):
        content = read_yaml(file, f"{file} does not exist") or {}
        if not isinstance(content, dict):
            raise InputError(f"{file}: is {content!r}; write the keys of the backbone and their defaults, key: value")
        settings.update(content)
    return settings
