"""PAD's training steps written out: SASRec a row, head and position at a time, the published losses, and AdamW.

Plain torch on float64 tensors, for its gradients; no batches, masks, padding or modules. Parameters are a dict by
the names of the model's own ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.reference.scores_loops import published_mmd_rows

Parameters = dict[str, Tensor]


def linear(p: Parameters, name: str, x: Tensor) -> Tensor:
    return p[f"{name}.weight"] @ x + p[f"{name}.bias"]


def layer_norm(p: Parameters, name: str, x: Tensor, eps: float = 1e-12) -> Tensor:
    centred = x - x.mean()
    return p[f"{name}.weight"] * centred / (centred.square().mean() + eps).sqrt() + p[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def sasrec(p: Parameters, core: str, vectors: Sequence[Tensor], n_layers: int, n_heads: int) -> list[Tensor]:
    """The state after each item of one row; positions count from the newest item, which has position 0."""
    n = len(vectors)
    positions = p[f"{core}.position_embedding.table.weight"]
    states = [layer_norm(p, f"{core}.LayerNorm", vectors[t] + positions[n - 1 - t]) for t in range(n)]
    for number in range(n_layers):
        layer = f"{core}.trm_encoder.layer.{number}"
        attention = f"{layer}.multi_head_attention"
        query, key, value = ([linear(p, f"{attention}.{k}", x) for x in states] for k in ("query", "key", "value"))
        width = len(states[0]) // n_heads
        following = []
        for t in range(n):
            heads = []
            for head in range(n_heads):
                own = slice(head * width, (head + 1) * width)
                scores = [query[t][own] @ key[j][own] / math.sqrt(width) for j in range(t + 1)]
                total = sum(score.exp() for score in scores)
                heads.append(sum(score.exp() / total * value[j][own] for j, score in enumerate(scores)))
            mixed = linear(p, f"{attention}.dense", torch.cat(heads))
            x = layer_norm(p, f"{attention}.LayerNorm", mixed + states[t])
            inner = linear(p, f"{layer}.feed_forward.dense_1", x).clamp(min=0)
            out = linear(p, f"{layer}.feed_forward.dense_2", inner)
            following.append(layer_norm(p, f"{layer}.feed_forward.LayerNorm", out + x))
        states = following
    return states


def adapted(p: Parameters, adapter: str, text: Tensor, n_hidden: int) -> Tensor:
    """GELU after the projection and after each hidden layer; between them the model has a dropout layer."""
    x = gelu(linear(p, f"{adapter}.layers.0", text))
    for number in range(n_hidden):
        x = gelu(linear(p, f"{adapter}.layers.{3 * number + 3}", x))
    return x


class Reference:
    """The model's parameters, stepped by themselves.

    Args:
        parameters: start values by name; copied.
        text: text vector of each item.
        bins: frequency bin of each item.
        sizes: ``n_layers``, ``n_heads``, ``adapter_layers``.
        learning_rate: of the experts.
        gate_learning_rate: of the gate, which has no weight decay.
        weight_decay: of the experts.
    """

    def __init__(
        self,
        parameters: Parameters,
        text: Tensor,
        bins: Sequence[int],
        sizes: dict[str, int],
        learning_rate: float,
        gate_learning_rate: float,
        weight_decay: float,
    ) -> None:
        self.p = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
        self.text, self.bins, self.sizes = text.double(), bins, sizes
        self.learning_rate, self.gate_learning_rate = learning_rate, gate_learning_rate
        self.weight_decay = weight_decay
        self.made: dict[tuple[str, int], Tensor] = {}  # item vectors of the present step
        self.start_phase()

    def start_phase(self) -> None:
        """A new optimizer."""
        self.steps = 0
        self.means = {name: torch.zeros_like(value) for name, value in self.p.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in self.p.items()}

    @torch.no_grad()
    def start_aligned_expert(self) -> None:
        """It starts from the ID expert."""
        for name in self.p:
            if name.startswith("experts.align.backbone."):
                self.p[name].copy_(self.p[name.replace("align", "rec")])
        self.p["experts.align.items.ids.weight"].copy_(self.p["experts.rec.items.weight"])

    def vector(self, expert: str, item: int) -> Tensor:
        if (expert, item) not in self.made:
            self.made[expert, item] = self._vector(expert, item)
        return self.made[expert, item]

    def _vector(self, expert: str, item: int) -> Tensor:
        if expert == "rec":
            return self.p["experts.rec.items.weight"][item]
        n_hidden = self.sizes["adapter_layers"]
        if expert == "llm":
            return adapted(self.p, "experts.llm.items.adapter", self.text[item], n_hidden)
        of_text = adapted(self.p, "experts.align.items.text.adapter", self.text[item], n_hidden)
        of_id = self.p["experts.align.items.ids.weight"][item]
        return gelu(linear(self.p, "experts.align.items.fusion.linear", torch.cat([of_id, of_text])))

    def weights(self, experts: Sequence[str], item: int) -> list[Tensor | float]:
        """sigma(a_k) / sum_j sigma(a_j); 1 for one expert."""
        if len(experts) == 1:
            return [1.0]
        gates = [torch.sigmoid(a) for a in self.p["gate.items.logits"][self.bins[item]]]
        return [gate / sum(gates) for gate in gates]

    def score(self, experts: Sequence[str], states: Sequence[Tensor], item: int) -> Tensor:
        vectors = [self.vector(expert, item) for expert in experts]
        return sum(w * (h @ v) for w, h, v in zip(self.weights(experts, item), states, vectors, strict=True))

    def recommendation_loss(
        self, experts: Sequence[str], item_seq: list[list[int]], target: list[int], negatives: list[int]
    ) -> Tensor:
        """mean[-log sigma(s+)] + mean[-log(1 - sigma(s-))], one negative for each position."""
        drawn = iter(negatives)
        of_targets, of_negatives = [], []
        for row, padded in enumerate(item_seq):
            items = [item for item in padded if item]
            followed_by = [*items[1:], target[row]]
            sizes = self.sizes["n_layers"], self.sizes["n_heads"]
            states = [
                sasrec(self.p, f"experts.{expert}.backbone.core", [self.vector(expert, i) for i in items], *sizes)
                for expert in experts
            ]
            for t, item in enumerate(followed_by):
                own = [states_of_expert[t] for states_of_expert in states]
                of_targets.append(-torch.log(torch.sigmoid(self.score(experts, own, item))))
                of_negatives.append(-torch.log(1 - torch.sigmoid(self.score(experts, own, next(drawn)))))
        return sum(of_targets) / len(of_targets) + sum(of_negatives) / len(of_negatives)

    def alignment_loss(self, item_seq: list[list[int]], target: list[int], negatives: list[int]) -> Tensor:
        """The MMD of every slot's text and ID vector, padding and repeats too, with all differences written out."""
        slots = published_mmd_rows(item_seq, target, negatives)
        n_hidden = self.sizes["adapter_layers"]
        text = {i: adapted(self.p, "experts.align.items.text.adapter", self.text[i], n_hidden) for i in set(slots)}
        ids = self.p["experts.align.items.ids.weight"]
        rows = torch.stack([*(text[i] for i in slots), *(ids[i] for i in slots)])
        sq_dist = (rows[:, None, :] - rows[None, :, :]).square().sum(dim=2)
        unit = sq_dist.mean().detach()
        n = len(slots)
        total = torch.zeros((), dtype=torch.float64)
        for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2):
            kernel = torch.exp(-sq_dist / (2 * alpha * unit))
            within = kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n
            total = total + within / (n * (n - 1)) - 2 * kernel[:n, n:].mean()
        return total

    def step(self, loss: Tensor) -> None:
        """AdamW, Loshchilov and Hutter 2019: the decay does not go through the moments."""
        names = list(self.p)
        gradients = torch.autograd.grad(loss, [self.p[name] for name in names], allow_unused=True)
        self.steps += 1
        self.made.clear()
        with torch.no_grad():
            for name, gradient in zip(names, gradients, strict=True):
                if gradient is None:
                    continue
                of_gate = name.startswith("gate")
                rate = self.gate_learning_rate if of_gate else self.learning_rate
                self.means[name] = 0.9 * self.means[name] + 0.1 * gradient
                self.squares[name] = 0.999 * self.squares[name] + 0.001 * gradient**2
                mean = self.means[name] / (1 - 0.9**self.steps)
                square = self.squares[name] / (1 - 0.999**self.steps)
                self.p[name] *= 1 - (0 if of_gate else rate * self.weight_decay)
                self.p[name] -= rate * mean / (square.sqrt() + 1e-8)
