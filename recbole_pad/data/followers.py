"""Which items follow which in the training histories: what the Markov and the match expert learn by counting."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from recbole_pad.data.histories import Histories
from recbole_pad.nn.plda import PLDA, fit_plda
from recbole_pad.nn.ragged import Ragged

log = logging.getLogger(__name__)

_WINDOW = 3  # how many later items count as following
_WINDOW_DECAY = 0.5  # weight ratio of neighbouring distances


def follower_counts(train: Histories, n_items: int) -> sp.csr_matrix:
    """How often item b follows item a in training, up to three later items, which count 1, 1/2 and 1/4.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.

    Returns:
        Sparse float64, shape (V, V), rows a, columns b; row and column 0 are empty.
    """
    users = np.repeat(np.arange(len(train.lengths)), train.lengths)
    table = sp.csr_matrix((n_items, n_items))
    for distance in range(1, _WINDOW + 1):
        same = users[distance:] == users[:-distance]
        before, after = train.items[:-distance][same], train.items[distance:][same]
        weight = _WINDOW_DECAY ** (distance - 1)
        table = table + sp.csr_matrix((np.full(len(before), weight), (before, after)), shape=(n_items, n_items))
    return sp.csr_matrix(table)


def follower_lists(train: Histories, n_items: int) -> Ragged:
    """`follower_counts` as lists: the followers of each item, and how often they follow."""
    counts = follower_counts(train, n_items)
    counts.sort_indices()
    offsets, items = (torch.from_numpy(part.astype(np.int64)) for part in (counts.indptr, counts.indices))
    return Ragged(offsets, items, torch.from_numpy(counts.data))


def plda_of_followers(rows: Callable[[Tensor], Tensor], train: Histories, n_items: int) -> PLDA | None:
    """PLDA of neighbouring items of the training histories, by their texts.

    Args:
        rows: unit text vectors of the items, as of `fit_plda`.
        train: each user's training interactions, in time order.
        n_items: V, padding included.

    Returns:
        The map; None, with a warning, where the histories say nothing of the texts.
    """
    plda = fit_plda(rows, follower_lists(train, n_items))
    if plda is None:
        log.warning("plda: neighbouring items of the training histories have no texts that correlate; cosine is used")
    return plda
