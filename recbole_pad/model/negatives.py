"""Negative items, drawn on the device: uniform or by popularity, from seen or from all items."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_pad.model.items import Catalogue

_MAX_REDRAWS = 50


def way_of(settings: Any) -> tuple[bool, bool]:
    """How the settings want negatives drawn: (`seen_only`, `by_popularity`) of a `NegativeSampler`."""
    return settings.negatives == "seen", settings.negative_sampling == "popularity"


class NegativeSampler(nn.Module):
    """Draws negative items.

    Args:
        train_counts: train interactions of each item, shape (V,), padding 0.
        train_keys: sorted distinct ``user * V + item`` of all training interactions, int64.
        seen_only: draw from items with train interactions only (else from all, published).
        by_popularity: draw in proportion to train counts (else uniformly).
    """

    pool: Tensor
    keys: Tensor
    log_probability: Tensor
    cumulative: Tensor | None

    def __init__(self, train_counts: Tensor, train_keys: np.ndarray, seen_only: bool, by_popularity: bool) -> None:
        super().__init__()
        usable = train_counts > 0 if seen_only or by_popularity else torch.arange(len(train_counts)) > 0
        weights = torch.where(usable, train_counts if by_popularity else 1, 0).double()
        self.n_items = len(train_counts)
        self.by_popularity = by_popularity
        self.register_buffer("pool", usable.nonzero().squeeze(1), persistent=False)
        self.register_buffer("cumulative", weights[usable].cumsum(0) if by_popularity else None, persistent=False)
        self.register_buffer("keys", torch.from_numpy(train_keys), persistent=False)
        self.register_buffer("log_probability", (weights / weights.sum()).log().float(), persistent=False)

    @classmethod
    def of(cls, catalogue: Catalogue, dataset: Any, seen_only: bool, by_popularity: bool) -> NegativeSampler:
        """Of the items of a training split of `PADDataset`."""
        keys = dataset.train_histories.keys(len(catalogue.counts))
        return cls(catalogue.seen_counts, keys, seen_only, by_popularity)

    def draw(self, *shape: int) -> Tensor:
        """Items from the pool, int64, of the given shape; the time does not grow with the pool."""
        if self.cumulative is not None:  # inverse distribution function; float64 sums of counts are exact
            mark = torch.rand(shape, dtype=torch.float64, device=self.pool.device) * self.cumulative[-1]
            place = torch.searchsorted(self.cumulative, mark, right=True)
            return self.pool[place.clamp(max=len(self.pool) - 1)]
        return self.pool[torch.randint(len(self.pool), shape, device=self.pool.device)]

    def draw_shared(self, n_negatives: int) -> Tensor:
        """Negatives for a whole step, shape (K,): drawn from the pool, or the pool itself where it has no more than K.

        With the whole pool and `log_expected_count` the sampled softmax is the full one.
        """
        return self.pool if n_negatives >= len(self.pool) else self.draw(n_negatives)

    def log_expected_count(self, negatives: Tensor) -> Tensor:
        """Log of how often each of the K items that `draw_shared` gave is expected among them: (K,) -> (K,)."""
        if len(negatives) >= len(self.pool):
            return torch.zeros_like(negatives, dtype=self.log_probability.dtype)
        return self.log_probability[negatives] + math.log(len(negatives))

    def draw_unseen_by(self, users: Tensor, n_negatives: int) -> Tensor:
        """Negatives that are not in the user's training sequence.

        Items that the user has are drawn again, at most 50 times: a user who has (nearly) the whole pool keeps what
        was drawn last.

        Args:
            users: user ids, shape (M,).
            n_negatives: K.

        Returns:
            Item ids, shape (M, K).
        """
        negatives = self.draw(len(users), n_negatives)
        for _ in range(_MAX_REDRAWS):
            taken = self._is_taken(users[:, None] * self.n_items + negatives)
            n_taken = int(taken.sum())
            if not n_taken:
                break
            negatives[taken] = self.draw(n_taken)
        return negatives

    def _is_taken(self, keys: Tensor) -> Tensor:
        place = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self.keys[place] == keys
