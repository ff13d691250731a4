"""The Markov expert: which items followed the history's items in training; nothing trained, item pairs only.

An encoder's state has a few dozen numbers and cannot hold by heart which item follows which; a table of the observed
pairs can. It scores only items that followed one of the history's, so its part of the score is a short list of
(item, value) beside the inner product. Source: ours, after the Markov chain baselines (FPMC's first term, Rendle et
al. 2010) and item-to-item cosine (Sarwar et al. 2001); docs/decisions.md, "Markov expert".
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from recbole_pad.data.followers import follower_counts
from recbole_pad.data.histories import Histories, decayed_history
from recbole_pad.nn.score_pairs import ScorePairs

_SCALE = 40.0  # of the size of the trained experts' scores, so that the gate starts fair


class Transitions(nn.Module):
    """score(u, i) = sum_j decay^j T[j-th last item, i].

    T[a, b] is how often b followed a in training, up to three items later (1, 1/2, 1/4), divided by the root of both
    items' train counts. The product of the sparse histories and T is SciPy's, on the CPU.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.
        decay: weight ratio of neighbouring items of the history, in [0, 1].
    """

    is_trained = False

    def __init__(self, train: Histories, n_items: int, decay: float) -> None:
        super().__init__()
        self.table = (_SCALE * transition_cosines(train, n_items)).astype(np.float32)
        self.n_items = n_items
        self.decay = decay

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> ScorePairs:
        """Scores of the items that followed one of the history's: item_seq (B, N) right-padded, item_seq_len (B,)."""
        history = decayed_history(item_seq, item_seq_len, self.decay, self.n_items).astype(np.float32)
        scores = sp.csr_matrix(history @ self.table)
        scores.sort_indices()
        rows = torch.from_numpy(np.repeat(np.arange(len(item_seq)), np.diff(scores.indptr)))
        items, values = torch.from_numpy(scores.indices.astype(np.int64)), torch.from_numpy(scores.data)
        return ScorePairs(*(part.to(item_seq.device) for part in (rows, items, values)))


def transition_cosines(train: Histories, n_items: int) -> sp.csr_matrix:
    """T[a, b]: how often b follows a in training, by distance, over the root of both train counts.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.

    Returns:
        Sparse float64, shape (V, V), column indices sorted; row and column 0 are empty.
    """
    root = sp.diags(1 / np.sqrt(np.maximum(np.bincount(train.items, minlength=n_items), 1)))
    cosines = sp.csr_matrix(root @ follower_counts(train, n_items) @ root)
    cosines.sort_indices()
    return cosines
