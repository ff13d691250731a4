"""Every user's items in time order, and the part of them that is history at evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_pad.data.rows import windows
from recbole_pad.errors import InputError

LEFT_OUT = {  # held-out interactions of a user from the target on, by RecBole's LS mode and phase
    "valid_and_test": {"valid": 2, "test": 1},
    "valid_only": {"valid": 1, "test": 1},
    "test_only": {"valid": 1, "test": 1},
}


def cuts_globally(config: Any) -> bool:
    """Whether the split is one at two times for all users (`data.time_cuts`); then every row has its own history."""
    return bool(config["global_time_cuts"]) and "TS" in (config["eval_args"]["split"] or {})


def n_left_out(split: Mapping[str, Any], phase: str) -> int:
    """How many of a user's last interactions are not history when `phase` is evaluated (target included).

    Args:
        split: RecBole's ``eval_args["split"]``, for example ``{"LS": "valid_and_test"}``.
        phase: ``valid`` or ``test``.

    Raises:
        InputError: if the split is not a leave-one-out split.
    """
    mode = split.get("LS")
    if mode not in LEFT_OUT:
        raise InputError(
            f"mask_history: True is defined for leave-one-out splits only, but eval_args.split is {dict(split)}; "
            "set mask_history: False, or split: {'LS': 'valid_and_test'}, or {'TS': ...} with global_time_cuts: True"
        )
    return LEFT_OUT[mode][phase]


@dataclass(frozen=True)
class Histories:
    """All items of each user, oldest first, in compressed rows.

    Attributes:
        offsets: shape (n_users + 1,), int64; user u's items are ``items[offsets[u]:offsets[u + 1]]``.
        items: shape (n_interactions,), int64, RecBole item ids.
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def from_sorted(cls, users: np.ndarray, items: np.ndarray, n_users: int) -> Histories:
        """Build from interactions sorted by user and time; both arrays have shape (n_interactions,)."""
        return cls(np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))]), items)

    def pairs(self, users: Tensor, left_out: int | np.ndarray) -> tuple[Tensor, Tensor]:
        """(row, item) pairs of the history of each user, without the last `left_out` interactions.

        Args:
            users: user ids, shape (B,).
            left_out: interactions dropped from the end of each user's items; one number, or shape (B,).

        Returns:
            Two int64 tensors of equal length: the row in `users`, and the item.
        """
        who = users.numpy()
        start = self.offsets[who]
        length = np.maximum(self.offsets[who + 1] - left_out - start, 0)
        rows = np.repeat(np.arange(len(who)), length)
        within = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
        return torch.from_numpy(rows), torch.from_numpy(self.items[np.repeat(start, length) + within])

    @property
    def lengths(self) -> np.ndarray:
        """Interactions of each user, shape (n_users,), int64."""
        return np.diff(self.offsets)

    def drop_last(self, n_dropped: np.ndarray) -> Histories:
        """Without the last `n_dropped` interactions of each user; shape (n_users,), at most the user's length."""
        kept = self._from_here > np.repeat(n_dropped, self.lengths)
        return Histories(np.concatenate([[0], np.cumsum(self.lengths - n_dropped)]), self.items[kept])

    def newest(self, n: int) -> Histories:
        """The newest `n` interactions of each user at most."""
        lengths = np.minimum(self.lengths, n)
        return Histories(np.concatenate([[0], np.cumsum(lengths)]), self.items[self._from_here <= n])

    def newest_items(self, users: np.ndarray, n: int) -> tuple[Tensor, Tensor]:
        """Item lists as an encoder reads them: the newest `n` items of each user, padded with 0 on the right.

        Args:
            users: user ids, shape (B,).
            n: longest list.

        Returns:
            Items, shape (B, n), and how many each user has, shape (B,); int64.
        """
        lengths = torch.from_numpy(np.minimum(self.lengths[users], n))
        return windows(torch.from_numpy(self.items), torch.from_numpy(self.offsets[users + 1]), lengths, n), lengths

    @property
    def _from_here(self) -> np.ndarray:
        """For each interaction, how many its user has from it on: 1 for the newest."""
        return np.repeat(self.offsets[1:], self.lengths) - np.arange(len(self.items))

    def keys(self, n_items: int) -> np.ndarray:
        """Sorted distinct ``user * n_items + item`` of all interactions, int64."""
        keys = np.repeat(np.arange(len(self.offsets) - 1), self.lengths) * n_items + self.items
        keys.sort()
        return keys[np.diff(keys, prepend=-1) > 0]  # np.unique of numpy 2.3 and later hashes: 100 times slower

    def digest(self) -> str:
        """sha256 of the sequences: equal for equal data in equal order."""
        hasher = hashlib.sha256(np.ascontiguousarray(self.offsets, dtype=np.int64).tobytes())
        hasher.update(np.ascontiguousarray(self.items, dtype=np.int64).tobytes())
        return hasher.hexdigest()


