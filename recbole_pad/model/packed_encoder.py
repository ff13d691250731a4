"""RecBole's transformer encoder without the padding: its own layers and weights, run on the tokens of all rows."""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.layers import FeedForward
from torch import Tensor, nn
from torch.nn import functional as F

from recbole_pad.nn.linear import ROWS, linear, pad_rows
from recbole_pad.nn.packed_attention import HeadLayout, packed_attention
from recbole_pad.nn.packing import Packing


class PackedEncoder(nn.Module):
    """Stands in for RecBole's `TransformerEncoder`, with causal attention and the same names of its parameters.

    Half of the slots of a right-padded batch are padding (Prime Pantry, N = 20: 62 %), whose states nobody reads. Here
    everything that works on each position by itself runs on the T tokens, and attention on groups of rows of similar
    length; the states of the tokens are those of RecBole's encoder. Dropout draws other masks.

    Args:
        encoder: RecBole's; its layers are taken over.

    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.layer: nn.ModuleList = encoder.layer
        self.n_heads: int = encoder.layer[0].multi_head_attention.num_attention_heads
        self._layout: HeadLayout | None = None
        self._wanted: Tensor | None = None

    def prepare(self, packing: Packing, last_only: bool) -> None:
        """Before a call: where the tokens of the batch are, and whether only the rows' newest states are wanted."""
        n_tokens = len(packing.row)
        self._layout = HeadLayout.of(packing, self.n_heads, n_tokens + -n_tokens % ROWS)
        self._wanted = packing.end - 1 if last_only else None

    def forget(self) -> None:
        """After a call."""
        self._layout = self._wanted = None

    def forward(self, hidden_states: Tensor, attention_mask: Any, output_all_encoded_layers: bool) -> list[Tensor]:
        """As RecBole's encoder, on one row that holds the tokens of the batch.

        Args:
            hidden_states: shape (1, T, d).
            attention_mask: not read: attention is causal in each row of the batch.
            output_all_encoded_layers: not read: the backbone takes the last layer's states.

        Returns:
            The states of the last layer, shape (1, T, d), in a list; (1, B, d) where only those are wanted.
        """
        layout = self._layout
        assert layout is not None, "the encoder ran outside Backbone.forward"
        n_tokens = hidden_states.size(1)
        states = pad_rows(hidden_states[0])
        *layers, last_layer = self.layer
        for layer in layers:
            states = _run(layer, states, layout)
        if self._wanted is not None:
            return [_run(last_layer, states, layout, self._wanted)[None]]
        return [_run(last_layer, states, layout)[None, :n_tokens]]


def _run(layer: Any, states: Tensor, layout: HeadLayout, wanted: Tensor | None = None) -> Tensor:
    """One of RecBole's layers, one product for queries, keys and values: (n, d) -> (n, d), or `wanted` rows of it."""
    attention = layer.multi_head_attention
    parts = attention.query, attention.key, attention.value
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    dropout = attention.attn_dropout.p if attention.training else 0.0
    context = packed_attention(linear(states, weight, bias), layout, dropout)
    if wanted is not None:
        context, states = context.index_select(0, wanted), states.index_select(0, wanted)
    attended: Tensor = attention.LayerNorm(attention.out_dropout(attention.dense(context)) + states)
    output: Tensor = layer.feed_forward(attended)
    return output


def use_fused_gelu(module: nn.Module) -> None:
    """Let RecBole's feed-forward layers use torch's GELU, one pass, in place of the same formula in five."""
    for part in module.modules():
        if isinstance(part, FeedForward) and getattr(part.intermediate_act_fn, "__name__", "") == "gelu":
            part.intermediate_act_fn = F.gelu
