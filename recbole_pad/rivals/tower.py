"""What the rivals share: one table of item vectors, one user encoder, PAD's rows, negatives and losses.

They are built from PAD's own parts, so what is compared is the item vectors (and a model's extra loss), nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_pad.backbone_classes import backbone_spec
from recbole_pad.data.loader import REPEATED
from recbole_pad.data.text_cache import MappedVectors
from recbole_pad.model.backbone import Backbone
from recbole_pad.model.experts import Expert, start_seed, trained_expert
from recbole_pad.model.items import Catalogue, text_vectors_of
from recbole_pad.model.negatives import NegativeSampler, way_of
from recbole_pad.model.objectives import OBJECTIVES
from recbole_pad.model.positions import BatchReader, Encoder, StepItems, places_in, with_padding
from recbole_pad.model.vector_recommender import VectorRecommender
from recbole_pad.seeding import seeded


@dataclass(frozen=True)
class TrainedBatch:
    """A batch in training, for an extra loss.

    Attributes:
        items: the positions of the batch and the items of the step.
        table: item vectors of the step, as the encoder reads them, shape (n, w).
        states: of the positions, as the encoder gives them, row by row, shape (M, w').
        rows: rows that count in a mean over all processes: 0 for a batch that repeats another's.
    """

    items: StepItems
    table: Tensor
    states: Tensor
    rows: int

    def last_states(self) -> Tensor:
        """The state after the last item of each row, shape (B, w')."""
        positions = self.items.positions
        return self.states if positions.is_position is None else self.states[positions.item_seq_len.cumsum(0) - 1]


class Tower(VectorRecommender):
    """A rival of PAD: s(u, i) = <state of u, vector of i>.

    A model says what its item vectors are (`make_items`), and may say how states and vectors are scored
    (`scored_states`, `scored_items`), what encodes a user (`make_encoder`), and what else is learned (`extra_loss`).

    Start values depend on the seed alone. A model that stands for one of PAD's experts draws them as this expert does
    (`starts_as`): from one seed, both start alike.

    Args:
        config: RecBole's config; keys in properties/base/tower.yaml, and in properties/model/<model>.yaml.
        dataset: a training split of `PADDataset`.
    """

    reads_text: ClassVar[bool] = True
    starts_as: ClassVar[str] = "rec"
    items: nn.Module
    encoder: Encoder

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.read_keys(config)
        self.catalogue = Catalogue.of(dataset, self.catalogue_text(dataset))
        self.text_fingerprint = dataset.text_table.fingerprint if self.reads_text else None
        spec = backbone_spec(self.settings.backbone)
        self._reader = BatchReader(self, spec, dataset.train_rows == "sequences")
        with seeded(start_seed(self.starts_as, self.settings.seed)):
            expert = trained_expert(lambda backbone: self.make_items(backbone, dataset), config, dataset, self.settings)
            self.items, self.encoder = expert.items, self.make_encoder(expert, dataset)
        self._objective = OBJECTIVES[self.settings.loss]
        way = way_of(self.settings)
        self.sampler = NegativeSampler.of(self.catalogue, dataset, *way) if self._objective.needs_sampler else None

    # --- what a model says --------------------------------------------------------------------------------------------

    def read_keys(self, config: Any) -> None:
        """Read and check the model's own keys, before anything is built.

        Raises:
            InputError: naming the key.
        """

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """Maps item ids (n,), or None (all), to vectors (n, w); IDs start as ``backbone.initial_items``."""
        raise NotImplementedError

    def make_encoder(self, expert: Expert, dataset: Any) -> Encoder:
        """Gives user states; a module."""
        return expert.backbone

    def catalogue_text(self, dataset: Any) -> Tensor | MappedVectors | None:
        """The frozen text vectors that the item vectors are made of; None: of no text."""
        return text_vectors_of(dataset, self.settings, self.processes) if self.reads_text else None

    def scored_items(self, table: Tensor) -> Tensor:
        """Item vectors as they are scored, from those that the encoder reads; both (n, ...)."""
        return table

    def scored_states(self, states: Tensor) -> Tensor:
        """User states as they are scored, from those of the encoder; both (m, ...)."""
        return states

    def extra_loss(self, batch: TrainedBatch) -> Tensor | None:
        """A further loss, weighted, of a batch; None: there is none."""
        return None

    # --- training -----------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, Tensor]:
        """The recommendation loss over the training positions, and the model's extra loss beside it."""
        positions = self._reader.positions(interaction)
        negatives = self._objective.draw(self.sampler, positions.target_user, self.settings.n_negatives)
        items = StepItems.of(positions, negatives)
        repeated = REPEATED in interaction
        with self._precision():
            table = self.items(items.item_ids)
            states = positions.states(self.encoder, table, items.places(positions.item_seq))
            step = items.step(
                self.scored_states(states),
                self.scored_items(table),
                self.catalogue.softmax_ids(self.settings.negatives),
                self.sampler,
                self.settings.score_memory_mb,
            )
            own = self._objective.loss(step)
            n_rows = 0 if repeated else len(positions.item_seq)
            extra = self.extra_loss(TrainedBatch(items, table, states, n_rows))
        n_positions = 0 if repeated else len(positions.target)
        recommendation = own * self.processes.weight_of_mean(n_positions, own.device)
        return recommendation if extra is None else (recommendation, extra)

    # --- scoring ------------------------------------------------------------------------------------------------------

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Vectors of the items as they are scored, or of all (with padding): (n, w)."""
        every = self._every_item()
        if every is None:
            return self.scored_items(self._table(item_ids))
        return self.scored_items(every if item_ids is None else every[item_ids])

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """User states after the newest item, as they are scored: (B, w)."""
        item_seq, item_seq_len, user = self._reader.sequences(interaction)
        table = self._every_item()
        if table is None:
            item_ids = with_padding(item_seq)
            table, item_seq = self._table(item_ids), places_in(item_ids, item_seq)
        with self._precision():
            states = self.encoder.last_state(table, item_seq, item_seq_len, user)
        return self.scored_states(states.float())

    def keeps_items(self) -> bool:
        """As of `VectorRecommender`."""
        return self._every_item() is not None

    def _every_item(self) -> Tensor | None:
        """Vectors of all items, made once per evaluation; None in training, and where `score_memory_mb` is small."""
        if self.training or torch.is_grad_enabled():
            return None
        if self._kept is None:
            width = self._table(self.catalogue.item_ids[:1]).size(1)
            self._kept = (self._table(None) if 4 * self.n_items * width <= self._memory else None,)
        kept: tuple[Tensor | None] = self._kept
        return kept[0]

    def _table(self, item_ids: Tensor | None) -> Tensor:
        with self._precision():
            table: Tensor = self.items(item_ids)
        return table.float()
