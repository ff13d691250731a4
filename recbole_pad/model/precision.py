"""Config key `precision`: in which type experts and score products compute; parameters stay in float32."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

_AUTOCAST: dict[str, Callable[[str], AbstractContextManager[Any]]] = {
    "float32": lambda device: nullcontext(),  # not a disabled autocast: RecBole's `enable_amp` keeps its effect
    "bfloat16": lambda device: torch.autocast(device, dtype=torch.bfloat16),
}


def computing_in(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of a precision: under ``bfloat16``, matrix products round their inputs and results to 8 bits.

    Args:
        precision: ``float32`` or ``bfloat16``.
        device: of the tensors.
    """
    return _AUTOCAST[precision](device.type)
