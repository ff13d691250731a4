"""Item vectors of the experts: from IDs, from IDs and text, from text adapted or as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_pad.config import PADConfig
from recbole_pad.data.followers import plda_of_followers
from recbole_pad.data.histories import Histories
from recbole_pad.data.text_cache import MappedVectors
from recbole_pad.distributed import Processes
from recbole_pad.nn.text_transforms import shortest_of, unit_rows

SCALE_ROWS = 20_000  # items on which the length of text vectors, or the scale of an adapter's output, is measured
_N_RARE = 1000  # rarest seen items whose mean stands for an item without a trained ID vector


class Catalogue(nn.Module):
    """What is known of the items before training; never stored in a checkpoint (`persistent=False`).

    Args:
        train_counts: train interactions of each item, shape (V,).
        trained: whether the item is in a training row (`PADDataset.trained_items`), shape (V,).
        bins: frequency bins, shape (V,).
        text_vectors: transformed text vectors, shape (V, D), row 0 zero; None for a model without text. Vectors on disk
            stay there: the rows that are asked for are read, and moved to the device.

    Attributes:
        counts: train interactions of each item, shape (V,).
        bins: frequency bin of each item, shape (V,); 1 = most frequent, 0 = padding.
        seen: whether the item is in a training row, shape (V,).
        seen_ids: the items that are, ascending, shape (S,).
        item_ids: all items without padding, ascending, shape (V - 1,).
        rare: the rarest of the seen items, at most 1,000, the rarest first: shape (min(1000, S),).
        log_frequency: log(1 + train count), standardised over the items, shape (V,).
        text_vectors: shape (V, D); None without text, and where it stays on disk.
        text_on_disk: the text vectors that do, else None.
    """

    seen: Tensor
    seen_ids: Tensor
    item_ids: Tensor
    bins: Tensor
    counts: Tensor
    rare: Tensor
    log_frequency: Tensor
    text_vectors: Tensor | None

    def __init__(
        self, train_counts: Tensor, trained: Tensor, bins: Tensor, text_vectors: Tensor | MappedVectors | None
    ) -> None:
        super().__init__()
        order = torch.argsort(torch.where(trained, train_counts, train_counts.max() + 1), stable=True)
        self.register_buffer("counts", train_counts, persistent=False)
        self.register_buffer("bins", bins, persistent=False)
        self.register_buffer("seen", trained, persistent=False)
        self.register_buffer("seen_ids", trained.nonzero().squeeze(1), persistent=False)
        self.register_buffer("item_ids", torch.arange(1, len(trained)), persistent=False)
        log_counts = torch.log1p(train_counts.float())
        spread = log_counts[1:].std().nan_to_num().clamp(min=1e-6)  # one item has none
        log_frequency = (log_counts - log_counts[1:].mean()) / spread
        self.register_buffer("log_frequency", log_frequency, persistent=False)
        self.register_buffer("rare", order[: min(_N_RARE, int(trained.sum()))], persistent=False)
        self.text_on_disk = text_vectors if isinstance(text_vectors, MappedVectors) else None
        in_memory = None if isinstance(text_vectors, MappedVectors) else text_vectors
        self.register_buffer("text_vectors", in_memory, persistent=False)

    @classmethod
    def of(cls, dataset: Any, text_vectors: Tensor | MappedVectors | None) -> Catalogue:
        """Of the items of a training split of `PADDataset`."""
        counts, trained, bins = map(torch.from_numpy, (dataset.train_counts, dataset.trained_items, dataset.bins))
        return cls(counts, trained, bins, text_vectors)

    @property
    def seen_counts(self) -> Tensor:
        """Train interactions of each item that is in a training row, 0 for the others; shape (V,)."""
        return torch.where(self.seen, self.counts, 0)

    def softmax_ids(self, negatives: str) -> Tensor:
        """The items of a full softmax, ascending: ``seen``, those that are in a training row; ``all``, every one."""
        return self.seen_ids if negatives == "seen" else self.item_ids

    @property
    def text_width(self) -> int:
        """D."""
        return self._text_shape[1]

    @property
    def _text_shape(self) -> tuple[int, int]:
        if self.text_on_disk is not None:
            return self.text_on_disk.shape
        assert self.text_vectors is not None, "this model was built without text vectors"
        return len(self.text_vectors), self.text_vectors.size(1)

    def text(self, item_ids: Tensor | None) -> Tensor:
        """Text vectors of the items, or of all; (n, D); on the device of the catalogue."""
        if self.text_on_disk is not None:
            return self.text_on_disk.rows(item_ids).to(self.counts.device)
        assert self.text_vectors is not None, "this model was built without text vectors"
        return self.text_vectors if item_ids is None else F.embedding(item_ids, self.text_vectors)

    def text_sample(self, n_rows: int) -> Tensor:
        """Text vectors of all items, or of `n_rows` items spread evenly over the ids; without padding."""
        last = self._text_shape[0] - 1
        if last <= n_rows:
            return self.text(None)[1:]
        return self.text(torch.linspace(1, last, n_rows, device=self.counts.device).long())


def text_vectors_of(dataset: Any, settings: PADConfig, processes: Processes) -> Tensor | MappedVectors:
    """The transformed text vectors; those that stay on disk are made and checked by the first process, for all.

    Args:
        dataset: a split of `PADDataset`.
        settings: `text_transform` and `text_memory_mb`.
        processes: of the run.
    """
    table, spec, memory_mb = dataset.text_table, settings.text_transform, settings.text_memory_mb
    if table.stays_on_disk(spec, memory_mb):
        on_disk: MappedVectors = processes.from_first(lambda: table.transformed(spec, memory_mb))
        if on_disk.path.is_file():  # not so on a machine that does not share the folder
            return on_disk
    vectors: Tensor | MappedVectors = table.transformed(spec, memory_mb)
    return vectors


class IDVectors(nn.Embedding):
    """ID embeddings; an item never seen in training gets the mean vector of the rarest seen items.

    Its own vector was never trained (or only pushed down as a negative), so it must not enter a score. The mean says
    what is known: it scores as a rare item does. ``unseen="raw"`` keeps the untrained vector (published behaviour).

    With ``sparse = True`` the gradient of a step is sparse: it names the rows that the step looked up, and no more.
    (DistributedDataParallel knows sparse gradients by this attribute of an `nn.Embedding`.)

    Args:
        initial: start values, shape (V, d); taken over, not copied.
        catalogue: which items are seen, and which of them are the rarest.
        unseen: ``mean`` or ``raw``.
        dropout: share of seen items whose ID vector is replaced likewise, per step, in training.
    """

    def __init__(self, initial: Tensor, catalogue: Catalogue, unseen: str, dropout: float = 0.0) -> None:
        super().__init__(initial.size(0), initial.size(1), _weight=initial)
        self.unseen = unseen
        self.dropout = dropout
        self._catalogue = [catalogue]  # in a list: shared, not a submodule of each expert

    def own_rows(self, item_ids: Tensor) -> Tensor:
        """Rows of the table as they are: nothing replaced or dropped; (n, d)."""
        return F.embedding(item_ids, self.weight, sparse=self.sparse)

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """ID vectors of the items, or of all; (n, d); the padding item is zero."""
        catalogue = self._catalogue[0]
        vectors = self.weight if item_ids is None else self.own_rows(item_ids)
        seen = catalogue.seen if item_ids is None else catalogue.seen[item_ids]
        replaced = ~seen if self.unseen == "mean" else torch.zeros_like(seen)
        if self.training and self.dropout > 0:
            replaced = replaced | (torch.rand(len(seen), device=seen.device) < self.dropout)
        if bool((replaced & _is_item(vectors, item_ids)).any()):  # else the rarest items are not part of the step
            mean = self.own_rows(catalogue.rare).mean(dim=0)
            vectors = torch.where(replaced[:, None], mean, vectors)
        return _without_padding(vectors, item_ids)


class TextVectors(nn.Module):
    """The adapter's output for the frozen text vectors (expert `llm`).

    Args:
        adapter: text width D -> d.
        catalogue: holds the text vectors.
    """

    def __init__(self, adapter: nn.Module, catalogue: Catalogue) -> None:
        super().__init__()
        self.adapter = adapter
        self._catalogue = [catalogue]

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Adapted text vectors of the items, or of all; (n, d); the padding item is zero."""
        return _without_padding(self.adapter(self._catalogue[0].text(item_ids)), item_ids)


