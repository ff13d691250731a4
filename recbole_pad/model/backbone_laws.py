"""What PAD relies on in a backbone, tried on a user's own class before anything is trained.

RecBole's models keep these laws (tests/unit/test_own_backbone.py); of an own class each would otherwise be broken in
silence. A state that sees later items, for example, shows as a small training loss and a poor result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from recbole.model.abstract_recommender import SequentialRecommender
from torch import Tensor, nn

from recbole_pad.backbone_classes import errors_of_own_class
from recbole_pad.backbones import BackboneSpec
from recbole_pad.errors import InputError
from recbole_pad.model.backbone import Backbone

_N_ITEMS = 20  # rows of the item table that is tried
_NOISE = 0.1  # standard deviation: a part that starts at zero must not hide
_TOLERANCE, _ROUNDING = 1e-3, 1e-6  # of the largest number of a state: what is no difference, and what is surely none


@torch.no_grad()
def check_laws(name: str, backbone: Backbone, n_columns: int) -> None:
    """Try an own class on a few random rows, without dropout; neither its weights nor the random state change.

    It is tried with noise on its weights: a part that starts at zero must not hide.

    Args:
        name: what the config calls it.
        backbone: the `Backbone` around it, on the device where it will be trained.
        n_columns: MAX_ITEM_LIST_LENGTH.

    Raises:
        InputError: if it cannot be called as its spec says, or breaks one of `_LAWS`.
    """
    was_training = backbone.training
    weights = {key: value.clone() for key, value in backbone.state_dict().items()}
    devices = {parameter.device for parameter in backbone.parameters() if parameter.device.type == "cuda"}
    backbone.train(False)
    try:
        with torch.random.fork_rng(devices=list(devices)), errors_of_own_class(name, "called on a few rows"):
            rows = _random_rows(backbone, n_columns)
            _check_call(name, backbone, rows)
            _add_noise(backbone)
            if not backbone.last_state(*rows).isfinite().all():
                backbone.load_state_dict(weights)
            for law in _LAWS:
                if law.concerns(backbone.spec) and not law.holds(backbone, rows):
                    raise InputError(f"backbone: {name}: {law.otherwise}")
    finally:
        backbone.load_state_dict(weights)
        backbone.train(was_training)


@dataclass(frozen=True)
class _Rows:
    """What a backbone is called with: table (n, d), item_seq (B, N), item_seq_len (B,), user (B,)."""

    table: Tensor
    item_seq: Tensor
    item_seq_len: Tensor
    user: Tensor

    def __iter__(self) -> Iterator[Tensor]:
        yield from (self.table, self.item_seq, self.item_seq_len, self.user)

    def __getitem__(self, part: slice) -> _Rows:
        return _Rows(self.table, self.item_seq[part], self.item_seq_len[part], self.user[part])

    def with_other(self, column: Tensor | int) -> _Rows:
        """Another item in this column of each row, where the row has one."""
        columns = torch.as_tensor(column, device=self.item_seq.device).expand(len(self.item_seq))[:, None]
        before = self.item_seq.gather(1, columns)
        after = torch.where(before > 0, before % (_N_ITEMS - 1) + 1, 0)
        return replace(self, item_seq=self.item_seq.scatter(1, columns, after))


def _random_rows(backbone: Backbone, n_columns: int) -> _Rows:
    """Rows of all lengths between 1 and the longest, vectors of unit scale."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(_N_ITEMS, backbone.width, generator=generator)
    table[0] = 0.0
    length = torch.tensor([n_columns, max(1, n_columns - 1), max(1, n_columns // 2), min(2, n_columns), 1])
    seq = torch.randint(1, _N_ITEMS, (len(length), n_columns), generator=generator)
    seq[torch.arange(n_columns) >= length[:, None]] = 0
    device = next((parameter.device for parameter in backbone.parameters()), table.device)
    return _Rows(*(part.to(device) for part in (table, seq, length, torch.ones_like(length))))


def _add_noise(backbone: Backbone) -> None:
    for parameter in backbone.parameters():
        if parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter), alpha=_NOISE)


def _check_call(name: str, backbone: Backbone, rows: _Rows) -> None:
    spec, shape = backbone.spec, (*rows.item_seq.shape, backbone.width)
    if spec.call is BackboneSpec.call:
        second = list(inspect.signature(backbone.core.forward).parameters)[1:2]
        if second and "user" in second[0]:
            raise InputError(
                f"backbone: {name}: its forward takes {second[0]} where the lengths would be given; say how it is "
                "called in its pad_backbone: call=lambda core, item_seq, item_seq_len, user: ..."
            )
    if spec.causal_encoder and _overrides(backbone.core, "get_attention_mask"):
        raise InputError(
            f"backbone: {name}: has a get_attention_mask of its own, which causal_encoder would not call; leave "
            "causal_encoder out of its pad_backbone"
        )
    states, first_positions = _states_and_positions(backbone, rows)
    expected = shape if spec.rows == "sequences" else (shape[0], shape[2])
    found = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
    if found != expected:
        raise InputError(
            f"backbone: {name}: with rows {spec.rows} its states must have the shape {expected} here, and are {found}; "
            "see docs/backbones.md"
        )
    if spec.fixed_length and spec.rows == "sequences" and backbone.forward(*rows[2:]).shape[1:] != shape[1:]:
        raise InputError(f"backbone: {name}: it shortens its states to the longest row; keep all {shape[1]} columns")
    if any(first_positions):
        raise InputError(
            f"backbone: {name}: it looks up positions from {first_positions[0]} on in its position_table, and PAD "
            "counts columns from 0; count from 0, or leave position_table out of its pad_backbone"
        )
    if not backbone.last_state(*rows).isfinite().all():
        raise InputError(f"backbone: {name}: its states are not finite for rows of {rows.item_seq_len.tolist()} items")


def _states_and_positions(backbone: Backbone, rows: _Rows) -> tuple[Any, list[int]]:
    """What the class gives, and the smallest position of each time it looks positions up that PAD counts."""
    found: list[int] = []
    tables = [part for part in backbone.modules() if hasattr(part, "count_in")]
    hooks = [part.register_forward_pre_hook(lambda _, given: found.append(int(given[0][:1].min()))) for part in tables]
    try:
        return backbone.forward(*rows), found
    finally:
        for hook in hooks:
            hook.remove()


def _overrides(core: nn.Module, method: str) -> bool:
    return getattr(type(core), method) is not getattr(SequentialRecommender, method)


def _is_repeatable(backbone: Backbone, rows: _Rows) -> bool:
    return _same(backbone.last_state(*rows), backbone.last_state(*rows))


def _ignores_item_numbers(backbone: Backbone, rows: _Rows) -> bool:
    number = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(_N_ITEMS - 1, 0, -1)]).to(rows.item_seq.device)
    renumbered = replace(rows, table=rows.table[number], item_seq=number[rows.item_seq])  # its own inverse
    return _same(backbone.last_state(*rows), backbone.last_state(*renumbered))


