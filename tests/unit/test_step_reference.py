"""The loss of every training step of the three phases, against steps written out literally (tests/reference)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from recbole.data.interaction import Interaction
from torch import Tensor

from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS
from recbole_pad.property_files import properties
from tests.reference.steps_loops import Reference

N_STEPS = 3
PHASES = {"pretrain": ["rec"], "align": ["align"], "finetune": ["rec", "align", "llm"]}
SMALL = {
    "n_layers": 2, "n_heads": 2, "hidden_size": 8, "inner_size": 12, "MAX_ITEM_LIST_LENGTH": 8, "train_batch_size": 5,
    "learning_rate": 0.003, "finetune.learning_rate": 0.003, "gate_learning_rate": 0.02, "n_bins": 4,
    "valid_metric": "NDCG@10", "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "adapter_dropout": 0.0,
    "fusion_dropout": 0.0,
}  # fmt: skip


class FirstBatches:
    """The first batches of a loader."""

    shuffle = True

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return N_STEPS

    def __iter__(self) -> Iterator[Interaction]:
        return itertools.islice(iter(self.loader), N_STEPS)


@pytest.fixture(scope="module")
def published() -> dict[str, Any]:
    """The paper's choices."""
    return properties("settings", "pad_published.yaml")


def recorded(model: PAD, phase: str, batches: list[Interaction], drawn: list[Tensor]) -> Callable[[Any], Any]:
    """The model's loss; batches and negatives are remembered."""
    sampler = model.samplers[phase]
    draw = type(sampler).draw_unseen_by

    def remember(*args: Any) -> Tensor:
        drawn.append(draw(sampler, *args))
        return drawn[-1]

    sampler.draw_unseen_by = remember

    def loss(batch: Interaction) -> Any:
        batches.append(batch)
        return model.calculate_loss(batch)

    return loss


@pytest.mark.parametrize(
    "changes",
    [{}, {"fused_optimizer": True}, {"bucket_by_length": True, "mmd_weight": 0.0}],
    ids=["published", "fused", "bucketed"],
)
def test_every_step_of_every_phase_is_the_literal_one(prepared, published, changes: dict[str, Any]):
    config, _, train, *_ = prepared(**{**published, **SMALL, **changes})
    assert (config["loss"], config["expert_loss"], config["adapter_layers"]) == ("bce", "joint", 4)
    model = PAD(config, train._dataset)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if not name.startswith("gate"):
            torch.nn.init.normal_(parameter, std=0.4)
    reference = Reference(
        {name: value for name, value in model.named_parameters() if "_recency" not in name},
        model.catalogue.text_vectors,
        model.catalogue.bins.tolist(),
        {key: config[key] for key in ("n_layers", "n_heads", "adapter_layers")},
        learning_rate=0.003,
        gate_learning_rate=0.02,
        weight_decay=0.1,
    )
    trained: set[str] = set()
    for phase, experts in PHASES.items():
        model.phase = phase
        model.start_experts(trained)
        if phase == "align":
            reference.start_aligned_expert()
        reference.start_phase()
        trainer = PHASE_TRAINERS[phase](config, model)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train.set_epoch(0)
        batches: list[Interaction] = []
        drawn: list[Tensor] = []
        losses: list[list[float]] = []
        loss_of = recorded(model, phase, batches, drawn)

        def noted(batch: Interaction, loss_of=loss_of, losses=losses) -> Any:
            loss = loss_of(batch)
            losses.append([part.item() for part in loss] if isinstance(loss, tuple) else [loss.item()])
            return loss

        trainer._train_epoch(FirstBatches(train), 0, noted)
        assert len(losses) == len(batches) == len(drawn) == N_STEPS
        for got, batch, negatives in zip(losses, batches, drawn, strict=True):
            rows = batch["item_id_list"].tolist(), batch["item_id"].tolist(), negatives.flatten().tolist()
            parts = [reference.recommendation_loss(experts, *rows)]
            if phase == "align" and config["mmd_weight"]:
                parts.append(config["mmd_weight"] * reference.alignment_loss(*rows))
            reference.step(sum(parts))
            assert got == pytest.approx([part.item() for part in parts], rel=1e-5, abs=1e-6)
        moved = [(now - then).abs().max().item() for now, then in zip(model.parameters(), before, strict=True)]
        assert max(moved) > 1e-3  # the steps were no idle ones
        trained |= set(experts)