class UnitTextVectors(nn.Module):
    """The frozen text vectors, scaled to length `length`; zero where there is no text (expert `match`, untrained).

    Args:
        catalogue: holds the text vectors.
        length: of every vector.
        train: each user's training interactions: the vectors are mapped into the space that tells neighbouring items
            from any two (`nn.plda`). None: they stay as they are.
    """

    def __init__(self, catalogue: Catalogue, length: float, train: Histories | None = None) -> None:
        super().__init__()
        self.length = length
        self._shortest = shortest_of(catalogue.text_sample(SCALE_ROWS))
        self._catalogue = [catalogue]
        self.plda = None if train is None else plda_of_followers(self._unit_rows, train, len(catalogue.counts))

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Vectors of the items, or of all; (n, D), or (n, K) where they are mapped; the padding item is zero."""
        vectors = self._unit_rows(item_ids)
        if self.plda is not None:
            vectors = self.plda(vectors)
        return _without_padding(self.length * vectors, item_ids)

    def _unit_rows(self, item_ids: Tensor | None) -> Tensor:
        return unit_rows(self._catalogue[0].text(item_ids), self._shortest)


class AlignedVectors(nn.Module):
    """Fusion of ID vectors with the adapted text vectors (expert `align`): their sum, or an activated layer over both.

    Source: docs/method.md section 3; published: v2_i = GELU(W [e'_i ; t_i] + c), e' a copy of the ID expert's vectors.
    """

    def __init__(self, ids: IDVectors, text: TextVectors, fusion: nn.Module) -> None:
        super().__init__()
        self.ids, self.text, self.fusion = ids, text, fusion

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Fused vectors of the items, or of all; (n, d); the padding item is zero."""
        return _without_padding(self.fusion(self.ids(item_ids), self.text(item_ids)), item_ids)


def _without_padding(vectors: Tensor, item_ids: Tensor | None) -> Tensor:
    return vectors * _is_item(vectors, item_ids)[:, None]


def _is_item(vectors: Tensor, item_ids: Tensor | None) -> Tensor:
    return torch.arange(len(vectors), device=vectors.device) > 0 if item_ids is None else item_ids > 0
