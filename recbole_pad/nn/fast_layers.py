"""Layers of any module replaced by ours that compute the same sooner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from recbole_pad.nn.dropout import Dropout
from recbole_pad.nn.linear import Linear


def _fast_linear(layer: nn.Linear) -> Linear:
    fast = Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    fast.weight, fast.bias = layer.weight, layer.bias
    return fast


def _fast_dropout(layer: nn.Dropout) -> Dropout:
    return Dropout(layer.p, layer.inplace)


_FAST: dict[type[nn.Module], Callable[[Any], nn.Module]] = {nn.Linear: _fast_linear, nn.Dropout: _fast_dropout}


def use_fast_layers(module: nn.Module) -> None:
    """Replace every linear and dropout layer inside a module, in place; parameters and their names stay.

    Results are equal within rounding, but dropout draws other masks. Subclasses of torch's layers are left alone, and
    layers whose weight is computed anew at each call (weight norm, spectral norm).
    """
    for parent in module.modules():
        for name, child in parent.named_children():
            if type(child) in _FAST and not child._forward_pre_hooks and not parametrize.is_parametrized(child):
                setattr(parent, name, _FAST[type(child)](child).train(child.training))
