"""LLM-ESR: two views of the items that attend to each other, and users that learn from similar users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_pad.backbone_classes import backbone_spec
from recbole_pad.data.histories import Histories
from recbole_pad.errors import InputError
from recbole_pad.model.backbone import Backbone, is_item
from recbole_pad.model.experts import Expert, id_vectors
from recbole_pad.model.items import SCALE_ROWS, TextVectors
from recbole_pad.model.positions import Encoder, places_in, with_padding
from recbole_pad.model_keys import number, whole, word
from recbole_pad.nn.adapter import TextAdapter
from recbole_pad.rivals.llm_init import INIT_AXES, start_from_text
from recbole_pad.rivals.tower import Tower, TrainedBatch

Views = tuple[Tensor, Tensor]


class DualVectors(nn.Module):
    """[v_1 ; v_2]: the vectors of two modules, side by side."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, item_ids: Tensor | None) -> Tensor:
        """Vectors of the items, or of all; (n, 2d)."""
        return torch.cat([self.first(item_ids), self.second(item_ids)], dim=1)


class CrossAttention(nn.Module):
    """Each view of a sequence is rewritten by attention on itself, asked by the other view.

    With X, Y the two views, (B, N, d), times sqrt(d), plus position vectors: new X = MHA(query Y, key X, value X), new
    Y = MHA(query X, key Y, value Y). A position sees itself and what came before.

    Args:
        hidden_size: d.
        n_heads: divides d.
        max_length: longest sequence.
        dropout: on the inputs, in [0, 1).

    Source: Liu et al. 2024, section 3.2; the authors' `Multi_CrossAttention`, in which a position sees the future too:
    there each row trains its last position only, here every position has a target. Torch's layer also has biases.
    """

    def __init__(self, hidden_size: int, n_heads: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.positions = nn.Embedding(max_length, hidden_size)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.dropout = nn.Dropout(dropout)
        self.of_first = nn.MultiheadAttention(hidden_size, n_heads, batch_first=True)
        self.of_second = nn.MultiheadAttention(hidden_size, n_heads, batch_first=True)

    def forward(self, first: Tensor, second: Tensor) -> Views:
        """Two times (B, N, d), right-padded -> the same shapes; what stands at padding means nothing."""
        length, width = first.shape[1:]
        place = self.positions.weight[:length]
        first, second = (self.dropout(view * width**0.5 + place) for view in (first, second))
        future = torch.ones(length, length, dtype=torch.bool, device=first.device).triu(1)
        return (
            self.of_first(second, first, first, attn_mask=future, need_weights=False)[0],
            self.of_second(first, second, second, attn_mask=future, need_weights=False)[0],
        )


def _replaced(views: Views, crossed: Views) -> Views:
    return crossed


def _added(views: Views, crossed: Views) -> Views:
    return views[0] + crossed[0], views[1] + crossed[1]


CROSS_ATTENTION: dict[str, Callable[[Views, Views], Views] | None] = {
    "replace": _replaced,
    "add": _added,
    "none": None,
}


class DualEncoder(nn.Module):
    """One user encoder for both views: a state is [state of the first view ; state of the second].

    Args:
        backbone: shared by the views; a module.
        cross: rewrites the views of a sequence before the backbone reads them.
        combine: from the views and the rewritten ones to what the backbone reads; None: there is no `cross`.
    """

    def __init__(
        self, backbone: Encoder, cross: CrossAttention | None, combine: Callable[[Views, Views], Views] | None
    ) -> None:
        super().__init__()
        self.backbone: Encoder = backbone
        self.cross, self._combine = cross, combine

    def position_states(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """As of `Backbone`, with vectors of twice its width; (T, 2d)."""
        return self._encode(self.backbone.position_states, table, item_seq, item_seq_len, user)

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """As of `Backbone`, with vectors of twice its width; (B, 2d)."""
        return self._encode(self.backbone.last_state, table, item_seq, item_seq_len, user)

    def _encode(
        self, read: Callable[..., Tensor], table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor
    ) -> Tensor:
        first, second = F.embedding(item_seq, table).chunk(2, dim=2)
        views: Views = (first, second)
        if self.cross is not None and self._combine is not None:
            views = self._combine(views, self.cross(*views))
        used = is_item(item_seq, item_seq_len)
        places = torch.zeros_like(item_seq)
        places[used] = torch.arange(1, int(used.sum()) + 1, device=item_seq.device)
        states = [read(F.pad(view[used], (0, 0, 1, 0)), places, item_seq_len, user) for view in views]
        return torch.cat(states, dim=1)


class SimilarUsers(nn.Module):
    """For each user the N users with the most similar text, and their training sequences. Never stored in a checkpoint.

    A user's text vector is the mean of the text vectors of the training items; users are compared by cosine.

    Args:
        train: training histories.
        text_vectors: of the items, shape (V, D), row 0 padding.
        n_similar: N; where there are fewer other users, all of them.
        max_length: the newest items of a history that are read.

    Raises:
        InputError: for fewer than two users with a training history.
    """

    neighbours: Tensor
    item_seq: Tensor
    item_seq_len: Tensor

    def __init__(self, train: Histories, text_vectors: Tensor, n_similar: int, max_length: int) -> None:
        from sklearn.neighbors import NearestNeighbors

        super().__init__()
        users = np.flatnonzero(train.lengths)
        if len(users) < 2:
            raise InputError("similar_users: fewer than two users have a training history; set distillation_weight: 0")
        counts = sp.csr_matrix(
            (np.ones(len(train.items), np.float32), train.items, train.offsets), (len(train.lengths), len(text_vectors))
        )
        vectors = F.normalize(torch.from_numpy(counts[users] @ text_vectors.cpu().numpy()), dim=1).numpy()
        search = NearestNeighbors(n_neighbors=min(n_similar, len(users) - 1), algorithm="brute", metric="cosine")
        nearest = search.fit(vectors).kneighbors(return_distance=False)  # without an argument, a user is not its own
        neighbours = torch.zeros(len(train.lengths), nearest.shape[1], dtype=torch.int64)
        neighbours[users] = torch.from_numpy(users[nearest])
        item_seq, item_seq_len = train.newest_items(np.arange(len(train.lengths)), max_length)
        self.register_buffer("neighbours", neighbours, persistent=False)
        self.register_buffer("item_seq", item_seq, persistent=False)
        self.register_buffer("item_seq_len", item_seq_len, persistent=False)


class LLMESR(Tower):
    """LLM-ESR: v_i = [e_i ; adapter(text vector of i)], states of both views side by side, and self-distillation.

    - Collaborative view: ID vectors that start from the text's principal components. Semantic view: frozen text vectors
      through two linear layers, D -> D/2 -> d, without activation.
    - The views of a sequence attend to each other (`CrossAttention`), then one encoder reads each of them.
    - Retrieval-augmented self-distillation: L += alpha * MSE(state of u, mean state of the N users with the most
      similar text); the similar users' states give no gradient.

    Source: Liu et al. 2024, "LLM-ESR: Large Language Models Enhancement for Long-tailed Sequential Recommendation",
    NeurIPS, arXiv 2405.20646; the authors' ``DualLLMSRS.py``, ``LLMESR.py``. Theirs differs: users are compared by the
    LLM's vector of a text that lists their items, here by the mean vector of these items; BCE with one negative on the
    last position, here any of our losses on all; positions enter before the cross-attention only, here also in the
    backbone, which is RecBole's; its contrastive item regularisation, off in its published runs, is left out.
    """

    starts_as = "align"

    def read_keys(self, config: Any) -> None:
        """As of `Tower`."""
        self.init_axes = word(config, "init_axes", INIT_AXES)
        self.cross_attention = word(config, "cross_attention", CROSS_ATTENTION)
        self.cross_heads = whole(config, "cross_heads", 1, 1000)
        self.n_similar = whole(config, "similar_users", 1, 100_000)
        self.distillation_weight = number(config, "distillation_weight", 0, 1e6)
        self.input_dropout = number(config, "hidden_dropout_prob", 0, 0.99)

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """Both views of the items."""
        width = self.catalogue.text_width
        std = float(backbone.initial_items[1:].std())
        start_from_text(backbone.initial_items, dataset, self.init_axes)
        adapter = TextAdapter(width, backbone.width, 1, "linear", 0.0, inner_width=max(width // 2, 1))
        adapter.match_scale(self.catalogue.text_sample(SCALE_ROWS), std)
        return DualVectors(id_vectors(backbone, self.settings, self.catalogue), TextVectors(adapter, self.catalogue))

    def make_encoder(self, expert: Expert, dataset: Any) -> Encoder:
        """The shared encoder behind the cross-attention; and the similar users, if they are read."""
        backbone = expert.backbone
        assert isinstance(backbone, Backbone)
        combine, cross = CROSS_ATTENTION[self.cross_attention], None
        if combine is not None:
            if backbone.width % self.cross_heads:
                raise InputError(
                    f"cross_heads: {self.cross_heads} does not divide the hidden size, {backbone.width}; "
                    "choose one that does"
                )
            cross = CrossAttention(backbone.width, self.cross_heads, self.max_seq_length, self.input_dropout)
        self.similar = self._similar_users(dataset) if self.distillation_weight > 0 else None
        return DualEncoder(backbone, cross, combine)

    def _similar_users(self, dataset: Any) -> SimilarUsers:
        return SimilarUsers(dataset.train_histories, self.catalogue.text(None), self.n_similar, self.max_seq_length)

    def extra_loss(self, batch: TrainedBatch) -> Tensor | None:
        """Mean squared distance of each row's last state from the mean state of the similar users."""
        if self.similar is None:
            return None
        states = batch.last_states()
        teacher = self._mean_states(self.similar.neighbours[batch.items.positions.user])
        own = F.mse_loss(states.float(), teacher.float())
        return self.distillation_weight * own * self.processes.weight_of_mean(batch.rows, states.device)

    @torch.no_grad()
    def _mean_states(self, neighbours: Tensor) -> Tensor:
        """The mean state of some users for each row: (B, N) -> (B, 2d); each user is encoded once."""
        assert self.similar is not None
        users, place = torch.unique(neighbours, return_inverse=True)
        item_seq, lengths = self.similar.item_seq[users], self.similar.item_seq_len[users]
        if not backbone_spec(self.settings.backbone).fixed_length:
            item_seq = item_seq[:, : int(lengths.max())]
        item_ids = with_padding(item_seq)
        states = self.encoder.last_state(self.items(item_ids), places_in(item_ids, item_seq), lengths, users)
        return states[place].mean(dim=1)
