"""The texts of a few items, for reports that people read."""

from __future__ import annotations

from collections.abc import Collection
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_pad.config import column_names, properties
from recbole_pad.dataset_prep.item_texts import read_item_texts, text_columns
from recbole_pad.errors import InputError


def titles(dataset: Any, tokens: Collection[str]) -> dict[str, str]:
    """The texts of items: the columns of config key `text_fields`, as the text encoder reads them.

    Args:
        dataset: RecBole's dataset; of PAD or of a stock model, for which the default of `text_fields` is PAD's.
        tokens: of the items.

    Returns:
        Token -> text, empty where the `.item` file, one of the columns or the item's line is missing.
    """
    file = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    fields = dataset.config["text_fields"] or properties("model", "PAD.yaml")["text_fields"]
    found: dict[str, str] = {}
    if file.is_file():
        try:
            fields = text_columns(file, column_names(fields), dataset.iid_field)
            found = read_item_texts(file, fields, dataset.iid_field, tokens=tokens)
        except InputError as error:
            getLogger().info(f"no titles: {error}")
    return {token: found.get(token, "") for token in tokens}
