"""Causal multi-head attention over packed sequences (see `packing`), with its gradient written out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recbole_pad.nn.dropout import keep_mask
from recbole_pad.nn.packing import Packing


@dataclass(frozen=True)
class HeadLayout:
    """Where queries, keys and values of each head lie, in the tokens and in the padded groups.

    P slots in all: group after group, in each (row, head, position), and one more slot. Padded slots repeat the first
    token; since padding is on the right and attention looks back only, they reach no result. Rows after the last token
    have the last slot, which is zero: they are not attended.

    Attributes:
        n_heads: H.
        shapes: (rows times heads, length) of each group.
        masks: 0 where a position may look, -inf where not: (length, length) of each group.
        slots: row of (n * 3 * H, width) for each slot of queries, then keys, then values: shape (3 * P,).
        places: the reverse, slot of each row: shape (n * 3 * H,).
        out_places: slot, among P, of each row of (n * H, width): shape (n * H,).
    """

    n_heads: int
    shapes: tuple[tuple[int, int], ...]
    masks: tuple[Tensor, ...]
    slots: Tensor
    places: Tensor
    out_places: Tensor

    @classmethod
    def of(cls, packing: Packing, n_heads: int, n_rows: int | None = None) -> HeadLayout:
        """The layout of a batch, the same for all layers; `n_rows`: n, tokens and empty rows after them, else T."""
        device, n_tokens = packing.row.device, len(packing.row)
        n_rows = n_tokens if n_rows is None else n_rows
        heads = torch.arange(n_heads, device=device)
        tokens, real, shapes, masks = [], [], [], []
        for group in packing.groups:
            step = torch.arange(group.length, device=device)
            is_real = step < packing.lengths[group.rows, None]
            token = torch.where(is_real, packing.start[group.rows, None] + step, 0)
            tokens.append((token[:, None, :] * n_heads + heads[:, None]).flatten())
            real.append(is_real[:, None, :].expand(-1, n_heads, -1).flatten())
            shapes.append((len(group.rows) * n_heads, group.length))
            masks.append(torch.full((group.length, group.length), -math.inf, device=device).triu(1))
        slot_of, is_real = torch.cat([*tokens, heads.new_zeros(1)]), torch.cat(real)
        n_slots = len(slot_of)
        used = is_real.nonzero().squeeze(1)
        out_places = torch.full((n_rows * n_heads,), n_slots - 1, device=device)
        out_places[slot_of[used]] = used
        token, head = slot_of // n_heads, slot_of % n_heads
        part = torch.arange(3, device=device)
        slots = (token * 3 + part[:, None]) * n_heads + head
        places = part[:, None] * n_slots + out_places.view(n_rows, 1, n_heads)
        return cls(n_heads, tuple(shapes), tuple(masks), slots.flatten(), places.flatten(), out_places)

    def split(self, slots: Tensor) -> Iterator[Tensor]:
        """Slots of each group, without the last one: (P, width) -> (rows times heads, length, width) each; views."""
        parts = slots.split([n_rows * length for n_rows, length in self.shapes] + [1])
        for part, (n_rows, length) in zip(parts, self.shapes, strict=False):
            yield part.view(n_rows, length, -1)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(qkv: Tensor, layout: HeadLayout, dropout: float = 0.0) -> Tensor:
    """softmax(Q K^T / sqrt(width) + causal mask) V, each row of the batch by itself.

    Args:
        qkv: queries, keys and values of the tokens side by side, shape (n, 3 * H * width).
        layout: of the batch.
        dropout: probability in [0, 1) that an attention weight is dropped; 0 outside training.

    Returns:
        Shape (n, H * width); zero in rows after the last token.

    Source: Vaswani et al. 2017, section 3.2; with padded rows it is what RecBole's `MultiHeadAttention` computes.
    """
    attended: Tensor = _PackedAttention.apply(qkv, layout, dropout)
    return attended


class _PackedAttention(torch.autograd.Function):
    """One node of the graph in place of a dozen for each group of rows.

    With A = softmax(S), S = Q K^T / sqrt(width) + mask, M the dropout mask over its keeping probability and
    O = (A * M) V:   dV = (A * M)^T dO,   dA = (dO V^T) * M,   dS = A * (dA - sum(dA * A)),   dQ = dS K,   dK = dS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, layout: HeadLayout, dropout: float) -> Tensor:
        with torch.autocast(qkv.device.type, enabled=False):
            width = qkv.size(1) // (3 * layout.n_heads)
            scale = 1 / math.sqrt(width)
            queries, keys, values = qkv.reshape(-1, width).index_select(0, layout.slots).view(3, -1, width)
            attended = torch.empty_like(queries)
            attended[-1] = 0.0
            weights: list[Tensor] = []
            kept: list[Tensor] = []
            groups = zip(*map(layout.split, (queries, keys, values, attended)), layout.masks, strict=True)
            for query, key, value, out, mask in groups:
                scores = torch.baddbmm(mask.to(query.dtype), query, key.transpose(1, 2), alpha=scale)
                weight = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
                weights.append(weight)
                if dropout > 0:
                    kept.append(keep_mask(weight, dropout))
                    weight = weight * kept[-1]
                torch.bmm(weight, value, out=out)
            ctx.save_for_backward(queries, keys, values, *weights, *kept)
            ctx.layout, ctx.scale = layout, scale
            return attended.index_select(0, layout.out_places).view(len(qkv), -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        layout: HeadLayout = ctx.layout
        n_groups = len(layout.shapes)
        queries, keys, values, *saved = ctx.saved_tensors
        weights, kept = saved[:n_groups], saved[n_groups:] or [None] * n_groups
        with torch.autocast(queries.device.type, enabled=False):
            grad_out = torch.zeros_like(queries)
            grad_out.index_copy_(0, layout.out_places, upstream[0].reshape(-1, queries.size(1)))
            grads = queries.new_empty(3, *queries.shape)
            grads[:, -1] = 0.0
            parts = map(layout.split, (queries, keys, values, *grads, grad_out))
            for query, key, value, d_query, d_key, d_value, d_out, weight, keep in zip(
                *parts, weights, kept, strict=True
            ):
                dropped = weight if keep is None else weight * keep
                torch.bmm(dropped.transpose(1, 2), d_out, out=d_value)
                d_weight = torch.bmm(d_out, value.transpose(1, 2))
                if keep is not None:
                    d_weight *= keep
                d_weight -= (d_weight * weight).sum(dim=-1, keepdim=True)
                d_scores = d_weight.mul_(weight).mul_(ctx.scale)
                torch.bmm(d_scores, key, out=d_query)
                torch.bmm(d_scores.transpose(1, 2), query, out=d_key)
            width = queries.size(1)
            return grads.view(-1, width).index_select(0, layout.places).view(len(upstream[0]), -1), None, None
