"""The training-free models. Each scores all items for a sparse matrix of decayed histories.

Their formulas are those of the usual simple baselines (Ferrari Dacrema et al. 2019, "Are we really making much
progress?", RecSys; docs/baselines.md), SLIT's that of Choi et al. 2021: whoever trains a model has to beat them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_pad.baselines.counts import TIE_WEIGHT, linear_transitions, popularity_ties, transition_probabilities
from recbole_pad.baselines.text import item_texts
from recbole_pad.data.histories import decayed_history
from recbole_pad.errors import InputError
from recbole_pad.model_keys import number

_CHUNK_BYTES = 2**22  # of the scores of a chunk of rows: they stay in cache, and little is held beside the result
_MOST_ITEMS = 30_000  # of SLIT: two float32 matrices of items x items, 7 GB
_NO_ZERO = 1e-9  # in a division by a largest score


class TrainingFree(SequentialRecommender):
    """A model that counts when it is built and has nothing to train: no parameters, no loss.

    Args:
        config: RecBole's config.
        dataset: a training split of `PADDataset`.
    """

    input_type = InputType.POINTWISE
    decay = 0.0

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.ties = popularity_ties(dataset.train_counts)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """Scores of all items, float64, shape (B, V), for decayed histories (B, V)."""
        raise NotImplementedError

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items: shape (B, V), made in chunks of rows; float64, of which float32 would lose the ties."""
        item_seq = interaction[self.ITEM_SEQ]
        history = decayed_history(item_seq, interaction[self.ITEM_SEQ_LEN], self.decay, self.n_items)
        scores = torch.empty(len(item_seq), self.n_items, dtype=torch.float64)
        n_rows = max(1, _CHUNK_BYTES // (8 * self.n_items))
        for start in range(0, len(scores), n_rows):
            scores[start : start + n_rows] = torch.from_numpy(self.score(history[start : start + n_rows]))
        return scores.to(item_seq.device)

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of the row's own candidate item: float32 (RecBole's table of them), shape (B,).

        Rows of one history are scored once.
        """
        lengths, candidates = interaction[self.ITEM_SEQ_LEN], interaction[self.ITEM_ID]
        sequences, place = torch.unique(interaction[self.ITEM_SEQ], dim=0, return_inverse=True)
        distinct = Interaction(
            {self.ITEM_SEQ: sequences, self.ITEM_SEQ_LEN: lengths.new_zeros(len(sequences)).scatter(0, place, lengths)}
        )
        return self.full_sort_predict(distinct)[place, candidates].float()

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """There is none.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is training-free: it has no loss; `TrainingFreeTrainer` evaluates it as it is"
        )


class Popularity(TrainingFree):
    """s(i) = train interactions of i, whoever asks."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.counts = dataset.train_counts.astype(np.float64)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """As of `TrainingFree`."""
        return np.tile(self.counts, (history.shape[0], 1))


class MarkovChain(TrainingFree):
    """s(u, i) = sum_j decay^j P(i | j-th last item), ties by popularity."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.decay = number(config, "decay", 0.0, 1.0)
        self.transitions = transition_probabilities(dataset.train_histories, self.n_items)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """As of `TrainingFree`."""
        return _dense(history @ self.transitions) + self.ties


class SLIT(TrainingFree):
    """s(u, i) = sum_j decay^j B[j-th last item, i], ties by popularity; B: `linear_transitions`.

    Source: Choi et al. 2021 (WWW), "Session-aware Linear Item-Item Models for Session-based Recommendation"; here a
    history is followed by the next item alone.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.decay = number(config, "decay", 0.0, 1.0)
        ridge = number(config, "ridge", 1e-6, 1e9)
        if self.n_items > _MOST_ITEMS:
            raise InputError(
                f"model: SLIT holds two matrices of items x items, {8e-9 * self.n_items**2:.0f} GB for "
                f"{self.n_items:,} items; it is for {_MOST_ITEMS:,} at most: use MarkovChain"
            )
        newest = int(config["MAX_ITEM_LIST_LENGTH"])
        self.weights = linear_transitions(dataset.train_histories, self.n_items, newest, self.decay, ridge)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """As of `TrainingFree`."""
        return _dense(history.astype(np.float32) @ self.weights) + self.ties


class TextKNN(TrainingFree):
    """s(u, i) = sum_j decay^j cosine(text of i, text of the j-th last item), ties by popularity."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.decay = number(config, "decay", 0.0, 1.0)
        texts = item_texts(config, dataset)
        self.text_vectors, self.text_fingerprint = texts.vectors, texts.fingerprint
        self.text_columns = texts.vectors.T.tocsr() if sp.issparse(texts.vectors) else texts.vectors.T  # (D, V)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """As of `TrainingFree`."""
        users = history.astype(self.text_vectors.dtype) @ self.text_vectors
        return _dense(users @ self.text_columns) + self.ties


class MarkovTextKNN(TrainingFree):
    """s(u, i) = markov / its largest + text_weight * text / its largest, per user; see the other two."""

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.markov, self.text = MarkovChain(config, dataset), TextKNN(config, dataset)
        self.decay, self.text_fingerprint = self.markov.decay, self.text.text_fingerprint
        self.text_weight = number(config, "text_weight", 0.0, 1e6)

    def score(self, history: sp.csr_matrix) -> np.ndarray:
        """As of `TrainingFree`."""
        return _by_largest(self.markov.score(history)) + self.text_weight * _by_largest(self.text.score(history))


def _dense(matrix: Any) -> np.ndarray:
    dense: np.ndarray = matrix.toarray() if sp.issparse(matrix) else matrix
    return dense


def _by_largest(scores: np.ndarray) -> np.ndarray:
    """Each row divided by its largest absolute score, so that negative cosines keep their sign; (B, V).

    A row of nothing but ties (a history without followers) stays as it is: it would be popularity at full weight.
    """
    largest = np.maximum(scores.max(axis=1, keepdims=True), -scores.min(axis=1, keepdims=True))
    quotient: np.ndarray = scores / np.where(largest > TIE_WEIGHT, largest + _NO_ZERO, 1.0)
    return quotient
