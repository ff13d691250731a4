"""Sequences without their padding: the tokens of all rows one after the other, and groups of rows for attention."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

_SHORTEST_SPLIT = 8  # rows up to this length are in one group: splitting them costs more calls than it saves work


@dataclass(frozen=True)
class Group:
    """Rows of similar length, padded to the longest of them.

    Attributes:
        rows: their places in the batch, shape (b,).
        length: of the longest.
    """

    rows: Tensor
    length: int


@dataclass(frozen=True)
class Packing:
    """Where the T tokens of B right-padded rows are: row by row, each from the oldest item to the newest.

    Attributes:
        lengths: of the rows, each >= 1, shape (B,).
        row: row of each token, shape (T,).
        groups: the rows by length; each row is in one group.
    """

    lengths: Tensor
    row: Tensor
    groups: tuple[Group, ...]

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """From the lengths of the rows; on the CPU rows are grouped, on a GPU few large calls are better."""
        row = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        longest = int(lengths.max())
        every = Group(torch.arange(len(lengths), device=lengths.device), longest)
        return cls(lengths, row, (every,) if lengths.is_cuda else tuple(_groups(lengths, longest)))

    @cached_property
    def end(self) -> Tensor:
        """Of each row, the place after its newest token: shape (B,)."""
        return self.lengths.cumsum(0)

    @cached_property
    def start(self) -> Tensor:
        """Of each row, the place of its oldest token: shape (B,)."""
        return self.end - self.lengths

    @cached_property
    def position(self) -> Tensor:
        """Of each token, its place in its row: shape (T,)."""
        return torch.arange(len(self.row), device=self.row.device) - self.start[self.row]

    def pack(self, padded: Tensor) -> Tensor:
        """Tokens of a right-padded tensor: (B, N, ...) -> (T, ...)."""
        return padded[self.row, self.position]

    def unpack(self, tokens: Tensor, n_columns: int) -> Tensor:
        """The right-padded tensor of tokens, zero where there is none: (T, d) -> (B, n_columns, d)."""
        padded = tokens.new_zeros(len(self.lengths) * n_columns, tokens.size(1))
        place = self.row * n_columns + self.position
        return padded.index_copy(0, place, tokens).view(len(self.lengths), n_columns, -1)


def _groups(lengths: Tensor, longest: int) -> list[Group]:
    """Groups whose longest row is at most twice (or so) as long as the shortest one."""
    groups: list[Group] = []
    high = longest
    while high > 0:
        low = high // 2 if high > _SHORTEST_SPLIT else 0
        rows = ((lengths > low) & (lengths <= high)).nonzero().squeeze(1)
        if len(rows):
            groups.append(Group(rows, int(lengths[rows].max())))
        high = low
    return groups
