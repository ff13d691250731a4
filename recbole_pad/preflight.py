"""Before a run: its settings as RecBole has them, and what is refused before any data are read."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

import recbole.model
import yaml
from recbole.config import Config
from recbole.utils import ModelType

from recbole_pad.config import check_run
from recbole_pad.dataset_prep.header import read_header, refuse_open_quotes
from recbole_pad.errors import InputError
from recbole_pad.property_files import SELECTED_FEATURES, property_file, property_names, read_yaml
from recbole_pad.registration import MODELS
from recbole_pad.registry import nearest

_URLS = Path(recbole.config.__file__).parent.parent / "properties" / "dataset" / "url.yaml"


def settled_config(
    model: str, dataset: str, config_file_list: list[str] | None, config_dict: dict[str, Any] | None
) -> Config:
    """RecBole's config of a run, under the protocol `pad` unless another one is asked for, its values checked.

    A word of `config_file_list` that is no file names one of ours, in properties/settings.

    Raises:
        InputError: for an unknown key, a value that cannot be, or settings that do not go together.
    """
    files = [_shipped(file) for file in config_file_list or []]
    settings = {"protocol": "pad", **_protocol_of_files(files), **(config_dict or {})}
    try:
        config = Config(model=model, dataset=dataset, config_file_list=files, config_dict=settings)
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(f"metrics, eval_args: {error}") from error
    except (ValueError, SyntaxError) as error:  # settings that do not go together, or come twice
        raise InputError(str(error)) from error
    check_run(config)
    return config


def _shipped(file: str) -> str:
    """The file of settings that comes with the package under this name, or any other file as it is."""
    found = property_file("settings", f"{file}.yaml")
    return str(found) if found.is_file() and not Path(file).is_file() else file


def _protocol_of_files(files: list[str]) -> dict[str, Any]:
    """RecBole lets a dict win over files; our default of `protocol` must not."""
    found: dict[str, Any] = {}
    for file in files:
        shipped = ", ".join(property_names("settings"))
        content = read_yaml(Path(file), f"config_files: {file} does not exist; {shipped} come with the package") or {}
        if not isinstance(content, dict):
            raise InputError(f"config_files: {file} holds no `key: value`, but {content!r}")
        if "protocol" in content:
            found["protocol"] = content["protocol"]
    return found


def model_names() -> list[str]:
    """Names of our models, and of RecBole's, from the class files of its model packages."""
    names: set[str] = set()
    for folder in Path(recbole.model.__file__).parent.glob("*_recommender"):
        text = "\n".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py") if path.name != "__init__.py")
        names |= {line[6:].split("(")[0].strip() for line in text.splitlines() if line.startswith("class ")}
    lower = {path.stem for path in Path(recbole.model.__file__).parent.glob("*_recommender/*.py")}
    return sorted({name for name in names if name.lower() in lower} | set(MODELS))


def checked_config(
    model: str, dataset: str, config_file_list: list[str] | None, config_dict: dict[str, Any] | None
) -> Config:
    """RecBole's config of a run whose model and dataset are there; see `settled_config`.

    Raises:
        InputError: for an unknown model, dataset or setting.
    """
    check_model(model)
    config = settled_config(model, dataset, config_file_list, config_dict)
    check_dataset(config)
    return config


def check_model(model: str) -> None:
    """Refuse an unknown model name.

    Raises:
        InputError: naming the nearest known model.
    """
    known = model_names()
    if model not in known:
        raise InputError(
            f"model: {model!r} is not a model of RecBole or of ours{nearest(model, known)}; known: {', '.join(known)}"
        )


def check_dataset(config: Any) -> None:
    """Refuse a dataset that is not there, unless RecBole knows where to download it, or whose columns do not fit.

    Raises:
        InputError: naming the file that is missing, and the datasets that are there; or the column and the remedy.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    files = [f"{name}.{part}.inter" for part in config["benchmark_filename"] or []] or [f"{name}.inter"]
    missing = [file for file in files if not (folder / file).is_file()]
    if not missing:
        for file in files:
            _check_header(folder / file, config)
            refuse_open_quotes(folder / file, config["field_separator"], config["encoding"] or "utf-8")
        _check_features(folder / f"{name}.item", config)
        return
    downloadable = yaml.safe_load(_URLS.read_text(encoding="utf-8"))
    if not folder.exists() and name in downloadable:
        getLogger().warning("dataset %s is not in %s: RecBole tries to download it", name, folder.parent)
        return
    present = sorted(path.parent.name for path in folder.parent.glob("*/*.inter") if path.stem == path.parent.name)
    there = f"datasets in {folder.parent}: {', '.join(present)}" if present else f"{folder.parent} holds no dataset"
    raise InputError(
        f"dataset: {folder / missing[0]} does not exist{nearest(name, present)}; {there}. Set --data_path to "
        "the folder that holds the dataset's folder; ml-100k needs no data_path"
    )


def _check_header(file: Path, config: Any) -> None:
    """Refuse an `.inter` file without the columns of users, items and, where they are to be put in order, times.

    Raises:
        InputError: naming the column; or of `read_header`.
    """
    kinds = read_header(file, config["field_separator"], config["encoding"] or "utf-8")
    needed = {"USER_ID_FIELD": "token", "ITEM_ID_FIELD": "token"}
    if config["MODEL_TYPE"] == ModelType.SEQUENTIAL and not config["benchmark_filename"]:
        needed["TIME_FIELD"] = "float"
    for key, kind in needed.items():
        name = config[key]
        if name not in kinds:
            raise InputError(
                f"{file}: no column {name!r}; it has {', '.join(kinds)}: name one with --{key}=, or rename the column"
            )
        if kinds[name] != kind:
            raise InputError(f"{file}, line 1: column {name!r} is of type {kinds[name]}; write {name}:{kind}")


def _check_features(file: Path, config: Any) -> None:
    """Refuse a model of item features (SASRecF, FDSA, ...) where the `.item` file has none of their names.

    Raises:
        InputError: naming the column and those that there are; or of `read_header`.
    """
    if not config[SELECTED_FEATURES] or SELECTED_FEATURES not in config.internal_config_dict:  # a key nobody reads
        return
    if not file.is_file():
        raise InputError(f"{file} does not exist: {config['model']} reads columns of items ({SELECTED_FEATURES})")
    columns, loads = read_header(file, config["field_separator"], config["encoding"] or "utf-8"), config["load_col"]
    for feature in config[SELECTED_FEATURES]:
        if feature not in columns:
            raise InputError(
                f"{SELECTED_FEATURES}: {file} has no column {feature!r}; it has {', '.join(columns)}: name some "
                f"of them with --{SELECTED_FEATURES}="
            )
        if loads and loads.get("item") != "*" and feature not in loads.get("item", ()):
            raise InputError(
                f"load_col: {loads} leaves out the column {feature!r} of items, which {config['model']} reads; add "
                f"item: [{config['ITEM_ID_FIELD']}, {', '.join(config[SELECTED_FEATURES])}]"
            )
