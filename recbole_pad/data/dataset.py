"""PADDataset: RecBole's sequential dataset with all-position training rows, train counts, bins and text vectors."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataset import SequentialDataset

from recbole_pad.backbone_classes import train_rows_of
from recbole_pad.config import PADConfig
from recbole_pad.data.augmentation import make_rows
from recbole_pad.data.frequency import equal_mass_bins
from recbole_pad.data.histories import LEFT_OUT, Histories, train_counts, train_histories
from recbole_pad.data.item_file import item_file_of
from recbole_pad.data.rows import rows_from_here, take_rows
from recbole_pad.data.text_table import JointTextTable, TextTable, find_text_table
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError


class PADDataset(SequentialDataset):
    """Sequential dataset for PAD.

    With ``train_rows: sequences`` only the rows that are used are built: per user the last training row, which holds
    the whole (last L + 1 items of the) training sequence, and the held-out rows. With ``prefixes`` every prefix is a
    row, as in RecBole. Held-out rows equal RecBole's in both cases.

    Attributes (after `build`, on each split):
        histories: all interactions of every user, in time order.
        train_histories: the same without held-out interactions.
        train_counts: train interactions of each item, shape (n_items,), int64.
        trained_items: whether an item is in a training row, shape (n_items,), bool. With ``train_windows: last`` those
            of older interactions alone are in none: no encoder ever meets them.
        bins: frequency bin of each item, shape (n_items,): 1 = most frequent, last = rarest, 0 = padding.
    """

    inter_feat: Any
    histories: Histories

    def __init__(self, config: Any) -> None:
        if config["benchmark_filename"]:
            raise InputError(
                "benchmark_filename: PAD makes its rows from whole histories; give one .inter file of all interactions "
                "and a split in eval_args"
            )
        self._settings = PADConfig.read(config)
        self.train_rows = train_rows_of(self._settings.train_rows, self._settings.backbone)
        mode = next((mode for mode in config["eval_args"]["mode"].values() if str(mode).startswith("pop")), None)
        if mode is not None and self.train_rows == "sequences":
            raise InputError(
                f"eval_args: mode {mode} draws items by how many rows end in them, and train_rows: sequences makes few "
                "rows: other models would be ranked among other items. Use uniN or full, or set train_rows: prefixes"
            )
        super().__init__(config)

    def data_augmentation(self) -> None:
        """Build the rows: RecBole's, restricted to those that are needed; their lists are made batch by batch."""
        make_rows(self, self._is_needed)

    def _is_needed(self, users: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Which interactions are targets of a row; `position` counts a user's interactions from 0."""
        is_row = position >= 1
        mode = self.config["eval_args"]["split"].get("LS")
        if self.train_rows != "sequences" or mode not in LEFT_OUT:
            return is_row
        last = self.histories.lengths[users] - 1
        last_train = last - np.clip(last - 1, 0, max(LEFT_OUT[mode].values()))
        return is_row & (self._ends_window(last_train - position) | (position > last_train))

    def _ends_window(self, distance: np.ndarray) -> np.ndarray:
        """Whether a training row ends here; `distance` = training interactions of the user after this one."""
        if self._settings.train_windows == "all":
            return (distance >= 0) & (distance % self.max_item_list_len == 0)
        return distance == 0

    def build(self) -> list[PADDataset]:
        """Split as RecBole does; then keep the training rows that `train_rows` asks for, and count the items."""
        splits: list[PADDataset] = super().build()
        train = train_histories(self.histories, splits[1:], self.uid_field)
        counts = train_counts(train, self.item_num)
        bins = equal_mass_bins(counts, self._settings.n_bins)
        trained = train_counts(self._in_rows(train), self.item_num) > 0
        for dataset in (self, *splits):
            dataset.train_histories, dataset.train_counts, dataset.bins = train, counts, bins
            dataset.trained_items = trained
        if self.train_rows == "sequences" and "LS" not in self.config["eval_args"]["split"]:
            splits[0].inter_feat = self._window_rows(splits[0].inter_feat)
        return splits

    def _in_rows(self, train: Histories) -> Histories:
        """The training interactions that are in a training row."""
        cuts = self.train_rows == "sequences" and self._settings.train_windows == "last"
        return train.newest(self.max_item_list_len + 1) if cuts else train

    def _window_rows(self, feat: Any) -> Any:
        """Of all training rows, those that end a window; the rows of a user are in time order."""
        n_after = rows_from_here(feat[self.uid_field].numpy()) - 1
        return take_rows(feat, np.flatnonzero(self._ends_window(n_after)))

    @cached_property
    def text_table(self) -> TextTable | JointTextTable:
        """The text vectors of all items, found (and checked) or made; see `recbole_pad.data.text_table`."""
        settings = self._settings
        return find_text_table(
            self.dataset_name,
            item_file_of(self),
            list(self.field2id_token[self.iid_field]),
            text_encoder=settings.text_encoder,
            text_fields=settings.text_columns,
            folder=Path(settings.text_vectors_dir),
            show_progress=bool(self.config["show_progress"]),
            processes=Processes.of(self.config),
        )
