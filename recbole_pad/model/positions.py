"""From a batch to what a loss needs: its training positions, and the items of the step. Of PAD and of its rivals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_pad.backbones import BackboneSpec
from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.model.objectives import Step


class Encoder(Protocol):
    """A user encoder; arguments as of `Backbone`."""

    def position_states(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after every item, row by row, shape (T, d)."""
        ...

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after the newest item, shape (B, d)."""
        ...


@dataclass(frozen=True)
class Positions:
    """The training positions of a batch: M pairs of a state and the item that follows.

    Attributes:
        item_seq: item ids, right-padded, trimmed to the longest row, shape (B, N).
        item_seq_len: shape (B,).
        user: shape (B,).
        is_position: True where a state has a target, shape (B, N); None where each row has one state.
        target: item ids, shape (M,).
        target_user: user of each target, shape (M,).
    """

    item_seq: Tensor
    item_seq_len: Tensor
    user: Tensor
    is_position: Tensor | None
    target: Tensor
    target_user: Tensor

    def newest(self) -> Tensor:
        """The item that each target follows, shape (M,)."""
        if self.is_position is None:
            return newest_items(self.item_seq, self.item_seq_len)
        return self.item_seq[self.is_position]

    def states(self, encoder: Encoder, table: Tensor, item_seq: Tensor) -> Tensor:
        """The user states that have a target, shape (M, d); `item_seq` holds rows of `table`."""
        if self.is_position is None:
            return encoder.last_state(table, item_seq, self.item_seq_len, self.user)
        return encoder.position_states(table, item_seq, self.item_seq_len, self.user)


def newest_items(item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
    """Newest item of each right-padded row: (B, N), (B,) -> (B,)."""
    return item_seq.gather(1, item_seq_len[:, None] - 1)[:, 0]


class BatchReader:
    """Reads sequences and training positions from RecBole's batches.

    Args:
        model: a sequential recommender: the names of its fields.
        spec: its backbone: whether sequences may be trimmed.
        all_positions: whether every position of a training row has a target (``train_rows: sequences``), or its end.
    """

    def __init__(self, model: Any, spec: BackboneSpec, all_positions: bool) -> None:
        self._item_seq, self._item_seq_len = model.ITEM_SEQ, model.ITEM_SEQ_LEN
        self._user, self._target = model.USER_ID, model.POS_ITEM_ID
        self._trims, self._all_positions = not spec.fixed_length, all_positions

    def sequences(self, interaction: Interaction) -> tuple[Tensor, Tensor, Tensor]:
        """(item_seq, item_seq_len, user); item_seq is trimmed to its longest row where the backbone allows it."""
        item_seq, item_seq_len = interaction[self._item_seq], interaction[self._item_seq_len]
        if self._trims:
            item_seq = item_seq[:, : int(item_seq_len.max())]
        return item_seq, item_seq_len, interaction[self._user]

    def positions(self, interaction: Interaction) -> Positions:
        """The training positions of a batch."""
        item_seq, item_seq_len, user = self.sequences(interaction)
        target = interaction[self._target]
        if not self._all_positions:
            return Positions(item_seq, item_seq_len, user, None, target, user)
        following = torch.cat([item_seq[:, 1:], torch.zeros_like(item_seq[:, :1])], dim=1)
        following = following.scatter(1, item_seq_len[:, None] - 1, target[:, None])
        is_position = item_seq > 0
        return Positions(
            item_seq,
            item_seq_len,
            user,
            is_position,
            following[is_position],
            user[:, None].expand_as(item_seq)[is_position],
        )


@dataclass(frozen=True)
class StepItems:
    """The items of a training step: its own, or all of them where the loss needs all.

    Attributes:
        positions: of the step.
        negatives: item ids, (M, K) or (K,); None where the loss needs all items.
        item_ids: the items whose vectors the step needs, sorted, padding first, shape (n,); None: all.
    """

    positions: Positions
    negatives: Tensor | None
    item_ids: Tensor | None

    @classmethod
    def of(cls, positions: Positions, negatives: Tensor | None) -> StepItems:
        """The items of a step: all if no negatives were drawn."""
        if negatives is None:
            return cls(positions, None, None)
        used = [positions.item_seq, positions.target, negatives]
        return cls(positions, negatives, with_padding(*used))

    def places(self, item_ids: Tensor) -> Tensor:
        """Rows of the items in a table of the step's vectors; any shape."""
        return item_ids if self.item_ids is None else places_in(self.item_ids, item_ids)

    def step(
        self,
        states: Tensor,
        vectors: Tensor,
        softmax_ids: Tensor,
        sampler: NegativeSampler | None,
        score_memory_mb: int,
    ) -> Step:
        """What the loss needs.

        Args:
            states: user states that have a target, shape (M, w).
            vectors: of the step's items, shape (n, w).
            softmax_ids: of `Step`, as the rest.
            sampler: that drew the negatives.
            score_memory_mb: likewise of `Step`.
        """
        return Step(
            states=states,
            vectors=vectors,
            target=self.places(self.positions.target),
            negatives=None if self.negatives is None else self.places(self.negatives),
            target_ids=self.positions.target,
            negative_ids=self.negatives,
            softmax_ids=softmax_ids,
            sampler=sampler,
            score_memory_mb=score_memory_mb,
        )


def with_padding(*item_ids: Tensor) -> Tensor:
    """The distinct items of some tensors and the padding item, sorted; shape (n,)."""
    return torch.unique(torch.cat([item_ids[0].new_zeros(1), *(each.flatten() for each in item_ids)]))


def places_in(sorted_ids: Tensor, item_ids: Tensor) -> Tensor:
    """Where the items are in a sorted list that holds them all; any shape."""
    return torch.searchsorted(sorted_ids, item_ids.contiguous())
