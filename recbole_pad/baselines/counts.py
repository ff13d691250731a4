"""What the training-free models know of the data: sparse matrices of histories and transitions."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import cho_factor, cho_solve

from recbole_pad.data.histories import Histories, decayed_history
from recbole_pad.data.rows import windows

TIE_WEIGHT = 1e-6


def transition_probabilities(train: Histories, n_items: int) -> sp.csr_matrix:
    """P(next item | item) of a first-order Markov chain, from neighbouring items of the training histories.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.

    Returns:
        Sparse float64, shape (V, V); a row sums to 1, or is empty where the item is never followed by another.
    """
    is_last = np.zeros(len(train.items), dtype=bool)
    is_last[train.offsets[1:][train.lengths > 0] - 1] = True
    before, after = train.items[:-1][~is_last[:-1]], train.items[1:][~is_last[:-1]]
    counts = sp.csr_matrix((np.ones(len(before)), (before, after)), shape=(n_items, n_items))
    totals = np.asarray(counts.sum(axis=1)).ravel()
    return sp.csr_matrix(sp.diags(1 / np.maximum(totals, 1)) @ counts)


def linear_transitions(train: Histories, n_items: int, newest: int, decay: float, ridge: float) -> np.ndarray:
    """Weights B of the ridge regression of the next item (one-hot) on the decayed history, over all training positions.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.
        newest: items of a history that count.
        decay: in [0, 1]; weight of the j-th last item is decay^j.
        ridge: above 0.

    Returns:
        Float32, shape (V, V): rows are items of the history, columns the next item. Two such matrices are held for a
        while, beside the sparse histories (`newest` numbers per interaction) and their products.
    """
    place = np.arange(len(train.items)) - np.repeat(train.offsets[:-1], train.lengths)
    targets = np.flatnonzero(place > 0)
    lengths = np.minimum(place[targets], newest)
    item_seq_len = torch.from_numpy(lengths)
    item_seq = windows(
        torch.from_numpy(train.items), torch.from_numpy(targets), item_seq_len, int(lengths.max(initial=0))
    )
    histories = decayed_history(item_seq, item_seq_len, decay, n_items).astype(np.float32)
    ones = np.ones(len(targets), dtype=np.float32)
    following = sp.csr_matrix((ones, (np.arange(len(targets)), train.items[targets])), shape=(len(targets), n_items))
    gram = (histories.T @ histories).toarray(order="F")  # the order in which LAPACK works in place
    gram[np.diag_indices(n_items)] += ridge
    factor = cho_factor(gram, overwrite_a=True)
    solved = cho_solve(factor, (histories.T @ following).toarray(order="F"), overwrite_b=True)
    del gram, factor
    return np.ascontiguousarray(solved)  # or scipy copies it at every product


def popularity_ties(train_counts: np.ndarray) -> np.ndarray:
    """What is added to a score so that ties go to the more popular item: count / largest count * 1e-6, shape (V,)."""
    ties: np.ndarray = train_counts / max(train_counts.max(), 1) * TIE_WEIGHT
    return ties
