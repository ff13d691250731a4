"""What PAD relies on in a backbone, tried on a user's own class before anything is trained.

RecBole's models are known to keep these laws (tests/unit/test_backbones.py); of an own class each would otherwise be
broken in silence, and a state that sees its own target would even look like a very good model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from recbole_pad.backbones import BackboneSpec
from recbole_pad.errors import InputError

_N_ITEMS, _LONGEST = 12, 6  # of the batch that is tried: rows of the item table, items of the longest row


class _Encoder(Protocol):
    """`recbole_pad.model.backbone.Backbone`, as far as it is tried here."""

    spec: BackboneSpec
    width: int
    training: bool
    initial_items: Tensor

    def forward(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor: ...

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor: ...

    def train(self, mode: bool = True) -> Any: ...


def check_item_table(name: str, core: nn.Module, n_items: int) -> None:
    """Refuse a model without an item table that PAD's vectors can replace.

    Raises:
        InputError: if `core.item_embedding` is no `nn.Embedding` of all items, with padding, and a mask token at most.
    """
    table = getattr(core, "item_embedding", None)
    rows = table.num_embeddings if isinstance(table, nn.Embedding) else None
    if rows not in (n_items, n_items + 1):
        found = "has none" if table is None else f"is {table}"
        raise InputError(
            f"backbone: {name}: its attribute item_embedding {found}; it must be the nn.Embedding of all items, "
            f"{n_items} rows here, or one more for a mask token"
        )


@torch.no_grad()
def check_laws(name: str, backbone: _Encoder, n_columns: int) -> None:
    """Try an own class on a few random rows, without dropout; neither its weights nor the random state change.

    Args:
        name: what the config calls it.
        backbone: the `Backbone` around it.
        n_columns: MAX_ITEM_LIST_LENGTH.

    Raises:
        InputError: if it cannot be called as its spec says, if its states have another shape, are random without
            dropout, depend on the numbers of items, on other rows or on padding (unless its spec says `fixed_length`),
            or if states of all positions (rows ``sequences``) see later items.
    """
    was_training = backbone.training
    backbone.train(False)
    try:
        with torch.random.fork_rng(devices=[]):
            rows = _random_rows(backbone, n_columns)
            _check_call(name, backbone, rows)
            for holds, otherwise in _LAWS.items():
                if not holds(backbone, rows):
                    raise InputError(f"backbone: {name}: {otherwise}")
    finally:
        backbone.train(was_training)


class _Rows(NamedTuple):
    """What a backbone is called with."""

    table: Tensor  # (n, d)
    item_seq: Tensor  # (B, N)
    item_seq_len: Tensor  # (B,)
    user: Tensor  # (B,)


def _random_rows(backbone: _Encoder, n_columns: int) -> _Rows:
    """Rows of different lengths, of which the first has the most items."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(_N_ITEMS, backbone.width, generator=generator) * backbone.initial_items[1:].std()
    table[0] = 0.0
    longest = min(n_columns, _LONGEST)
    length = torch.tensor([longest, max(1, longest - 1), max(1, longest // 2), 1])
    seq = torch.randint(
        1, _N_ITEMS, (len(length), n_columns if backbone.spec.fixed_length else longest), generator=generator
    )
    seq[torch.arange(seq.size(1)) >= length[:, None]] = 0
    return _Rows(table, seq, length, torch.ones_like(length))


def _check_call(name: str, backbone: _Encoder, rows: _Rows) -> None:
    shape = (*rows.item_seq.shape, backbone.width)
    expected = shape if backbone.spec.rows == "sequences" else (shape[0], shape[2])
    try:
        states = backbone.forward(*rows)
    except Exception as error:  # whatever a user's class may raise
        raise InputError(
            f"backbone: {name}: called with item_seq {shape[:2]} and item_seq_len {shape[:1]} it raises "
            f"{type(error).__name__}: {error}; if it takes other arguments, or item_seq of full length only, say so in "
            "its pad_backbone (call, fixed_length)"
        ) from error
    found = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    if found != expected:
        raise InputError(
            f"backbone: {name}: with rows {backbone.spec.rows} its states must have the shape {expected} here, and are "
            f"{found}; see docs/backbones.md"
        )


def _is_repeatable(backbone: _Encoder, rows: _Rows) -> bool:
    return _same(backbone.last_state(*rows), backbone.last_state(*rows))


def _ignores_item_numbers(backbone: _Encoder, rows: _Rows) -> bool:
    number = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(_N_ITEMS - 1, 0, -1)])
    renumbered = rows._replace(table=rows.table[number], item_seq=number[rows.item_seq])  # its own inverse
    return _same(backbone.last_state(*rows), backbone.last_state(*renumbered))


def _ignores_other_rows(backbone: _Encoder, rows: _Rows) -> bool:
    alone = _Rows(rows.table, *(part[:1] for part in rows[1:]))
    return _same(backbone.last_state(*rows)[:1], backbone.last_state(*alone))


def _ignores_padding(backbone: _Encoder, rows: _Rows) -> bool:
    shorter = _Rows(rows.table, *(part[1:] for part in rows[1:]))
    n_columns = int(shorter.item_seq_len.max())
    trimmed = shorter._replace(item_seq=shorter.item_seq[:, :n_columns])
    return backbone.spec.fixed_length or _same(backbone.last_state(*shorter), backbone.last_state(*trimmed))


def _ignores_later_items(backbone: _Encoder, rows: _Rows) -> bool:
    if backbone.spec.rows != "sequences":
        return True
    newest = int(rows.item_seq_len[0]) - 1
    other = rows.item_seq.clone()
    other[0, newest] = other[0, newest] % (_N_ITEMS - 1) + 1
    before, after = backbone.forward(*rows), backbone.forward(*rows._replace(item_seq=other))
    return _same(before[0, :newest], after[0, :newest])


_LAWS: dict[Callable[[_Encoder, _Rows], bool], str] = {
    _is_repeatable: "two calls in evaluation mode differ; nothing may be random there",
    _ignores_item_numbers: "its states change when items are numbered otherwise: it reads item numbers or a "
    "second item table; name such a table in spare_tables of its pad_backbone",
    _ignores_other_rows: "the state of a row depends on the other rows of the batch; compute each row by itself",
    _ignores_padding: "its states depend on the number of padded columns; set fixed_length=True in its pad_backbone",
    _ignores_later_items: "its states see later items, so that training all positions would show it the targets; set "
    'rows="prefixes" in its pad_backbone',
}


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5 * max(1.0, float(one.abs().max())))
