"""The moving average of weights while they are trained, which is what is validated and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class WeightAverage:
    """An exponential moving average of parameters, updated after each step of an optimizer.

    It begins with the weights that the first step finds. Early on it is short, min(decay, (1 + t) / (10 + t)) after t
    steps: start values are soon forgotten.

    Args:
        parameters: what is averaged; may be empty.
        optimizer: whose steps count.
        decay: in [0, 1); 0: no average, all methods do nothing.

    Source: Polyak and Juditsky 1992; the shortened start is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], optimizer: Optimizer, decay: float) -> None:
        self._parameters = list(parameters) if decay > 0 else []
        self._decay = decay
        self._averages: list[Tensor] = []
        self._trained: list[Tensor] | None = None  # kept aside while the averages stand in the model
        self._steps = 0
        if self._parameters:
            optimizer.register_step_pre_hook(self._begin)
            optimizer.register_step_post_hook(self._update)

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if not self._steps:
            self._averages = _copies(self._parameters)

    @torch.no_grad()
    def _update(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        torch._foreach_lerp_(self._averages, [parameter.detach() for parameter in self._parameters], 1 - decay)

    def enter(self) -> None:
        """Put the averages into the model, and the trained weights aside; nothing if they are there already."""
        if self._trained is None and self._steps:
            self._trained = _copies(self._parameters)
            _fill(self._parameters, self._averages)

    def leave(self) -> None:
        """Put the trained weights back; nothing if they are there already."""
        if self._trained is not None:
            _fill(self._parameters, self._trained)
            self._trained = None

    def restart(self) -> None:
        """Forget the steps so far: the weights in the model stay there, and the next step begins a new average.

        For weights that were loaded: the next `enter` would put the average of the last steps in their place.
        """
        self._steps, self._averages, self._trained = 0, [], None

    def state(self) -> dict[str, Any]:
        """What a resumed training needs beside the trained weights."""
        return {"steps": self._steps, "averages": self._averages}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave; the trained weights are in the model."""
        self._steps, self._averages, self._trained = int(state["steps"]), _copies(state["averages"]), None


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
