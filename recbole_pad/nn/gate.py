"""The frequency gate: how much each expert's score counts for an item, by the item's frequency bin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_pad.errors import InputError
from recbole_pad.registry import pick


def sigmoid_norm(logits: Tensor) -> Tensor:
    """sigma(a_k) / sum_j sigma(a_j) over the last axis: (..., E) -> (..., E), each row sums to 1.

    Computed as softmax(log sigma(a)), the same number, which does not underflow to 0/0 for very negative
    logits.

    Source: PAD, disentangle phase (the published gate).
    """
    return torch.softmax(F.logsigmoid(logits), dim=-1)


def softmax_norm(logits: Tensor) -> Tensor:
    """exp(a_k) / sum_j exp(a_j) over the last axis: (..., E) -> (..., E), each row sums to 1."""
    return torch.softmax(logits, dim=-1)


GATE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": sigmoid_norm, "softmax": softmax_norm}
EQUAL = "equal"


class FrequencyGate(nn.Module):
    """One learnable logit per frequency bin and expert; weights of an item sum to 1 over the experts.

    Args:
        n_bins: number of frequency bins, >= 1; bin 1 is the most frequent, bin `n_bins` the rarest, bin 0
            padding.
        experts: their names, in the order of the columns.
        norm: a word of `GATE_NORMS`; published: sigmoid.
        start: expert -> (first, last), its logits run linearly from bin 1 to bin `n_bins`; entries of experts
            that are not in `experts` are not used. Published: rec (1, 0), align (-4, -5), llm (0, 1). Or the
            word "equal": all 0.

    Attributes:
        logits: the one parameter, shape (n_bins + 1, E). Row 0 is 0 and gets no gradient.

    Raises:
        InputError: unknown norm or start word, an expert without start values, no expert, or no bin.

    Source: PAD, disentangle phase.
    """

    def __init__(
        self, n_bins: int, experts: Sequence[str], norm: str, start: Mapping[str, Sequence[float]] | str
    ) -> None:
        super().__init__()
        if n_bins < 1 or not experts:
            raise InputError(
                f"a gate needs at least one bin and one expert, got {n_bins} and {list(experts)}"
            )
        self.norm = pick(GATE_NORMS, norm, what="gate_norm")
        logits = torch.zeros(n_bins + 1, len(experts), dtype=torch.float32)
        for column, expert in enumerate(experts):
            first, last = _ends(start, expert)
            logits[1:, column] = torch.linspace(first, last, n_bins)
        self.logits = nn.Parameter(logits)

    def forward(self, bins: Tensor) -> Tensor:
        """Weights of the experts for items in these bins: int64 (...) -> (..., E), each row sums to 1."""
        return self.norm(F.embedding(bins, self.logits, padding_idx=0))


def _ends(start: Mapping[str, Sequence[float]] | str, expert: str) -> tuple[float, float]:
    if isinstance(start, str):
        return pick({EQUAL: (0.0, 0.0)}, start, what="gate_start")
    if expert not in start:
        raise InputError(f"gate_start has no values for expert {expert!r}; add {expert}: [first, last]")
    ends = start[expert]
    if len(ends) != 2:
        raise InputError(f"gate_start of expert {expert!r} is {list(ends)}; give two numbers, [first, last]")
    return float(ends[0]), float(ends[1])