def _ignores_other_rows(backbone: Backbone, rows: _Rows) -> bool:
    alone = [backbone.last_state(*rows[n : n + 1]) for n in range(len(rows.user))]
    return _same(backbone.last_state(*rows), torch.cat(alone))


def _ignores_padding(backbone: Backbone, rows: _Rows) -> bool:
    shorter = rows[2:]
    trimmed = replace(shorter, item_seq=shorter.item_seq[:, : int(shorter.item_seq_len.max())])
    return _same(backbone.last_state(*shorter), backbone.last_state(*trimmed))


def _sees_the_newest_item(backbone: Backbone, rows: _Rows) -> bool:
    rows = rows[:-1]  # BERT4Rec, as RecBole calls it, gives the mask token the place of the oldest of all items
    before, after = backbone.last_state(*rows), backbone.last_state(*rows.with_other(rows.item_seq_len - 1))
    return not any(_same(one, other, _ROUNDING) for one, other in zip(before, after, strict=True))


def _ignores_later_items(backbone: Backbone, rows: _Rows) -> bool:
    longest = rows[:1]
    n_columns, before = longest.item_seq.size(1), backbone.forward(*longest)
    for column in sorted({1, 2, n_columns // 4, n_columns // 2, n_columns - 1} & set(range(1, n_columns))):
        after = backbone.forward(*longest.with_other(column))
        if not _same(before[:, :column], after[:, :column]):
            return False
    return True


def _state_is_that_of_gather_indexes(backbone: Backbone, rows: _Rows) -> bool:
    """The model's own choice of a position, which training all positions replaces, is that of the newest item."""
    expected = backbone.last_state(*rows)
    keep_all = vars(backbone.core).pop("gather_indexes")
    try:
        own = backbone.forward(*rows)
    finally:
        backbone.core.gather_indexes = keep_all
    return own.dim() == 3 or _same(expected, own)


def _same(one: Tensor, other: Tensor, tolerance: float = _TOLERANCE) -> bool:
    return bool((one - other).abs().max() <= tolerance * one.abs().max())


@dataclass(frozen=True)
class _Law:
    """A law, what is said where it is broken, and the backbones that it concerns."""

    holds: Callable[[Backbone, _Rows], bool]
    otherwise: str
    concerns: Callable[[BackboneSpec], Any] = lambda spec: True


_LAWS = (
    _Law(_is_repeatable, "two calls in evaluation mode differ; nothing may be random there"),
    _Law(
        _ignores_item_numbers,
        "its states change when items are numbered otherwise: it reads item numbers or a second item table; name such "
        "a table in spare_tables of its pad_backbone",
    ),
    _Law(_ignores_other_rows, "the state of a row depends on the other rows of the batch; compute each row by itself"),
    _Law(
        _ignores_padding,
        "its states depend on the number of padded columns; set fixed_length=True in its pad_backbone",
        lambda spec: not spec.fixed_length,
    ),
    _Law(
        _sees_the_newest_item,
        "its state does not change with the newest item; rows are padded on the right, so the newest item is at column "
        "item_seq_len - 1, not at -1",
    ),
    _Law(
        _ignores_later_items,
        "its states see later items, so that training all positions would show it the targets; set rows="
        '"prefixes" in its pad_backbone',
        lambda spec: spec.rows == "sequences",
    ),
    _Law(
        _state_is_that_of_gather_indexes,
        "with RecBole's gather_indexes its state is another one than that at the newest item; set rows="
        '"prefixes" in its pad_backbone',
        lambda spec: spec.rows == "sequences" and not spec.causal_encoder,
    ),
)
