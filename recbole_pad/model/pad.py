"""PAD as a RecBole sequential model: experts, a gate, one inner product (and a list of pairs of the Markov expert).

Paper: "Pre-train, Align, and Disentangle: Empowering Sequential Recommendation with Large Language Models",
SIGIR 2025, arXiv 2412.04107. Formulas: docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_pad.backbone_classes import backbone_spec
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.data.loader import REPEATED
from recbole_pad.model.experts import Expert, build_experts
from recbole_pad.model.items import AlignedVectors, Catalogue, IDVectors, text_vectors_of
from recbole_pad.model.negatives import NegativeSampler, way_of
from recbole_pad.model.objectives import OBJECTIVES, Step
from recbole_pad.model.positions import BatchReader, Positions, StepItems, newest_items, places_in, with_padding
from recbole_pad.model.transitions import Transitions
from recbole_pad.model.vector_recommender import VectorRecommender
from recbole_pad.nn.gate import GATES, USER_GATES, Gate
from recbole_pad.nn.mmd import ALIGN_LOSSES
from recbole_pad.nn.score_pairs import ScorePairs
from recbole_pad.optimizers import updates_rows
from recbole_pad.phases import PHASES, STARTS_FROM, WITHOUT_TEXT


class PAD(VectorRecommender):
    """Experts (`experts`), mixed by a gate on how frequent the item, and the user's newest item, is in training.

    The attribute `phase` chooses what is trained and scored: the ID expert alone (``pretrain``), the aligned expert
    alone (``align``), or all configured experts through the gate (``finetune``; with `scored_alone` set, that one of
    them is scored by itself). Expert k has item vectors v_k and user states h_k of its own. A gate weight is that of
    the item, w_k, times that of the user, g_k, so the score is one inner product: s(u, i) = [g_1 h_1; g_2 h_2; ...] .
    [w_1 v_1; w_2 v_2; ...]; the Markov expert has no vectors and adds to it for a few items of each user
    (`pair_scores`).

    Args:
        config: RecBole's config; keys in properties/model/PAD.yaml.
        dataset: a training split of `PADDataset`.
    """

    other_parameter_name = ("phase",)

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.phase_settings = {name: PADConfig.read(phase_view(config, name)) for name in self.settings.phases}
        self.backbone_spec = backbone_spec(self.settings.backbone)
        self.trains_all_positions = dataset.train_rows == "sequences"
        self._reader = BatchReader(self, self.backbone_spec, self.trains_all_positions)
        members = {name for phase in self.settings.phases for name in self._members(phase)}
        if config["init_checkpoint"]:  # it may hold an expert that another one starts from
            members |= {STARTS_FROM[name] for name in members if name in STARTS_FROM}
        reads_text = bool(members - WITHOUT_TEXT)
        self.catalogue = Catalogue.of(
            dataset, text_vectors_of(dataset, self.settings, self.processes) if reads_text else None
        )
        self.experts = build_experts(members, config, dataset, self.settings, self.catalogue)
        self.gate = Gate(
            GATES[self.settings.gate_form](
                self.settings.n_bins, self.settings.experts, self.settings.gate_norm, self.settings.gate_start
            ),
            USER_GATES[self.settings.gate_users](len(self.settings.experts)),
        )
        self.samplers = self._build_samplers(dataset)
        self._updates_rows = {
            name: updates_rows(settings, self.n_items - 1, OBJECTIVES[settings.loss].needs_sampler, name)
            for name, settings in self.phase_settings.items()
        }
        self.scored_alone: str | None = None
        self.phase = self.settings.phases[-1]
        self.text_fingerprint = dataset.text_table.fingerprint if reads_text else None
        self.trained_before: set[str] = set()

    def _build_samplers(self, dataset: Any) -> nn.ModuleDict:
        """A sampler for each phase whose loss draws negatives; phases that draw alike share one."""
        of_phase = {
            name: way_of(settings)
            for name, settings in self.phase_settings.items()
            if OBJECTIVES[settings.loss].needs_sampler
        }
        samplers = {how: NegativeSampler.of(self.catalogue, dataset, *how) for how in set(of_phase.values())}
        return nn.ModuleDict({name: samplers[how] for name, how in of_phase.items()})

    def _members(self, phase: str) -> tuple[str, ...]:
        return PHASES[phase].members(self.settings.experts)

    # --- phases -----------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """The phase that is trained and scored; with it, whether ID tables get sparse gradients (`sparse_updates`)."""
        return self._phase

    @phase.setter
    def phase(self, name: str) -> None:
        self._phase = name
        for module in self.experts.modules():
            if isinstance(module, IDVectors):
                module.sparse = self._updates_rows.get(name, False)

    def start_experts(self, trained: set[str]) -> None:
        """Before a phase: experts not yet trained start as copies of the trained ones that they start from."""
        self.trained_before = set(trained)
        for name in self._members(self.phase):
            source = STARTS_FROM.get(name) if self.settings.align_start == "pretrain" else None
            if name not in trained and source in trained:
                self._expert(name).start_from(self._expert(source))

    def learning_experts(self) -> tuple[str, ...]:
        """The experts of the present phase whose parameters it trains (see config key `retrain_experts`)."""
        gated = PHASES[self.phase].is_gated
        frozen = self.trained_before if gated and not self.settings.retrain_experts else set()
        return tuple(name for name in self._members(self.phase) if self.experts[name].is_trained and name not in frozen)

    def learns(self) -> bool:
        """Whether the present phase has anything to train: an expert, or the gate through a joint loss."""
        return bool(self.learning_experts()) or (len(self._members(self.phase)) > 1 and not self._separate)

    def learns_alone(self) -> str | None:
        """The one expert that the present phase trains, by a loss of its own; None: several, or a joint loss."""
        learning = self.learning_experts()
        return learning[0] if self._separate and len(learning) == 1 else None

    @property
    def _separate(self) -> bool:
        return self.settings.expert_loss == "separate" and len(self._members(self.phase)) > 1

    def train(self, mode: bool = True) -> PAD:
        """As of `nn.Module`; experts that the present phase does not train stay as they are scored, without dropout."""
        super().train(mode)
        for name in set(self._members(self.phase)) - set(self.learning_experts()):
            self.experts[name].train(False)
        return self

    def phase_modules(self) -> dict[str, nn.Module]:
        """The modules of the present phase, by the name of their state in a checkpoint."""
        members = self._members(self.phase)
        modules: dict[str, nn.Module] = {f"experts.{name}": self.experts[name] for name in members}
        if PHASES[self.phase].is_gated:
            modules |= {"gate": self.gate, "repeats": self.repeats}
        return modules

    def _expert(self, name: str) -> Expert:
        return cast(Expert, self.experts[name])

    def _with_vectors(self) -> list[tuple[int, Expert]]:
        """The experts of the present phase that score by inner products, each with its column of the gate."""
        experts = enumerate(self.experts[name] for name in self._scored())
        return [(column, expert) for column, expert in experts if isinstance(expert, Expert)]

    def _with_pairs(self) -> list[tuple[int, Transitions]]:
        """The experts of the present phase that score a few items of each user, likewise."""
        experts = enumerate(self.experts[name] for name in self._scored())
        return [(column, expert) for column, expert in experts if isinstance(expert, Transitions)]

    def gate_columns(self) -> tuple[list[int], list[int]]:
        """Columns of the gate's weights: of `expert_vectors` and `expert_states`, and of `expert_pairs`."""
        return [column for column, _ in self._with_vectors()], [column for column, _ in self._with_pairs()]

    @property
    def _is_mixture(self) -> bool:
        return PHASES[self.phase].is_gated and self.scored_alone is None

    @property
    def _is_gated(self) -> bool:
        return len(self._scored()) > 1

    def _scored(self) -> tuple[str, ...]:
        """The experts that a score is made of: those of the present phase, or one of them alone (`scored_alone`)."""
        return self._members(self.phase) if self.scored_alone is None else (self.scored_alone,)

    # --- scoring ----------------------------------------------------------------------------------------------------

    def item_vectors(self, item_ids: Tensor | None = None) -> Tensor:
        """Folded vectors [w_1 v_1; w_2 v_2; ...] of the items, or of all (with padding): shape (n, w)."""
        kept = self._kept_vectors()
        if kept is None:
            return self._fold(self._vectors(item_ids), item_ids)
        return kept.folded if item_ids is None else kept.folded[item_ids]

    def user_vectors(self, interaction: Interaction) -> Tensor:
        """Folded user states [g_1 h_1; g_2 h_2; ...] after the newest item: shape (B, w)."""
        return self._weighted(self.expert_states(interaction), self.newest_items(interaction))

    def pair_scores(self, interaction: Interaction) -> ScorePairs | None:
        """What is added to the scores of a few items: by experts without vectors, gated, and for repeats; or None."""
        gated = self._gated_pairs(interaction)
        repeats = self.repeat_scores(interaction) if self._is_mixture else None
        if gated is None or repeats is None:
            return gated if repeats is None else repeats
        return gated.plus(repeats, self.n_items)

    def _gated_pairs(self, interaction: Interaction) -> ScorePairs | None:
        if not self._with_pairs():
            return None
        (pairs,), (column,) = self.expert_pairs(interaction), self.gate_columns()[1]
        users = self.user_weights(self.newest_items(interaction))
        values = pairs.values * users[pairs.rows, column] * self.gate_weights(pairs.items)[:, column]
        return ScorePairs(pairs.rows, pairs.items, values)

    def expert_pairs(self, interaction: Interaction) -> list[ScorePairs]:
        """The scores of each expert of the present phase that has no vectors, without the gate."""
        experts = self._with_pairs()
        if not experts:
            return []
        item_seq, item_seq_len, _ = self._reader.sequences(interaction)
        return [expert(item_seq, item_seq_len) for _, expert in experts]

    def newest_items(self, interaction: Interaction) -> Tensor:
        """Newest item of each history: (B,)."""
        return newest_items(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])

    def expert_vectors(self, item_ids: Tensor | None = None) -> list[Tensor]:
        """Vectors of the items, or of all, without the gate, (n, d_k) each: of the phase's experts that have any."""
        kept = self._kept_vectors()
        if kept is None:
            return self._vectors(item_ids)
        return kept.experts if item_ids is None else [vectors[item_ids] for vectors in kept.experts]

    def expert_states(self, interaction: Interaction) -> list[Tensor]:
        """User states of the same experts, without the gate: (B, d_k) each; only the rows' own items are computed."""
        item_seq, item_seq_len, user = self._reader.sequences(interaction)
        kept = self._kept_vectors()
        if kept is None:
            item_ids = with_padding(item_seq)
            tables, item_seq = self._vectors(item_ids), places_in(item_ids, item_seq)
        else:
            tables = kept.experts
        with self._precision():
            states = [
                expert.backbone.last_state(table, item_seq, item_seq_len, user)
                for (_, expert), table in zip(self._with_vectors(), tables, strict=True)
            ]
        return [state.float() for state in states]  # ranks are counted in float32: bfloat16 scores would tie

    def keeps_items(self) -> bool:
        """As of `VectorRecommender`."""
        return self._kept_vectors() is not None

    def load_other_parameter(self, para: dict[str, Any] | None) -> None:
        """Restore the phase from a checkpoint."""
        self._kept = None
        super().load_other_parameter(para)

    def _kept_vectors(self) -> _KeptVectors | None:
        """The vectors of all items, computed once per evaluation; None in training, and where they need more memory.

        The limit is `score_memory_mb`; a larger catalogue is computed in blocks, where and when it is needed.
        """
        if self.training or torch.is_grad_enabled():
            return None
        if self._kept is None or self._kept.phase != self.phase:
            one = self._vectors(torch.zeros(1, dtype=torch.int64, device=self.catalogue.bins.device))
            size = 4 * self.n_items * sum(vectors.size(1) for vectors in one) * (1 if len(one) == 1 else 2)
            experts = self._vectors(None) if size <= self._memory else []
            self._kept = _KeptVectors(self.phase, experts, self._fold(experts, None) if experts else one[0])
        return self._kept if self._kept.experts else None

    def _vectors(self, item_ids: Tensor | None) -> list[Tensor]:
        with self._precision():
            vectors = [expert.items(item_ids) for _, expert in self._with_vectors()]
        return [vector.float() for vector in vectors]

    def _fold(self, vectors: list[Tensor], item_ids: Tensor | None) -> Tensor:
        return self._joined(vectors, self.gate_weights(item_ids)) if self._is_gated else vectors[0]

    def _weighted(self, states: list[Tensor], newest: Tensor) -> Tensor:
        """Folded user states: (M, d_k) each and the newest items (M,) -> (M, w)."""
        return self._joined(states, self.user_weights(newest)) if self._is_gated else states[0]

    def _joined(self, parts: list[Tensor], weights: Tensor) -> Tensor:
        """Vectors or states of the experts, (n, d_k) each, times their weights (n, E), side by side: (n, w)."""
        columns, _ = self.gate_columns()
        return torch.cat([weights[:, k, None] * part for k, part in zip(columns, parts, strict=True)], dim=1)

    def user_weights(self, newest: Tensor) -> Tensor:
        """Weights of the configured experts for users with these newest items: (M,) -> (M, E)."""
        weights: Tensor = self.gate.users(self.catalogue.log_frequency[newest])
        return weights

    def gate_weights(self, item_ids: Tensor | None = None) -> Tensor:
        """Weights of the configured experts for the items, or for all: shape (n, E)."""
        bins, log_frequency = self.catalogue.bins, self.catalogue.log_frequency
        if item_ids is not None:
            bins, log_frequency = bins[item_ids], log_frequency[item_ids]
        weights: Tensor = self.gate.items(bins, log_frequency)
        return weights

    # --- training ---------------------------------------------------------------------------------------------------

    def calculate_loss(self, interaction: Interaction) -> Tensor | tuple[Tensor, Tensor]:
        """The loss of the present phase: L_REC, and in alignment the weighted alignment loss beside it."""
        settings = self.phase_settings[self.phase]
        positions = self._positions(interaction)
        objective = OBJECTIVES[settings.loss]
        sampler = cast(NegativeSampler, self.samplers[self.phase]) if objective.needs_sampler else None
        negatives = objective.draw(sampler, positions.target_user, settings.n_negatives)
        with self._precision():
            steps = self._steps(positions, negatives, sampler)
            own = torch.stack([objective.loss(step) for step in steps]).sum()
        n_positions = 0 if REPEATED in interaction else len(positions.target)
        recommendation = own * self.processes.weight_of_mean(n_positions, own.device)
        if not PHASES[self.phase].aligns:
            return recommendation
        recommendation = settings.anchor_weight * recommendation
        if settings.mmd_weight == 0 or settings.align_loss == "none":
            return recommendation
        rows = self._alignment_rows(interaction, positions, negatives)
        with self._precision():
            return recommendation, settings.mmd_weight * self._alignment_loss(rows)

    def _positions(self, interaction: Interaction) -> Positions:
        return self._reader.positions(interaction)

    def _steps(self, positions: Positions, negatives: Tensor | None, sampler: NegativeSampler | None) -> list[Step]:
        """What the loss needs: of the gated mixture, or of each trained expert by itself (`expert_loss: separate`).

        Only the step's own items are computed, unless all are needed.
        """
        items = StepItems.of(positions, negatives)
        item_seq = items.places(positions.item_seq)
        softmax_ids = self.catalogue.softmax_ids(self.phase_settings[self.phase].negatives)

        def step(states: Tensor, vectors: Tensor) -> Step:
            return items.step(states, vectors, softmax_ids, sampler, self.settings.score_memory_mb)

        names = self.learning_experts() if self._separate else self._members(self.phase)
        learning = self.learning_experts()
        tables, states = [], []
        for name in names:
            with torch.set_grad_enabled(torch.is_grad_enabled() and name in learning):
                tables.append(self._expert(name).items(items.item_ids))
                states.append(positions.states(self._expert(name).backbone, tables[-1], item_seq))
        if self._separate:
            return [step(own, table) for own, table in zip(states, tables, strict=True)]
        return [step(self._weighted(states, positions.newest()), self._fold(tables, items.item_ids))]

    def _alignment_rows(
        self, interaction: Interaction, positions: Positions, negatives: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Distinct items whose text and ID vectors are compared, and how often each counts (None: once).

        They count once each, or as often as they stand in the slots of the batch, with padding (published).
        The alignment loss is no mean over rows: each process takes the rows of all of them, and gets the same loss.
        """
        # negatives of positions belong to the batch; those that a step shares are of its loss alone
        drawn = [negatives.flatten()] if negatives is not None and negatives.dim() == 2 else []
        if self.phase_settings[self.phase].mmd_rows == "unique":
            own = torch.unique(torch.cat([positions.item_seq.flatten(), positions.target, *drawn]))
            rows = own if self.processes.alone else torch.unique(self._of_all_processes(own, interaction))
            return rows[rows > 0], None
        slots = interaction[self.ITEM_SEQ]
        targets = F.pad(slots[:, 1:], (0, 1)).scatter(
            1, positions.item_seq_len[:, None] - 1, interaction[self.ITEM_ID][:, None]
        )
        parts = [self._of_all_processes(part.flatten(), interaction) for part in (slots, targets, *drawn)]
        empty = len(parts[0]) - len(parts[2]) if drawn else 0
        return torch.unique(torch.cat([*parts, slots.new_zeros(max(empty, 0))]), return_counts=True)

    def _of_all_processes(self, item_ids: Tensor, interaction: Interaction) -> Tensor:
        return self.processes.concatenated(item_ids[:0] if REPEATED in interaction else item_ids)

    def _alignment_loss(self, rows: tuple[Tensor, Tensor | None]) -> Tensor:
        item_ids, counts = rows
        settings = self.phase_settings[self.phase]
        aligned = PHASES[self.phase].aligns
        assert aligned is not None
        items = self._expert(aligned).items
        assert isinstance(items, AlignedVectors)
        if counts is None and len(item_ids) < 2:
            return items.ids.own_rows(item_ids).sum() * 0.0
        text_emb = items.text.adapter(self.catalogue.text(item_ids))
        id_emb = items.ids.own_rows(item_ids)
        return ALIGN_LOSSES[settings.align_loss](
            text_emb,
            id_emb,
            kernel=settings.mmd_kernel,
            alphas=settings.mmd_bandwidths,
            temperature=settings.infonce_temperature,
            counts=counts,
        )


@dataclass(frozen=True)
class _KeptVectors:
    """Item vectors kept for an evaluation.

    Attributes:
        phase: that they belong to.
        experts: of each expert, shape (V, d_k); empty where they are too large to be kept.
        folded: of all experts, weighted by the gate, shape (V, w).
    """

    phase: str
    experts: list[Tensor]
    folded: Tensor
