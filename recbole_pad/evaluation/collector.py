"""The rank of every held-out target of a split, collected batch by batch, by inner products or from score matrices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recbole_pad.distributed import Processes
from recbole_pad.evaluation.ranking import SCORE_MEMORY_MB, History, Items, rank_targets
from recbole_pad.evaluation.ranks import target_ranks
from recbole_pad.nn.score_pairs import ScorePairs

_PAIR_BYTES = 8 + 8 + 4
_HISTORY_BYTES = 80  # of an item of a history, while those that wait are put together and sorted
_CPU_ROWS, _CPU_SCORES = 256, 2**21  # of a score matrix: whichever gives more rows

Pairs = Callable[[Tensor, Tensor], History]
"""Maps user ids (B,) and row numbers in the split (B,) to the (row of the batch, item) pairs of the histories."""


@dataclass(frozen=True)
class Ranks:
    """The ranks of the held-out targets of a split, one row each; all of shape (n_rows,).

    Attributes:
        user: user ids.
        target: item ids.
        unmasked: rank among all items, from 1; ties share their mean.
        masked: rank among the items outside the user's history; infinite where the target is in it.
    """

    user: np.ndarray
    target: np.ndarray
    unmasked: np.ndarray
    masked: np.ndarray


class RankCollector:
    """Ranks the targets of a full-ranking loader with one target per row.

    Args:
        trainer: a RecBole trainer; its model scores.
        loader: the split, a loader of RecBole or ours.
        pairs: the histories to mask. None: those that the loader returns with its batches; where it returns none,
            both ranks are equal.

    Attributes:
        protocol: ``masked`` if the loader returns histories, so that RecBole masks them, else ``unmasked``.
    """

    def __init__(self, trainer: Any, loader: Any, pairs: Pairs | None = None) -> None:
        self.protocol = "unmasked"
        self._processes = Processes.of(trainer.config)
        self._uid_field, self._n_rows = loader.uid_field, len(loader._dataset)
        self._pairs = pairs
        self._users: list[Tensor] = []
        self._targets: list[Tensor] = []
        memory_mb = float(trainer.config["score_memory_mb"] or SCORE_MEMORY_MB)
        has_vectors = hasattr(trainer.model, "user_vectors") and hasattr(trainer.model, "item_vectors")
        scorer = _InnerProducts if has_vectors else _ScoreMatrix
        self._scorer: _Scorer = scorer(trainer, loader._dataset.item_num, memory_mb)
        self._joined: Ranks | None = None

    def add(self, batch: tuple[Any, History | None, Tensor, Tensor]) -> None:
        """Rank the targets of a batch: (interaction, history, rows of the targets, targets) as loaders give it."""
        interaction, history, _, target = batch
        if history is not None:
            self.protocol = "masked"
        users = interaction[self._uid_field].cpu()
        rows = self._row_numbers(len(users))
        self._users.append(users)
        self._targets.append(target.cpu())
        self._scorer.add(interaction, target, history if self._pairs is None else self._pairs(users, rows))

    def _row_numbers(self, n_rows: int) -> Tensor:
        """Of the next rows that this process ranks (see `_dealt_out`)."""
        first = sum(map(len, self._users))
        return (torch.arange(first, first + n_rows) * self._processes.world + self._processes.rank) % self._n_rows

    def ranks(self) -> Ranks:
        """The ranks of all rows, of all processes; call it once the batches are through, in every process."""
        if self._joined is None:
            nothing = torch.zeros(0, dtype=torch.int64)
            columns = [torch.cat([nothing, *parts]) for parts in (self._users, self._targets)]
            columns += self._scorer.ranks()
            shares = self._processes.objects([column.cpu().numpy() for column in columns])
            self._joined = Ranks(*(_dealt_out(parts, self._n_rows) for parts in zip(*shares, strict=True)))
        return self._joined


def _dealt_out(parts: tuple[np.ndarray, ...], n_rows: int) -> np.ndarray:
    """Rows in the order of the data from the shares of the processes, none of them twice.

    Process r of R holds rows r, r + R, r + 2R, ...; PyTorch's sampler goes on with rows from the start until the shares
    are of one length.
    """
    return np.stack(parts, axis=1).reshape(-1)[:n_rows]


class _Scorer(Protocol):
    """Ranks the targets of batches."""

    def __init__(self, trainer: Any, n_items: int, memory_mb: float) -> None: ...

    def add(self, interaction: Any, target: Tensor, history: History | None) -> None: ...

    def ranks(self) -> tuple[Tensor, Tensor]: ...


class _InnerProducts:
    """For a model whose score is ``user_vectors(interaction) . item_vectors(item_ids)``, plus its `pair_scores` if any.

    User vectors wait until they fill the memory and are ranked together: item vectors that are not kept in memory are
    computed once for all of them.
    """

    def __init__(self, trainer: Any, n_items: int, memory_mb: float) -> None:
        self._model, self._device, self._memory_mb = trainer.model, trainer.device, memory_mb
        self._items = Items(n_items, lambda item_ids: trainer.model.item_vectors(item_ids).float())
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._histories: list[History] = []
        self._extras: list[ScorePairs] = []
        self._n_waiting, self._n_bytes = 0, 0
        self._ranked: list[tuple[Tensor, Tensor]] = []

    def add(self, interaction: Any, target: Tensor, history: History | None) -> None:
        interaction = interaction.to(self._device)
        users = self._model.user_vectors(interaction).float()
        extra = self._model.pair_scores(interaction) if hasattr(self._model, "pair_scores") else None
        if extra is not None:
            self._extras.append(ScorePairs(extra.rows + self._n_waiting, extra.items, extra.values.float()))
            self._n_bytes += _PAIR_BYTES * len(extra.rows)
        if history is not None:
            self._histories.append((history[0] + self._n_waiting, history[1]))
            self._n_bytes += _HISTORY_BYTES * len(history[0])
        self._waiting.append((users, target))
        self._n_waiting += len(users)
        self._n_bytes += 4 * users.numel()
        if self._n_bytes > self._memory_mb * 2**20:
            self._rank_waiting()

    def _rank_waiting(self) -> None:
        users, target = _concatenated(self._waiting, self._device)
        history = _concatenated(self._histories, self._device) if self._histories else None
        extra = ScorePairs.joined(self._extras) if self._extras else None
        self._ranked.append(rank_targets(users, self._items, target, history, self._memory_mb, extra))
        self._waiting, self._histories, self._extras, self._n_waiting, self._n_bytes = [], [], [], 0, 0

    def ranks(self) -> tuple[Tensor, Tensor]:
        if self._waiting:
            self._rank_waiting()
        return _concatenated(self._ranked, self._device)


class _ScoreMatrix:
    """For any other model: RecBole's scores of all items, of as many rows at once as the memory allows.

    On a CPU, of no more than some hundreds: these scores, and what the encoder makes of the rows, stay in its cache.
    """

    def __init__(self, trainer: Any, n_items: int, memory_mb: float) -> None:
        self._scores_of = trainer._full_sort_batch_eval
        self._device = trainer.device
        self._n_rows = max(1, int(memory_mb * 2**20) // (4 * n_items))
        if self._device.type == "cpu":
            self._n_rows = min(self._n_rows, max(_CPU_ROWS, _CPU_SCORES // n_items))
        self._ranked: list[tuple[Tensor, Tensor]] = []

    def add(self, interaction: Any, target: Tensor, history: History | None) -> None:
        rows, items = history if history is not None else (target.new_zeros(0), target.new_zeros(0))
        for start in range(0, len(target), self._n_rows):
            part = slice(start, start + self._n_rows)
            _, scores, _, _ = self._scores_of((interaction[part], None, None, None))
            of_part = (rows >= start) & (rows < start + self._n_rows)
            pairs = (column[of_part].to(scores.device) for column in (rows - start, items))
            self._ranked.append(target_ranks(scores, target[part].to(scores.device), *pairs))

    def ranks(self) -> tuple[Tensor, Tensor]:
        return _concatenated(self._ranked, self._device)


def _concatenated(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> tuple[Tensor, Tensor]:
    first, second = zip(*pairs, strict=True) if pairs else ([torch.zeros(0)], [torch.zeros(0)])
    return torch.cat(first).to(device), torch.cat(second).to(device)
