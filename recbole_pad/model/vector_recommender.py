"""A sequential recommender whose score is an inner product of a user vector and an item vector: PAD and its rivals.

Beside it stand a few pairs: what the user has had gets a number of its own (`RepeatTerm`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_pad.config import PADConfig
from recbole_pad.distributed import Processes
from recbole_pad.model.items import Catalogue
from recbole_pad.model.precision import computing_in
from recbole_pad.model.repeat_term import RepeatTerm
from recbole_pad.nn.score_pairs import ScorePairs


class VectorRecommender(SequentialRecommender):
    """Scores users with ``user_vectors(interaction) . item_vectors(item_ids)``, item vectors kept during evaluation.

    A model gives `item_vectors`, `user_vectors` and `keeps_items`, and sets `catalogue`. It may add more than
    repeats to the scores of a few items (`pair_scores`).

    Args:
        config: RecBole's config.
        dataset: a training split of `PADDataset`.
    """

    input_type = InputType.POINTWISE
    catalogue: Catalogue

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.processes = Processes.of(config)
        self.settings = PADConfig.read(config)
        self.repeats = RepeatTerm(self.n_items)
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

    def pair_scores(self, interaction: Interaction) -> ScorePairs | None:
        """What is added to the scores of a few items of each row; None: nothing."""
        return self.repeat_scores(interaction)

    def repeat_scores(self, interaction: Interaction) -> ScorePairs | None:
        """The repeat term, once it is fitted (key `repeat_term`)."""
        if self.settings.repeat_term == "none" or not self.repeats.shift:
            return None
        pairs: ScorePairs = self.repeats(interaction[self.ITEM_SEQ])
        return pairs

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items: (B, V); where their vectors are not kept, they are made in blocks."""
        users = self.user_vectors(interaction)
        if self.keeps_items():
            scores = users @ self.item_vectors().T
        else:
            blocks = torch.arange(self.n_items, device=users.device).split(self._memory // (4 * users.size(1)) + 1)
            scores = torch.cat([users @ self.item_vectors(item_ids).T for item_ids in blocks], dim=1)
        pairs = self.pair_scores(interaction)
        return scores if pairs is None else pairs.add_to(scores)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of the row's own candidate item: (B,)."""
        item_ids, place = torch.unique(interaction[self.ITEM_ID], return_inverse=True)
        scores = (self.user_vectors(interaction) * self.item_vectors(item_ids)[place]).sum(dim=1)
        pairs = self.pair_scores(interaction)
        if pairs is None:
            return scores
        every_row = torch.arange(len(scores), device=scores.device)
        return scores + pairs.at(every_row, interaction[self.ITEM_ID], self.n_items)

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
