"""PAD as a RecBole sequential model: three experts, one inner product.

Paper: "Pre-train, Align, and Disentangle: Empowering Sequential Recommendation with Large Language Models",
SIGIR 2025, arXiv 2412.04107. Formulas: docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn

from recbole_pad.backbones import backbone_spec
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.model.experts import Expert, build_expert
from recbole_pad.model.items import AlignedVectors, Catalogue
from recbole_pad.model.negatives import NegativeSampler
from recbole_pad.model.objectives import OBJECTIVES, Step
from recbole_pad.nn.gate import GATES
from recbole_pad.nn.mmd import ALIGN_LOSSES
from recbole_pad.nn.text_transforms import transform_text
from recbole_pad.phases import PHASES, STARTS_FROM


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

    def states(self, expert: Expert, table: Tensor, item_seq: Tensor) -> Tensor:
        """The expert's user states that have a target, shape (M, d); `item_seq` holds rows of `table`."""
        if self.is_position is None:
            return expert.backbone.last_state(table, item_seq, self.item_seq_len, self.user)
        states: Tensor = expert.backbone(table, item_seq, self.item_seq_len, self.user)
        return states[self.is_position]


class PAD(SequentialRecommender):
    """Three experts, each with its own item vectors and user encoder, mixed by a gate on the item's frequency bin.

    The attribute `phase` chooses what is trained and scored: the ID expert alone (``pretrain``), the aligned expert
    alone (``align``), or all configured experts through the gate (``finetune``). Since gate weights depend on the item
    alone, the score is one inner product: s(u, i) = [h_1; h_2; h_3] . [w_1 v_1; w_2 v_2; w_3 v_3].

    Args:
        config: RecBole's config; keys in properties/model/PAD.yaml.
        dataset: a training split of `PADDataset`.
    """

    input_type = InputType.POINTWISE
    other_parameter_name = ("phase",)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.settings = PADConfig.read(config)
        self.phase_settings = {name: PADConfig.read(phase_view(config, name)) for name in self.settings.phases}
        self.phase = self.settings.phases[-1]
        self.backbone_spec = backbone_spec(self.settings.backbone)
        self.trains_all_positions = dataset.train_rows == "sequences"
        members = {name for phase in self.settings.phases for name in self._members(phase)}
        if config["init_checkpoint"]:  # it may hold an expert that another one starts from
            members |= {STARTS_FROM[name] for name in members if name in STARTS_FROM}
        self.catalogue = Catalogue(
            torch.from_numpy(dataset.train_counts),
            torch.from_numpy(dataset.bins),
            self._text_vectors(dataset) if members - {"rec"} else None,
        )
        self.experts = nn.ModuleDict(
            {name: build_expert(name, config, dataset, self.settings, self.catalogue) for name in sorted(members)}
        )
        self.gate = GATES[self.settings.gate_form](
            self.settings.n_bins, self.settings.experts, self.settings.gate_norm, self.settings.gate_start
        )
        self.samplers = nn.ModuleDict(
            {
                name: NegativeSampler(
                    self.catalogue.counts,
                    dataset.train_histories.keys(self.n_items),
                    settings.negatives == "seen",
                    settings.negative_sampling == "popularity",
                )
                for name, settings in self.phase_settings.items()
                if OBJECTIVES[settings.loss].needs_sampler
            }
        )
        self.text_fingerprint = dataset.text_table.fingerprint if members - {"rec"} else None
        self.trained_before: set[str] = set()
        self._kept: tuple[str, list[Tensor], Tensor] | None = None

    def _text_vectors(self, dataset: Any) -> Tensor:
        return transform_text(dataset.text_table.read(), self.settings.text_transform)

    def _members(self, phase: str) -> tuple[str, ...]:
        return PHASES[phase].members(self.settings.experts)

    # --- phases -----------------------------------------------------------------------------------------------------

    def start_experts(self, trained: set[str]) -> None:
        """Before a phase: experts not yet trained start as copies of the trained ones that they start from."""
        self.trained_before = set(trained)
        for name in self._members(self.phase):
            source = STARTS_FROM.get(name)
            if name not in trained and source in trained:
                self._expert(name).start_from(self._expert(source))

    def learning_experts(self) -> tuple[str, ...]:
        """The experts of the present phase whose parameters it trains (see config key `retrain_experts`)."""
        gated = PHASES[self.phase].experts is None
        frozen = self.trained_before if gated and not self.settings.retrain_experts else set()
        return tuple(name for name in self._members(self.phase) if self._expert(name).is_trained and name not in frozen)

    def learns(self) -> bool:
        """Whether the present phase has anything to train: an expert, or the gate through a joint loss."""
        return bool(self.learning_experts()) or (len(self._members(self.phase)) > 1 and not self._separate)

    @property
    def _separate(self) -> bool:
        return self.settings.expert_loss == "separate" and len(self._members(self.phase)) > 1

    def phase_modules(self) -> dict[str, nn.Module]:
        """The modules of the present phase, by the name of their state in a checkpoint."""
        members = self._members(self.phase)
        modules: dict[str, nn.Module] = {f"experts.{name}": self.experts[name] for name in members}
        if PHASES[self.phase].experts is None:
            modules["gate"] = self.gate
        return modules

    def _expert(self, name: str) -> Expert:
        return cast(Expert, self.experts[name])

    # --- scoring ----------------------------------------------------------------------------------------------------

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Folded vectors [w_1 v_1; w_2 v_2; ...] of the items, or of all (with padding): shape (n, w)."""
        return self._fold(self._tables(item_ids), item_ids)

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Folded user states [h_1; h_2; ...] after the newest item: shape (B, w)."""
        return self._user_vectors(interaction, self._scoring_tables()[0])

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of all items: shape (B, V); one matrix product of the folded vectors."""
        tables, vectors = self._scoring_tables()
        return self._user_vectors(interaction, tables) @ vectors.T

    def predict(self, interaction: Interaction) -> Tensor:
        """Score of the row's own candidate item: shape (B,)."""
        tables, vectors = self._scoring_tables()
        return (self._user_vectors(interaction, tables) * vectors[interaction[self.ITEM_ID]]).sum(dim=1)

    def train(self, mode: bool = True) -> PAD:
        """Switch between training and evaluation; either way item vectors kept for scoring are dropped."""
        self._kept = None
        super().train(mode)
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights; item vectors kept for scoring are dropped."""
        self._kept = None
        return super().load_state_dict(*args, **kwargs)

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Restore the phase from a checkpoint."""
        self._kept = None
        super().load_other_parameter(para)

    def _scoring_tables(self) -> tuple[list[Tensor], Tensor]:
        """Each expert's item vectors, and the folded ones; computed once per evaluation."""
        if self.training or torch.is_grad_enabled():
            tables = self._tables(None)
            return tables, self._fold(tables, None)
        if self._kept is None or self._kept[0] != self.phase:
            tables = self._tables(None)
            self._kept = self.phase, tables, self._fold(tables, None)
        return self._kept[1:]

    def _tables(self, item_ids: Tensor | None) -> list[Tensor]:
        return [self._expert(name).items(item_ids) for name in self._members(self.phase)]

    def _user_vectors(self, interaction: Interaction, tables: list[Tensor]) -> Tensor:
        return torch.cat(self._expert_states(interaction, tables), dim=1)

    def _expert_states(self, interaction: Interaction, tables: list[Tensor]) -> list[Tensor]:
        sequence = self._sequence(interaction)
        members = self._members(self.phase)
        return [
            self._expert(name).backbone.last_state(table, *sequence)
            for name, table in zip(members, tables, strict=True)
        ]

    def expert_tables(self) -> list[Tensor]:
        """Item vectors of each expert of the present phase, without the gate: (V, d_k) each."""
        return self._scoring_tables()[0]

    def expert_states(self, interaction: Interaction) -> list[Tensor]:
        """User states of each expert of the present phase: (B, d_k) each."""
        return self._expert_states(interaction, self._scoring_tables()[0])

    def _fold(self, vectors: list[Tensor], item_ids: Tensor | None) -> Tensor:
        if len(vectors) == 1:
            return vectors[0]
        weights = self.gate_weights(item_ids)
        return torch.cat([weights[:, k, None] * vector for k, vector in enumerate(vectors)], dim=1)

    def gate_weights(self, item_ids: Tensor | None = None) -> Tensor:
        """Weights of the configured experts for the items, or for all: shape (n, E)."""
        bins, log_frequency = self.catalogue.bins, self.catalogue.log_frequency
        if item_ids is not None:
            bins, log_frequency = bins[item_ids], log_frequency[item_ids]
        return self.gate(bins, log_frequency)

    # --- training ---------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of the present phase: L_REC, and in alignment the weighted alignment loss beside it."""
        settings = self.phase_settings[self.phase]
        positions = self._positions(interaction)
        objective = OBJECTIVES[settings.loss]
        sampler = cast(NegativeSampler, self.samplers[self.phase]) if objective.needs_sampler else None
        negatives = objective.draw(sampler, positions.target_user, settings.n_negatives)
        steps = self._steps(positions, negatives, sampler)
        recommendation = torch.stack([objective.loss(step) for step in steps]).sum()
        if not PHASES[self.phase].aligns or settings.mmd_weight == 0 or settings.align_loss == "none":
            return recommendation
        rows = self._alignment_rows(interaction, positions, negatives)
        return recommendation, settings.mmd_weight * self._alignment_loss(rows)

    def _sequence(self, interaction: Interaction) -> tuple[Tensor, Tensor, Tensor]:
        """(item_seq, item_seq_len, user); item_seq is trimmed to its longest row where the backbone allows it."""
        item_seq, item_seq_len = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        if not self.backbone_spec.fixed_length:
            item_seq = item_seq[:, : int(item_seq_len.max())]
        return item_seq, item_seq_len, interaction[self.USER_ID]

    def _positions(self, interaction: Interaction) -> Positions:
        item_seq, item_seq_len, user = self._sequence(interaction)
        target = interaction[self.POS_ITEM_ID]
        if not self.trains_all_positions:
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

    def _steps(self, positions: Positions, negatives: Tensor | None, sampler: NegativeSampler | None) -> list[Step]:
        """What the loss needs: of the gated mixture, or of each trained expert by itself (`expert_loss: separate`).

        Only the step's own items are computed, unless all are needed.
        """
        item_ids, local = None, _identity
        if negatives is not None:
            padding = positions.item_seq.new_zeros(1)
            used = [padding, positions.item_seq.flatten(), positions.target, negatives.flatten()]
            item_ids = torch.unique(torch.cat(used))
            local = _Places(item_ids)
        only_seen = self.phase_settings[self.phase].negatives == "seen"
        item_seq = local(positions.item_seq)

        def step(states: Tensor, vectors: Tensor) -> Step:
            return Step(
                states=states,
                vectors=vectors,
                target=local(positions.target),
                negatives=None if negatives is None else local(negatives),
                target_ids=positions.target,
                negative_ids=negatives,
                softmax_ids=self.catalogue.seen_ids if only_seen else self.catalogue.item_ids,
                sampler=sampler,
            )

        names = self.learning_experts() if self._separate else self._members(self.phase)
        learning = self.learning_experts()
        tables, states = [], []
        for name in names:
            with torch.set_grad_enabled(torch.is_grad_enabled() and name in learning):
                tables.append(self._expert(name).items(item_ids))
                states.append(positions.states(self._expert(name), tables[-1], item_seq))
        if self._separate:
            return [step(own, table) for own, table in zip(states, tables, strict=True)]
        return [step(torch.cat(states, dim=1), self._fold(tables, item_ids))]

    def _alignment_rows(self, interaction: Interaction, positions: Positions, negatives: Tensor | None) -> Tensor:
        """Item ids whose text and ID vectors are compared: distinct items, or every slot with padding (published)."""
        drawn = [] if negatives is None else [negatives.flatten()]
        if self.phase_settings[self.phase].mmd_rows == "unique":
            rows = torch.unique(torch.cat([positions.item_seq.flatten(), positions.target, *drawn]))
            return rows[rows > 0]
        slots = interaction[self.ITEM_SEQ]
        targets = F.pad(slots[:, 1:], (0, 1)).scatter(
            1, positions.item_seq_len[:, None] - 1, interaction[self.ITEM_ID][:, None]
        )
        empty = slots.numel() - len(drawn[0]) if drawn else 0
        return torch.cat([slots.flatten(), targets.flatten(), *drawn, slots.new_zeros(max(empty, 0))])

    def _alignment_loss(self, item_ids: Tensor) -> Tensor:
        settings = self.phase_settings[self.phase]
        items = self._expert("align").items
        assert isinstance(items, AlignedVectors)
        if len(item_ids) < 2:
            return items.ids.weight.sum() * 0.0
        text_emb = items.text.adapter(self.catalogue.text(item_ids))
        id_emb = F.embedding(item_ids, items.ids.weight)
        return ALIGN_LOSSES[settings.align_loss](
            text_emb,
            id_emb,
            kernel=settings.mmd_kernel,
            alphas=settings.mmd_bandwidths,
            temperature=settings.infonce_temperature,
        )


class _Places:
    """Maps item ids to their places in a sorted list that holds them all."""

    def __init__(self, item_ids: Tensor) -> None:
        self._item_ids = item_ids

    def __call__(self, item_ids: Tensor) -> Tensor:
        return torch.searchsorted(self._item_ids, item_ids.contiguous())


def _identity(item_ids: Tensor) -> Tensor:
    return item_ids