def histories_of(dataset: Any) -> Histories:
    """The histories of a whole sequential dataset, ours or RecBole's, before or after `build`.

    Where our `augmentation` made the rows, the dataset holds them. RecBole's own holds one row per prefix: the targets,
    and the first item in the user's first row. `build` sorts the rows of all users together by time; the rows of one
    user stay in order. Users with one interaction are missing there: they have no row.
    """
    own = getattr(dataset, "histories", None)
    if own is not None:
        histories: Histories = own
        return histories
    feat = dataset.inter_feat
    users = feat[dataset.uid_field].numpy()
    with_rows, first_row = np.unique(users, return_index=True)
    first_items = feat[dataset.iid_field + dataset.config["LIST_SUFFIX"]][:, 0].numpy()[first_row]
    items = np.concatenate([first_items, feat[dataset.iid_field].numpy()])
    users = np.concatenate([with_rows, users])
    by_user = np.argsort(users, kind="stable")  # a user's first item stays before its targets
    return Histories.from_sorted(users[by_user], items[by_user], dataset.user_num)


def train_histories(histories: Histories, held_out: list[Any], uid_field: str) -> Histories:
    """The training part of the histories: without one interaction for each validation or test row of a user.

    A user without a training row has none: the first interaction, which is no row, is no training data either.

    Args:
        histories: all interactions, in time order.
        held_out: RecBole's validation and test datasets.
        uid_field: name of the user column.
    """
    n_users = len(histories.offsets) - 1
    n_dropped = sum(
        np.bincount(split.inter_feat[uid_field].numpy(), minlength=n_users) for split in held_out if len(split)
    )
    n_left = histories.lengths - np.broadcast_to(n_dropped, n_users)
    return histories.drop_last(histories.lengths - np.where(n_left >= 2, n_left, 0))


def train_counts(train: Histories, n_items: int) -> np.ndarray:
    """Train interactions of each item, shape (n_items,), int64.

    Args:
        train: each user's training interactions, as `train_histories` gives them.
        n_items: number of item ids, padding included.
    """
    return np.bincount(train.items, minlength=n_items)


def decayed_history(item_seq: Tensor, item_seq_len: Tensor, decay: float, n_items: int) -> sp.csr_matrix:
    """The weight of every item in every history: the sum of decay^j over the places j of the item, newest first.

    Args:
        item_seq: item ids, oldest first, right-padded with 0, shape (B, N).
        item_seq_len: items of each row, shape (B,).
        decay: in [0, 1]; 0 keeps the newest item only.
        n_items: V, padding included.

    Returns:
        Sparse float64, shape (B, V).
    """
    items, lengths = item_seq.cpu().numpy(), item_seq_len.cpu().numpy()
    distance = lengths[:, None] - 1 - np.arange(items.shape[1])
    rows, places = np.nonzero(distance >= 0)
    weights = float(decay) ** distance[rows, places]
    return sp.csr_matrix((weights, (rows, items[rows, places])), shape=(len(items), n_items))
