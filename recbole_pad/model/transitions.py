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
from recbole_pad.data.histories import Histories
from recbole_pad.nn.ragged import Ragged
from recbole_pad.nn.score_pairs import ScorePairs

_PAIR_BYTES = 72  # of a pair while its values are added up
_BLOCK_MB = 64  # larger blocks are slower on a CPU
_SCALE = 40.0  # of the size of the trained experts' scores, so that the gate starts fair


class Transitions(nn.Module):
    """score(u, i) = sum_j decay^j T[j-th last item, i].

    T[a, b] is how often b followed a in training, up to three items later (1, 1/2, 1/4), divided by the root of both
    items' train counts.

    Args:
        train: each user's training interactions, in time order.
        n_items: V, padding included.
        decay: weight ratio of neighbouring items of the history, in [0, 1].
        memory_mb: for the pairs of history items and followers that are held at once, in MB (2^20 bytes), at most
            `_BLOCK_MB`; exceeded by the pairs of one row at most.
    """

    offsets: Tensor
    items: Tensor
    values: Tensor
    is_trained = False

    def __init__(self, train: Histories, n_items: int, decay: float, memory_mb: float = _BLOCK_MB) -> None:
        super().__init__()
        table = transition_cosines(train, n_items)
        self.n_items = n_items
        self.decay = decay
        self.most_pairs = max(1, int(min(memory_mb, _BLOCK_MB) * 2**20) // _PAIR_BYTES)
        self.register_buffer("offsets", torch.from_numpy(table.indptr.astype(np.int64)), persistent=False)
        self.register_buffer("items", torch.from_numpy(table.indices.astype(np.int64)), persistent=False)
        self.register_buffer("values", torch.from_numpy(_SCALE * table.data).float(), persistent=False)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> ScorePairs:
        """Scores of the items that followed one of the history's: item_seq (B, N) right-padded, item_seq_len (B,)."""
        distance = item_seq_len[:, None] - 1 - torch.arange(item_seq.size(1), device=item_seq.device)
        n_followers = (self.offsets[item_seq + 1] - self.offsets[item_seq]).masked_fill(distance < 0, 0)
        part = n_followers.sum(dim=1).cumsum(0) // self.most_pairs  # rows of the same part are done together
        starts = ((part[1:] != part[:-1]).nonzero()[:, 0] + 1).tolist()
        parts = zip([0, *starts], item_seq.tensor_split(starts), distance.tensor_split(starts), strict=True)
        return ScorePairs.joined([self._of_rows(*of_part) for of_part in parts])

    def _of_rows(self, first: int, item_seq: Tensor, distance: Tensor) -> ScorePairs:
        """Scores of some rows, numbered from `first`; distance (b, N) of each item from the newest, below 0 padding."""
        rows, columns = (distance >= 0).nonzero(as_tuple=True)
        weights = torch.pow(self.decay, distance[rows, columns].to(self.values.dtype))
        place, entry = Ragged(self.offsets, self.items).entries(item_seq[rows, columns])
        values = weights[place] * self.values[entry]
        return ScorePairs.summed(rows[place] + first, self.items[entry], values, self.n_items)


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
