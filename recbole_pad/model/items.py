"""Item vectors of the three experts: from IDs, from IDs and text, from text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_pad.nn.adapter import TextAdapter

_N_RARE = 1000  # rarest seen items whose mean stands for an item without a trained ID vector


class Catalogue(nn.Module):
    """What is known of the items before training; never stored in a checkpoint (`persistent=False`).

    `log_frequency` is log(1 + train count), standardised over the items: shape (V,).

    Args:
        train_counts: train interactions of each item, shape (V,).
        bins: frequency bins, shape (V,).
        text_vectors: transformed text vectors, shape (V, D), row 0 zero; None for a model without text.
    """

    seen: Tensor
    seen_ids: Tensor
    item_ids: Tensor
    bins: Tensor
    counts: Tensor
    rare: Tensor
    log_frequency: Tensor
    text_vectors: Tensor | None

    def __init__(self, train_counts: Tensor, bins: Tensor, text_vectors: Tensor | None) -> None:
        super().__init__()
        seen = train_counts > 0
        order = torch.argsort(torch.where(seen, train_counts, train_counts.max() + 1), stable=True)
        self.register_buffer("counts", train_counts, persistent=False)
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("seen", seen, persistent=False)
        self.register_buffer("seen_ids", seen.nonzero().squeeze(1), persistent=False)
        self.register_buffer("item_ids", torch.arange(1, len(seen)), persistent=False)
        log_counts = torch.log1p(train_counts.float())
        log_frequency = (log_counts - log_counts[1:].mean()) / log_counts[1:].std().clamp(min=1e-6)
        self.register_buffer("log_frequency", log_frequency, persistent=False)
        self.register_buffer("rare", order[: min(_N_RARE, int(seen.sum()))], persistent=False)
        self.register_buffer("text_vectors", text_vectors, persistent=False)

    def text(self, item_ids: Tensor | None) -> Tensor:
        """Text vectors of the items, or of all; (n, D)."""
        assert self.text_vectors is not None, "this model was built without text vectors"
        return self.text_vectors if item_ids is None else self.text_vectors[item_ids]


class IDVectors(nn.Module):
    """ID embeddings; an item never seen in training gets the mean vector of the rarest seen items.

    Its own vector was never trained (or only pushed down as a negative), so it must not enter a score. The mean says
    what is known: it scores as a rare item does. ``unseen="raw"`` keeps the untrained vector (published behaviour).

    Args:
        initial: start values, shape (V, d).
        catalogue: which items are seen, and which of them are the rarest.
        unseen: ``mean`` or ``raw``.
        dropout: share of seen items whose ID vector is replaced likewise, per step, in training.
    """

    def __init__(self, initial: Tensor, catalogue: Catalogue, unseen: str, dropout: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial.clone())
        self.unseen = unseen
        self.dropout = dropout
        self._catalogue = [catalogue]  # in a list: shared, not a submodule of each expert

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """ID vectors of the items, or of all; (n, d); the padding item is zero."""
        catalogue = self._catalogue[0]
        vectors = self.weight if item_ids is None else F.embedding(item_ids, self.weight)
        seen = catalogue.seen if item_ids is None else catalogue.seen[item_ids]
        replaced = ~seen if self.unseen == "mean" else torch.zeros_like(seen)
        if self.training and self.dropout > 0:
            replaced = replaced | (torch.rand(len(seen), device=seen.device) < self.dropout)
        if self.unseen == "mean" or self.dropout > 0:
            mean = F.embedding(catalogue.rare, self.weight).mean(dim=0)
            vectors = torch.where(replaced[:, None], mean, vectors)
        return _without_padding(vectors, item_ids)


class TextVectors(nn.Module):
    """The adapter's output for the frozen text vectors (expert 3).

    Args:
        adapter: text width D -> d.
        catalogue: holds the text vectors.
    """

    def __init__(self, adapter: TextAdapter, catalogue: Catalogue) -> None:
        super().__init__()
        self.adapter = adapter
        self._catalogue = [catalogue]

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Adapted text vectors of the items, or of all; (n, d); the padding item is zero."""
        return _without_padding(self.adapter(self._catalogue[0].text(item_ids)), item_ids)


class UnitTextVectors(nn.Module):
    """The frozen text vectors themselves, scaled to length `length` (expert 4, nothing trained)."""

    def __init__(self, catalogue: Catalogue, length: float) -> None:
        super().__init__()
        self.length = length
        self._catalogue = [catalogue]

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Vectors of the items, or of all; (n, D); the padding item is zero."""
        return _without_padding(self.length * F.normalize(self._catalogue[0].text(item_ids), dim=1), item_ids)


class AlignedVectors(nn.Module):
    """Fusion of a copy of the ID embeddings with the adapted text vectors (expert 2).

    Source: docs/method.md section 3, v2_i = GELU(W [e'_i ; t_i] + c).
    """

    def __init__(self, ids: IDVectors, text: TextVectors, fusion: nn.Module) -> None:
        super().__init__()
        self.ids, self.text, self.fusion = ids, text, fusion

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Fused vectors of the items, or of all; (n, d); the padding item is zero."""
        return _without_padding(self.fusion(self.ids(item_ids), self.text(item_ids)), item_ids)


def _without_padding(vectors: Tensor, item_ids: Tensor | None) -> Tensor:
    is_item = torch.arange(len(vectors), device=vectors.device) > 0 if item_ids is None else item_ids > 0
    return vectors * is_item[:, None]
