"""A sequential recommender whose score is an inner product of a user vector and an item vector: PAD and its rivals."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_pad.config import PADConfig
from recbole_pad.model.items import Catalogue
from recbole_pad.model.precision import computing_in


class VectorRecommender(SequentialRecommender):
    """Scores users with ``user_vectors(interaction) . item_vectors(item_ids)``, item vectors kept during evaluation.

    A model gives `item_vectors`, `user_vectors` and `keeps_items`, and sets `settings` and `catalogue`.

    Args:
        config: RecBole's config.
        dataset: a training split of `PADDataset`.
    """

    input_type = InputType.POINTWISE
    settings: PADConfig
    catalogue: Catalogue

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._kept: Any = None  # item vectors of the present evaluation, in the form that the model likes

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Vectors of the items, or of all (with padding): (n, w)."""
        raise NotImplementedError

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """User states after the newest item: (B, w)."""
        raise NotImplementedError

    def keeps_items(self) -> bool:
        """Whether the vectors of all items are kept now; else they are made in blocks, where they are needed."""
        raise NotImplementedError

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items: (B, V); where their vectors are not kept, they are made in blocks."""
        users = self.user_vectors(interaction)
        if self.keeps_items():
            return users @ self.item_vectors().T
        blocks = torch.arange(self.n_items, device=users.device).split(self._memory // (4 * users.size(1)) + 1)
        return torch.cat([users @ self.item_vectors(item_ids).T for item_ids in blocks], dim=1)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of the row's own candidate item: (B,)."""
        item_ids, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        return (self.user_vectors(interaction) * self.item_vectors(item_ids)[place]).sum(dim=1)

    def train(self, mode: bool = True) -> Self:
        """Switch between training and evaluation; either way item vectors kept for scoring are dropped."""
        self._kept = None
        super().train(mode)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; item vectors kept for scoring are dropped."""
        self._kept = None
        return super().load_state_dict(*args, **kwargs)

    @property
    def _memory(self) -> int:
        return self.settings.score_memory_mb * 2**20

    def _precision(self) -> AbstractContextManager[Any]:
        return computing_in(self.settings.precision, self.catalogue.bins.device)
