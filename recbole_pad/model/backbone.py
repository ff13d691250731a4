"""A RecBole sequential model as PAD's user encoder: its item table is replaced by vectors given at each call."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from recbole.utils import get_model
from torch import Tensor, nn

from recbole_pad.backbones import BackboneSpec, backbone_spec
from recbole_pad.errors import InputError


class ItemLookup(nn.Module):
    """Stands in for the backbone's item embedding; the table is there only while the backbone runs."""

    padding_idx = 0

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.weight: Tensor | None = None

    @property
    def num_embeddings(self) -> int:
        """Rows of the present table."""
        return 0 if self.weight is None else len(self.weight)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Vectors of the items: ids of any shape (...) -> (..., d)."""
        assert self.weight is not None, "the backbone ran outside Backbone.forward"
        return F.embedding(item_ids, self.weight)


class RecencyPositions(nn.Module):
    """Position vectors counted from the newest item: 0 for the newest, 1 for the one before, and so on.

    RecBole pads on the right and counts from the oldest item; PAD pads on the left and counts from the newest, which
    gives the same states as this table on right-padded sequences. Source: docs/method.md section 2.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.lengths: Tensor | None = None

    def forward(self, position_ids: Tensor) -> Tensor:
        """Position ids 0..N-1, shape (B, N) -> vectors (B, N, d)."""
        assert self.lengths is not None, "the backbone ran outside Backbone.forward"
        vectors: Tensor = self.table((self.lengths[:, None] - 1 - position_ids).clamp(min=0))
        return vectors


def _all_positions(states: Tensor, _: Tensor) -> Tensor:
    """In place of RecBole's `gather_indexes`: keep the state of every position."""
    return states


class Backbone(nn.Module):
    """User encoder: item vectors and sequences in, user states out.

    Args:
        name: a word of `recbole_pad.backbones.BACKBONES`.
        config: RecBole's config (the backbone reads its own keys).
        dataset: RecBole's dataset (the backbone reads the numbers of users and items).
        positions: ``recency`` or ``absolute``, or ``auto``: recency where the backbone has a position table.

    Attributes:
        initial_items: the backbone's own start values of the item table, shape (V, d); taken out of the backbone.
        width: d.

    Raises:
        InputError: if `positions` is ``recency`` and the backbone has no position table.
    """

    def __init__(self, name: str, config: Any, dataset: Any, positions: str = "auto") -> None:
        super().__init__()
        self.spec: BackboneSpec = backbone_spec(name)
        core_config = copy.copy(config)
        core_config.final_config_dict = {
            **config.final_config_dict,
            "loss_type": "CE",
            "train_neg_sample_args": None,
        }
        self.core = get_model(name)(core_config, dataset)
        table = self.core.item_embedding.weight.detach()
        self.width = table.size(1)
        self.initial_items = table[: dataset.item_num].clone()
        self.initial_items[0] = 0.0
        self.mask_vector = nn.Parameter(table[-1].clone()) if self.spec.has_mask_token else None
        self.lookup = ItemLookup(self.width)
        for attribute in ("item_embedding", *self.spec.spare_tables):
            setattr(self.core, attribute, self.lookup)
        if self.spec.rows == "sequences":
            self.core.gather_indexes = _all_positions
        self._recency = self._use_recency(name) if self._wants_recency(name, positions) else None

    def _wants_recency(self, name: str, positions: str) -> bool:
        if positions == "recency" and self.spec.position_table is None:
            raise InputError(f"positions: recency needs a position table, which {name} has not; use positions: auto")
        return positions != "absolute" and self.spec.position_table is not None

    def _use_recency(self, name: str) -> RecencyPositions:
        path, _, attribute = str(self.spec.position_table).rpartition(".")
        owner = self.core.get_submodule(path) if path else self.core
        recency = RecencyPositions(getattr(owner, attribute))
        setattr(owner, attribute, recency)
        return recency

    def forward(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """User states.

        Args:
            table: item vectors, shape (n, d); row 0 is padding and zero.
            item_seq: rows of `table`, right-padded with 0, shape (B, N).
            item_seq_len: lengths >= 1, shape (B,).
            user: user ids, shape (B,).

        Returns:
            (B, N, d) where the backbone gives a state at each position (``rows == "sequences"``), else (B, d).
        """
        if self.mask_vector is not None:
            self.core.mask_token = len(table)
            table = torch.cat([table, self.mask_vector[None]])
        self.lookup.weight = table
        if self._recency is not None:
            self._recency.lengths = item_seq_len
        try:
            states: Tensor = self.spec.call(self.core, item_seq, item_seq_len, user)
        finally:
            self.lookup.weight = None
            if self._recency is not None:
                self._recency.lengths = None
        return states

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after the newest item, shape (B, d); arguments as for `forward`."""
        states = self(table, item_seq, item_seq_len, user)
        if states.dim() == 2:
            return states
        return states[torch.arange(len(states), device=states.device), item_seq_len - 1]
