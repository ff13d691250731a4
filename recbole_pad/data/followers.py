"""Which items follow which in the training histories: what the Markov and the match expert learn by counting."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from recbole_pad.data.histories import Histories
from recbole_pad.nn.ragged import Ragged

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
