"""The frequency gate: how much each expert's score counts, by how often the item was seen in training.

And, not published, by how often the newest item of the user's history was.
"""

from __future__ import annotations

import math
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


def softplus_norm(logits: Tensor) -> Tensor:
    """log(1 + exp(a_k)) / (E log 2) over the last axis: (..., E) -> (..., E), positive, 1/E at a = 0.

    Not normalised: the sum may differ from 1 by item, so the gate also sets how sharp an item's scores are. Ours.
    """
    return F.softplus(logits) / (logits.size(-1) * math.log(2))


GATE_NORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus_norm,
    "sigmoid": sigmoid_norm,
    "softmax": softmax_norm,
}
EQUAL, RANDOM = "equal", "random"


class FrequencyGate(nn.Module):
    """One learnable logit per frequency bin and expert; with a published norm, an item's weights sum to 1.

    Args:
        n_bins: number of frequency bins, >= 1; bin 1 is the most frequent, bin `n_bins` the rarest, bin 0
            padding.
        experts: their names, in the order of the columns.
        norm: a word of `GATE_NORMS`; published: sigmoid.
        start: expert -> [first, last], its logits run linearly from bin 1 to bin `n_bins`; entries of experts
            that are not in `experts` are not used. Published: rec (1, 0), align (-4, -5), llm (0, 1). Or the
            word "equal": all 0. Or "random": drawn for each bin and expert from N(0, 1), an ablation.

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
            raise InputError(f"a gate needs at least one bin and one expert, got {n_bins} and {list(experts)}")
        self.norm = pick(GATE_NORMS, norm, what="gate_norm")
        logits = torch.zeros(n_bins + 1, len(experts), dtype=torch.float32)
        for column, expert in enumerate(experts):
            logits[1:, column] = torch.linspace(*_ends(start, expert), n_bins)
        if start == RANDOM:
            logits[1:].normal_()
        self.logits = nn.Parameter(logits)

    def forward(self, bins: Tensor, log_frequency: Tensor | None = None) -> Tensor:
        """Weights of the experts for items in these bins: int64 (...) -> (..., E); `log_frequency` is not read."""
        return self.norm(F.embedding(bins, self.logits, padding_idx=0))


class LogFrequencyGate(nn.Module):
    """Logits that are linear in an item's standardised log frequency: two numbers per expert instead of one per bin.

    Few enough to be fitted on a small validation set, and the only form that tells never-seen items from rare ones.

    Args:
        n_bins: not read; the constructor is `FrequencyGate`'s.
        experts: their names, in the order of the columns.
        norm: a word of `GATE_NORMS`.
        start: expert -> [first, last], the logits at log frequency +1 and -1 standard deviations; or "equal";
            or "random": both drawn from N(0, 1).

    Attributes:
        level: logits at the mean log frequency, shape (E,).
        slope: change of the logits per standard deviation of log frequency, shape (E,).

    Raises:
        InputError: as `FrequencyGate`.

    Source: ours; docs/decisions.md, "Gate".
    """

    def __init__(
        self, n_bins: int, experts: Sequence[str], norm: str, start: Mapping[str, Sequence[float]] | str
    ) -> None:
        super().__init__()
        if not experts:
            raise InputError("a gate needs at least one expert")
        self.norm = pick(GATE_NORMS, norm, what="gate_norm")
        ends = torch.tensor([_ends(start, expert) for expert in experts], dtype=torch.float32)
        if start == RANDOM:
            ends.normal_()
        self.level = nn.Parameter(ends.mean(dim=1))
        self.slope = nn.Parameter((ends[:, 0] - ends[:, 1]) / 2)

    def forward(self, bins: Tensor, log_frequency: Tensor) -> Tensor:
        """Weights of the experts: standardised log frequency (...) -> (..., E); `bins` is not read."""
        return self.norm(self.level + log_frequency[..., None] * self.slope)


class NewestItemGate(nn.Module):
    """A weight per expert for a user, by how frequent the newest item of the history is.

    An ID expert knows little of a user whose newest item it hardly saw; an expert that reads text loses nothing. The
    weight multiplies the expert's user state, so that a score stays an inner product.

    Args:
        n_experts: E.

    Attributes:
        slope: shape (E,), starts at 0, where every weight is 1.

    Source: ours; docs/decisions.md, "Gate".
    """

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(n_experts))

    def forward(self, log_frequency: Tensor) -> Tensor:
        """softplus(log(e - 1) + slope * log frequency): standardised log frequency (B,) -> weights > 0, (B, E)."""
        return F.softplus(_SOFTPLUS_1 + log_frequency[:, None] * self.slope)


class EveryUserAlike(nn.Module):
    """The published gate does not look at the user: weight 1 for every expert; arguments as `NewestItemGate`."""

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts

    def forward(self, log_frequency: Tensor) -> Tensor:
        """(B,) -> ones, (B, E)."""
        return log_frequency.new_ones(len(log_frequency), self.n_experts)


class Gate(nn.Module):
    """The weight of an expert for an item, times its weight for a user.

    Args:
        items: a gate of `GATES`.
        users: a gate of `USER_GATES`.
    """

    def __init__(self, items: nn.Module, users: nn.Module) -> None:
        super().__init__()
        self.items, self.users = items, users


_SOFTPLUS_1 = math.log(math.e - 1)  # softplus of it is 1
USER_GATES: dict[str, type[NewestItemGate] | type[EveryUserAlike]] = {"newest": NewestItemGate, "none": EveryUserAlike}
GATES: dict[str, type[FrequencyGate] | type[LogFrequencyGate]] = {
    "bins": FrequencyGate,
    "log_frequency": LogFrequencyGate,
}


def _ends(start: Mapping[str, Sequence[float]] | str, expert: str) -> tuple[float, float]:
    if isinstance(start, str):
        return pick({EQUAL: (0.0, 0.0), RANDOM: (0.0, 0.0)}, start, what="gate_start")
    if expert not in start:
        raise InputError(f"gate_start has no values for expert {expert!r}; add {expert}: [first, last]")
    ends = start[expert]
    if len(ends) != 2:
        raise InputError(f"gate_start of expert {expert!r} is {list(ends)}; give two numbers, [first, last]")
    return float(ends[0]), float(ends[1])
