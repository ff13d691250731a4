"""A RecBole sequential model as PAD's user encoder: its item table is replaced by vectors given at each call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from recbole.model.layers import TransformerEncoder
from torch import Tensor, nn

from recbole_pad.backbone_classes import backbone_class, backbone_spec, errors_of_own_class
from recbole_pad.backbones import BackboneSpec
from recbole_pad.errors import InputError
from recbole_pad.model.packed_encoder import PackedEncoder, use_fused_gelu
from recbole_pad.nn.fast_layers import use_fast_layers
from recbole_pad.nn.packing import Packing

T = TypeVar("T", bound=nn.Module)


class ItemLookup(nn.Module):
    """Stands in for the backbone's item embedding; the table is there only while the backbone runs."""

    padding_idx = 0

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.weight: Tensor | None = None

    @property
    def num_embeddings(self) -> int:
        """Rows of the present table."""
        return 0 if self.weight is None else len(self.weight)

    def forward(self, item_ids: Tensor) -> Tensor:
        """Vectors of the items: ids of any shape (...) -> (..., d)."""
        assert self.weight is not None, "the backbone ran outside Backbone.forward"
        return F.embedding(item_ids, self.weight)


class RecencyPositions(nn.Module):
    """Position vectors counted from the newest item: 0 for the newest, 1 for the one before, and so on.

    RecBole pads on the right and counts from the oldest item; PAD pads on the left and counts from the newest, which
    gives the same states as this table on right-padded sequences. Source: docs/method.md section 2.

    Attributes:
        origin: column of the newest item, (B, 1), or (1, T) for packed rows; there only while the backbone runs.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.table = table
        self.origin: Tensor | None = None

    def count_in(self, packing: Packing) -> None:
        """Count in each row of packed rows."""
        self.origin = (packing.end - 1)[packing.row][None]

    def forward(self, position_ids: Tensor) -> Tensor:
        """Columns 0, 1, ..., shape (B, N) or (1, T) -> vectors (B, N, d) or (1, T, d)."""
        assert self.origin is not None, "the backbone ran outside Backbone.forward"
        vectors: Tensor = self.table((self.origin - position_ids).clamp(min=0))
        return vectors


class PackedPositions(nn.Embedding):
    """Position vectors counted from the oldest item of each of several rows that are packed into one.

    Attributes:
        origin: column of the oldest item of each token's row, shape (1, T); there only while the backbone runs.
    """

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__(table.num_embeddings, table.embedding_dim, _weight=table.weight.detach())
        self.origin: Tensor | None = None

    def count_in(self, packing: Packing) -> None:
        """Count in each row of packed rows."""
        self.origin = packing.start[packing.row][None]

    def forward(self, position_ids: Tensor) -> Tensor:
        """Columns 0, 1, ..., shape (1, T) -> vectors (1, T, d)."""
        assert self.origin is not None, "the backbone ran outside Backbone.forward"
        return super().forward(position_ids - self.origin)


def _all_positions(output: Tensor, gather_index: Tensor) -> Tensor:
    """In place of RecBole's `gather_indexes`: keep the state of every position."""
    return output


def _no_mask(item_seq: Tensor, bidirectional: bool = False) -> None:
    """In place of RecBole's `get_attention_mask`: the packed encoder needs none."""


