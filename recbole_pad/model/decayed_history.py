"""The user side of the match expert: a decayed sum of the history's item vectors, nothing trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DecayedHistory(nn.Module):
    """c(u) = sum_j decay^j v(j-th last item): with unit text vectors, the score is a text kNN over the history.

    Args:
        decay: weight ratio of neighbouring items, in [0, 1]; 0 keeps the newest item only.

    Source: ours; the training-free baseline that published text models lose to (docs/decisions.md, "Match expert").
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    def forward(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """States after every position: (B, N, D); arguments as of `Backbone.forward`. Positions past the end repeat."""
        n_positions = item_seq.size(1)
        distance = torch.arange(n_positions, device=table.device)
        distance = distance[:, None] - distance[None, :]
        weights = torch.where(distance >= 0, torch.pow(self.decay, distance.clamp(min=0).to(table.dtype)), 0.0)
        return torch.einsum("tj,bjd->btd", weights, table[item_seq])

    def position_states(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after every item, row by row, shape (T, D)."""
        is_item = torch.arange(item_seq.size(1), device=item_seq.device) < item_seq_len[:, None]
        return self(table, item_seq, item_seq_len, user)[is_item]

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after the newest item, shape (B, D)."""
        distance = item_seq_len[:, None] - 1 - torch.arange(item_seq.size(1), device=table.device)
        weights = torch.where(distance >= 0, torch.pow(self.decay, distance.clamp(min=0).to(table.dtype)), 0.0)
        return torch.einsum("bj,bjd->bd", weights, table[item_seq])
