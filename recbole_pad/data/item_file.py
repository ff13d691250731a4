"""The `.item` file of a dataset: which columns make the texts, and the texts of a few items for people to read."""

from __future__ import annotations

from collections.abc import Collection
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_pad.config import columns_or_template
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts, text_columns
from recbole_pad.errors import InputError
from recbole_pad.property_files import properties


def item_file_of(dataset: Any) -> ItemFile:
    """Where RecBole's dataset has its items, and how RecBole reads them."""
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    return ItemFile(path, dataset.iid_field, dataset.config["field_separator"])


def columns_of_texts(dataset: Any) -> list[str]:
    """The columns (or the one template) that config key `text_fields` names or finds.

    Args:
        dataset: RecBole's dataset; of PAD or of a stock model, for which the default of `text_fields` is PAD's.

    Raises:
        InputError: as of `text_columns`.
    """
    fields = dataset.config["text_fields"] or properties("model", "PAD.yaml")["text_fields"]
    return text_columns(item_file_of(dataset), columns_or_template(fields, dataset.config["text_template"]))


def titles(dataset: Any, tokens: Collection[str]) -> dict[str, str]:
    """The texts of items, as the text encoder reads them.

    Args:
        dataset: as of `columns_of_texts`.
        tokens: of the items.

    Returns:
        Token -> text, empty where the `.item` file, one of the columns or the item's line is missing.
    """
    file = item_file_of(dataset)
    found: dict[str, str] = {}
    if file.path.is_file():
        try:
            found = read_item_texts(file, columns_of_texts(dataset), tokens)
        except InputError as error:
            getLogger().info(f"no titles: {error}")
    return {token: found.get(token, "") for token in tokens}