class Backbone(nn.Module):
    """User encoder: item vectors and sequences in, user states out.

    Args:
        name: a word of `recbole_pad.backbones.BACKBONES`, or ``module:Class``.
        config: RecBole's config (the backbone reads its own keys).
        dataset: RecBole's dataset (the backbone reads the numbers of users and items).
        positions: ``recency`` or ``absolute``, or ``auto``: recency where the backbone has a position table.

    Attributes:
        initial_items: the backbone's own start values of the item table, shape (V, d); taken out of the backbone.
        width: d.

    Raises:
        InputError: if `positions` is ``recency`` and the backbone has no position table, or if an own class cannot be
            made, has no item table to replace, or not what its spec names.
    """

    def __init__(self, name: str, config: Any, dataset: Any, positions: str = "auto") -> None:
        super().__init__()
        self.spec: BackboneSpec = backbone_spec(name)
        core_config = copy.copy(config)
        core_config.final_config_dict = {
            **config.final_config_dict,
            "loss_type": "CE",
            "train_neg_sample_args": None,
        }
        with errors_of_own_class(name, "made"):
            self.core = backbone_class(name)(core_config, dataset)
        _check_item_table(name, self.core, self.spec, dataset.item_num)
        table = self.core.item_embedding.weight.detach()
        self.width = table.size(1)
        self.initial_items = table if len(table) == dataset.item_num else table[: dataset.item_num].clone()
        self.initial_items[0] = 0.0
        self.mask_vector = nn.Parameter(table[-1].clone()) if self.spec.has_mask_token else None
        self.lookup = ItemLookup(self.width)
        self.core.item_embedding = self.lookup
        if self.spec.rows == "sequences":
            self.core.gather_indexes = _all_positions
        use_fast_layers(self.core)
        use_fused_gelu(self.core)
        recency = self._wants_recency(name, positions)
        with errors_of_own_class(name, "fitted with what its pad_backbone names"):
            for path in self.spec.spare_tables:
                self._replace(path, nn.Module, lambda _: self.lookup)
            table_of = self.spec.position_table
            self._recency = self._replace(table_of, nn.Embedding, RecencyPositions) if recency else None
            self._packer = self._pack() if self.spec.causal_encoder else None

    def _wants_recency(self, name: str, positions: str) -> bool:
        if positions == "recency" and self.spec.position_table is None:
            raise InputError(f"positions: recency needs a position table, which {name} has not; use positions: auto")
        return positions != "absolute" and self.spec.position_table is not None

    def _pack(self) -> _Packer:
        """Let the core's encoder and positions work on packed rows."""
        encoder = self._replace(self.spec.causal_encoder, TransformerEncoder, PackedEncoder)
        positions: RecencyPositions | PackedPositions | None = self._recency
        if positions is None:
            positions = self._replace(self.spec.position_table, nn.Embedding, PackedPositions)
        self.core.get_attention_mask = _no_mask
        return _Packer(encoder, positions)

    def _replace(self, path: str | None, kind: type[nn.Module], make: Callable[[Any], T]) -> T:
        """Put what `make` makes of a part of the core in its place; `path` is dotted, `kind` what the part must be."""
        if path is None:
            raise InputError(f"{type(self.core).__name__}: pad_backbone: causal_encoder needs a position_table as well")
        module, _, attribute = path.rpartition(".")
        owner = self.core.get_submodule(module)
        part = getattr(owner, attribute)
        if not isinstance(part, kind):
            found = f"{path} is a {type(part).__name__}, and must be a {kind.__name__}"
            raise InputError(f"{type(self.core).__name__}: pad_backbone: {found}")
        replacement = make(part)
        setattr(owner, attribute, replacement)
        return replacement

    def forward(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """User states.

        Args:
            table: item vectors, shape (n, d); row 0 is padding and zero.
            item_seq: rows of `table`, right-padded with 0, shape (B, N).
            item_seq_len: lengths >= 1, shape (B,).
            user: user ids, shape (B,).

        Returns:
            (B, N, d) where the backbone gives a state at each position (``rows == "sequences"``), else (B, d). States
            of padding mean nothing.
        """
        if self._packer is None:
            return self._padded(table, item_seq, item_seq_len, user)
        packing = Packing.of(item_seq_len)
        return packing.unpack(self._packed(table, item_seq, packing, user), item_seq.size(1))

    def position_states(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after every item, row by row, shape (T, d); of a backbone with ``rows == "sequences"``."""
        if self._packer is not None:
            return self._packed(table, item_seq, Packing.of(item_seq_len), user)
        return self._padded(table, item_seq, item_seq_len, user)[is_item(item_seq, item_seq_len)]

    def last_state(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        """The state after the newest item, shape (B, d); arguments as for `forward`."""
        if self._packer is not None:
            return self._packed(table, item_seq, Packing.of(item_seq_len), user, last_only=True)
        states = self._padded(table, item_seq, item_seq_len, user)
        if states.dim() == 2:
            return states
        return states[torch.arange(len(states), device=states.device), item_seq_len - 1]

    def _padded(self, table: Tensor, item_seq: Tensor, item_seq_len: Tensor, user: Tensor) -> Tensor:
        if self.mask_vector is not None:
            self.core.mask_token = len(table)
            table = torch.cat([table, self.mask_vector[None]])
        with self._borrowed(table):
            if self._recency is not None:
                self._recency.origin = item_seq_len[:, None] - 1
            return self.spec.call(self.core, item_seq, item_seq_len, user)

    def _packed(
        self, table: Tensor, item_seq: Tensor, packing: Packing, user: Tensor, last_only: bool = False
    ) -> Tensor:
        """States of all tokens, (T, d), or of the newest ones, (B, d): RecBole's model sees one row that holds all."""
        assert self._packer is not None
        with self._borrowed(table):
            self._packer.encoder.prepare(packing, last_only)
            self._packer.positions.count_in(packing)
            return self.spec.call(self.core, packing.pack(item_seq)[None], packing.lengths, user)[0]

    @contextmanager
    def _borrowed(self, table: Tensor) -> Iterator[None]:
        """The table is in its place inside the block; afterwards nothing of the call is left, also after an error."""
        self.lookup.weight = table
        try:
            yield
        finally:
            self.lookup.weight = None
            if self._recency is not None:
                self._recency.origin = None
            if self._packer is not None:
                self._packer.encoder.forget()
                self._packer.positions.origin = None


def _check_item_table(name: str, core: nn.Module, spec: BackboneSpec, n_items: int) -> None:
    """Refuse a model without an item table that PAD's vectors can replace.

    Raises:
        InputError: if `core.item_embedding` is no plain `nn.Embedding` of all items, with padding, and with a mask
            token where the spec says so.
    """
    table = getattr(core, "item_embedding", None)
    rows = n_items + spec.has_mask_token
    if type(table) is not nn.Embedding or table.num_embeddings != rows or table.max_norm is not None:
        found = "there is none" if table is None else f"it is {table}"
        raise InputError(
            f"backbone: {name}: its attribute item_embedding must be a plain nn.Embedding of all items, {rows} rows "
            f"here (with a mask token, has_mask_token in its pad_backbone, one more), and {found}"
        )


@dataclass(frozen=True)
class _Packer:
    """The parts of a core that work on packed rows; here they are not submodules a second time."""

    encoder: PackedEncoder
    positions: RecencyPositions | PackedPositions


def is_item(item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
    """True for the slots of right-padded rows that hold an item, shape (B, N)."""
    return torch.arange(item_seq.size(1), device=item_seq.device) < item_seq_len[:, None]
