"""The backbones: RecBole's own sequential models, what each can do, and why others cannot serve.

A backbone with rows ``sequences`` gives a causal state at every position, so one row per user trains all positions.
One with rows ``prefixes`` gives one state per row (attention on the last item, graphs, or layers that look ahead), so
every prefix is a row. Every ``sequences`` entry has a causality test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


def _sequence_and_length(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(item_seq, item_seq_len)


def _sequence_and_user(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(item_seq, user)


def _user_and_sequence(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    return core(user, item_seq)


def _core(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    """CORE's state is a unit vector; its own scores divide by the temperature."""
    return core(item_seq) / core.temperature


def _masked_last(core: Any, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
    """BERT4Rec: the oldest slot goes, a mask token follows the newest item; its state predicts the next item."""
    last = item_seq_len[:, None] - 1
    shifted = torch.cat([item_seq[:, 1:], torch.zeros_like(item_seq[:, :1])], dim=1)
    states = core(shifted.scatter(1, last, core.mask_token))
    return states.gather(1, last[:, :, None].expand(-1, -1, states.size(-1))).squeeze(1)


@dataclass(frozen=True)
class BackboneSpec:
    """One backbone. A user's own class says it of itself by an attribute `pad_backbone` (docs/backbones.md).

    Attributes:
        rows: ``sequences`` (causal states at all positions) or ``prefixes`` (one state per row).
        call: how RecBole's model is called; returns states (B, N, d) or (B, d).
        position_table: attribute path of the absolute position table, where positions may count from the newest item.
        fixed_length: the model needs item_seq of the full MAX_ITEM_LIST_LENGTH columns.
        spare_tables: further item tables of the model that PAD's vectors replace.
        has_mask_token: the item table has one more row, for a mask token.
        causal_encoder: attribute path of RecBole's `TransformerEncoder`, in a model whose other layers work on each
            position by itself: it then runs on the tokens of all rows, without padding.
    """

    rows: str
    call: Call = _sequence_and_length
    position_table: str | None = None
    fixed_length: bool = False
    spare_tables: tuple[str, ...] = ()
    has_mask_token: bool = False
    causal_encoder: str | None = None


BACKBONES: dict[str, BackboneSpec] = {
    "SASRec": BackboneSpec("sequences", position_table="position_embedding", causal_encoder="trm_encoder"),
    "GRU4Rec": BackboneSpec("sequences"),
    "BERT4Rec": BackboneSpec("prefixes", _masked_last, position_table="position_embedding", has_mask_token=True),
    "NARM": BackboneSpec("prefixes"),
    "Caser": BackboneSpec("prefixes", _user_and_sequence, fixed_length=True),
    "CORE": BackboneSpec("prefixes", _core, position_table="net.position_embedding"),
    "LightSANs": BackboneSpec("prefixes", fixed_length=True),
    "FEARec": BackboneSpec("prefixes", fixed_length=True),
    "STAMP": BackboneSpec("prefixes"),
    "SINE": BackboneSpec("prefixes", fixed_length=True),
    "HGN": BackboneSpec(
        "prefixes", _sequence_and_user, fixed_length=True, spare_tables=("item_embedding_for_prediction",)
    ),
}

_NO_INNER_PRODUCT = "its score is not an inner product of a user state and an item vector"
_NEEDS_FEATURES = "it needs item features or further files beside the interactions"
UNSUPPORTED = {
    "TransRec": _NO_INNER_PRODUCT + " (a translated distance)",
    "FPMC": _NO_INNER_PRODUCT + " (three factor tables)",
    "RepeatNet": "it returns scores over all items, not a state",
    "SASRecCPR": "it returns a list of states and keeps a second name for its item table",
    "GRU4RecCPR": "it keeps a second name for its item table, which PAD's vectors cannot replace",
    "GRU4RecKG": "it needs knowledge-graph files (.ent)",
    "KSR": "it needs knowledge-graph files (.ent)",
    "S3Rec": "it needs its own pre-training file",
    "DIN": "it is a click model without full ranking",
    "DIEN": "it is a click model without full ranking",
    "SRGNN": "no causal states, and its graph is rebuilt in Python for each row; not tried with replaced vectors",
    "GCSAN": "its graph is rebuilt in Python for each row; not tried with replaced vectors",
    "NextItNet": "it reads the tail of right-padded lists, so short histories see padding",
    "HRM": "it reads the tail of right-padded lists, so short histories see padding",
    "NPE": "it passes vectors through a ReLU in its own scoring",
    "SHAN": "it needs inverted sequences (transform: inverse_itemseq)",
    "FOSSIL": "not tried with replaced vectors",
    "GRU4RecF": _NEEDS_FEATURES,
    "SASRecF": _NEEDS_FEATURES,
    "FDSA": _NEEDS_FEATURES,
}
