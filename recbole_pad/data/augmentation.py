"""RecBole's data augmentation, a row for every prefix of a user's sequence, without Python loops and without copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from recbole.data.interaction import Interaction
from recbole.utils import FeatureType
from torch import Tensor

from recbole_pad.data.histories import Histories
from recbole_pad.data.rows import LazyRows, RowColumns
from recbole_pad.data.time_order import is_in_order

Choice = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.bool_]]
"""Maps the user of each interaction and its number among the user's (from 0) to whether it is the target of a row."""


def data_augmentation(original: Callable[[Any], None], dataset: Any) -> None:
    """`SequentialDataset.data_augmentation` with equal columns, rows and order.

    Where a list column of RecBole's has another shape than its values have (it raises, or repeats values), it runs.
    """
    dataset._aug_presets()
    if all(_has_shape_of_list(dataset, field) for field in dataset.inter_feat if field != dataset.uid_field):
        make_rows(dataset, lambda users, position: position >= 1)
    else:
        original(dataset)


def make_rows(dataset: Any, is_target: Choice) -> None:
    """Turn the interactions of a sequential dataset into rows, and keep every user's `histories` beside them.

    Args:
        dataset: a sequential dataset of RecBole's whose `inter_feat` holds interactions as tensors.
        is_target: which interactions are targets; a user's first one cannot be. `dataset.histories` is there by then.
    """
    dataset._aug_presets()
    dataset._check_field("uid_field", "time_field")
    feat = dataset.inter_feat
    sort_by_user_and_time(feat, dataset.uid_field, dataset.time_field)
    users = feat[dataset.uid_field].numpy()
    dataset.histories = Histories.from_sorted(users, feat[dataset.iid_field].numpy(), dataset.user_num)
    position = np.arange(len(users)) - dataset.histories.offsets[users]
    chosen = np.flatnonzero(is_target(users, position))
    target, width = torch.from_numpy(chosen), int(dataset.max_item_list_len)
    length = torch.from_numpy(np.minimum(position[chosen], width))
    values = {getattr(dataset, f"{field}_list_field"): feat[field] for field in feat if field != dataset.uid_field}
    columns: dict[str, Tensor | None] = {field: feat[field][target] for field in feat}
    columns[dataset.item_list_length_field] = length
    columns.update(dict.fromkeys(values))
    dataset.inter_feat = LazyRows(RowColumns(columns, values, target, length, width))


def _has_shape_of_list(dataset: Any, field: str) -> bool:
    """Whether RecBole's list column of a field has the shape (rows, width, ...) that its values (rows, ...) give."""
    list_len = dataset.field2seqlen[getattr(dataset, f"{field}_list_field")]
    inner = () if isinstance(list_len, int) else tuple(list_len[1:])
    is_float = dataset.field2type[field] in (FeatureType.FLOAT, FeatureType.FLOAT_SEQ)
    if is_float and field in dataset.config["numerical_features"]:
        inner += (2,)
    return bool(tuple(dataset.inter_feat[field].shape[1:]) == inner)


def sort_by_user_and_time(feat: Interaction, user_field: str, time_field: str) -> None:
    """Sort in place; interactions of one user at one time keep their order. Nothing is moved if nothing has to be."""
    if time_field not in feat:
        feat.sort(by=time_field)  # raises RecBole's error
    user, time = (
        column.numpy() if column.dim() == 1 else column[..., 0].numpy()
        for column in (feat[user_field], feat[time_field])
    )
    if not is_in_order(user, time):
        feat._reindex(torch.from_numpy(np.lexsort((time, user))))
