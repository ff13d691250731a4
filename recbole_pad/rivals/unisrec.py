"""UniSRec: text vectors through a mixture of parametric whitenings, scored by cosine."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_pad.model.backbone import Backbone
from recbole_pad.model.experts import id_vectors
from recbole_pad.model.items import SCALE_ROWS, TextVectors
from recbole_pad.model_keys import number, whole, word
from recbole_pad.rivals.tower import Tower, TrainedBatch
from recbole_pad.rivals.whitenrec import SummedVectors

_LEAST_NOISE = 1e-2  # standard deviation of the gate's noise, at least


class MoEAdaptor(nn.Module):
    """sum_k g_k(x) (x - b_k) W_k: parametric whitenings, mixed by a gate that is noisy in training.

    g = softmax(x G + noise * (softplus(x S) + 0.01)), noise standard normal; without noise in evaluation.

    Args:
        text_width: D.
        hidden_size: d.
        n_experts: K.
        dropout: probability in [0, 1) on x, before the whitenings. One mask serves all K; the source draws one for
            each, which would cost more than all else where the softmax is over all items.

    Source: Hou et al. 2022, UniSRec, section 2.2; the authors' `MoEAdaptorLayer`. G, S and b start at zero, W normal.
    """

    def __init__(self, text_width: int, hidden_size: int, n_experts: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.shift = nn.Parameter(torch.zeros(n_experts, text_width))
        self.weight = nn.Parameter(torch.empty(n_experts, text_width, hidden_size).normal_(std=0.02))
        self.gate = nn.Parameter(torch.zeros(text_width, n_experts))
        self.noise = nn.Parameter(torch.zeros(text_width, n_experts))

    def gates(self, text: Tensor) -> Tensor:
        """Weights of the whitenings: (n, D) -> (n, K)."""
        logits = text @ self.gate
        if self.training:
            logits = logits + torch.randn_like(logits) * (F.softplus(text @ self.noise) + _LEAST_NOISE)
        return F.softmax(logits, dim=1)

    def forward(self, text: Tensor) -> Tensor:
        """(n, D) -> (n, d)."""
        n_experts, width, hidden_size = self.weight.shape
        whitened = self.dropout(text) @ self.weight.transpose(0, 1).reshape(width, n_experts * hidden_size)
        shift = torch.einsum("kw,kwd->kd", self.shift, self.weight)
        return (self.gates(text)[:, :, None] * (whitened.unflatten(1, (n_experts, hidden_size)) - shift)).sum(dim=1)

    @torch.no_grad()
    def match_scale(self, text: Tensor, std: float) -> None:
        """Scale W so that the output's standard deviation on `text`, (m, D), is `std`; exact while b is zero."""
        was_training = self.training
        self.eval()
        self.weight.mul_(std / self(text).std(correction=0).clamp(min=1e-12))
        self.train(was_training)


class UniSRec(Tower):
    """v_i = MoE adaptor(text vector of i), plus e_i in the transductive setting; score = cosine / temperature.

    The paper pre-trains adaptor and encoder on other domains, by sequence-item and sequence-sequence contrast, then
    fine-tunes on the target domain. Here is one dataset and no other domain: this is the fine-tuning alone, of all
    parameters, from scratch. `contrast_weight` adds the sequence-item contrast on the dataset itself, with the batch's
    targets as negatives; the sequence-sequence contrast is left out.

    Source: Hou et al. 2022, "Towards Universal Sequence Representation Learning for Recommender Systems", KDD, arXiv
    2206.05941; the authors' ``unisrec.py``. Theirs differs: one row per prefix; an item in a history and the same item
    as a candidate get noise and dropout of their own; a repeated target among the contrast's negatives counts as 1
    there, and is left out here. W starts so that the adaptor's output is as large as an ID vector.
    """

    starts_as = "llm"

    def read_keys(self, config: Any) -> None:
        """As of `Tower`."""
        self.has_ids = word(config, "fine_tuning", ("inductive", "transductive")) == "transductive"
        self.n_experts = whole(config, "adaptor_experts", 1, 1000)
        self.dropout = number(config, "adaptor_dropout", 0, 0.99)
        self.temperature = number(config, "temperature", 1e-4, 100)
        self.contrast_weight = number(config, "contrast_weight", 0, 1e6)

    def make_items(self, backbone: Backbone, dataset: Any) -> nn.Module:
        """The adaptor's vectors, and in the transductive setting ID vectors added to them."""
        adaptor = MoEAdaptor(self.catalogue.text_width, backbone.width, self.n_experts, self.dropout)
        adaptor.match_scale(self.catalogue.text_sample(SCALE_ROWS), float(backbone.initial_items[1:].std()))
        text = TextVectors(adaptor, self.catalogue)
        return SummedVectors(text, id_vectors(backbone, self.settings, self.catalogue)) if self.has_ids else text

    def scored_items(self, table: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(table, dim=1)

    def scored_states(self, states: Tensor) -> Tensor:
        """Vectors of length 1 / temperature."""
        return F.normalize(states, dim=1) / self.temperature

    def extra_loss(self, batch: TrainedBatch) -> Tensor | None:
        """Cross entropy of each position's target against the targets of all positions of the batch."""
        if self.contrast_weight == 0:
            return None
        target = batch.items.positions.target
        items = self.scored_items(batch.table[batch.items.places(target)])
        scores = (self.scored_states(batch.states) @ items.T).float()
        is_repeat = (target[:, None] == target).fill_diagonal_(False)
        own = F.cross_entropy(
            scores.masked_fill(is_repeat, -torch.inf), torch.arange(len(target), device=target.device)
        )
        return (
            self.contrast_weight * own * self.processes.weight_of_mean(len(target) if batch.rows else 0, target.device)
        )
