"""Data loaders: training batches of similar length, and evaluation batches with the users' histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_pad.data.histories import Histories, histories_of, n_left_out
from recbole_pad.errors import InputError

_CHUNK_BATCHES = 50  # rows are sorted by length within chunks of so many batches


class LengthBucketDataLoader(TrainDataLoader):
    """Training loader whose batches hold sequences of similar length, so that trimming a batch saves most padding.

    The order of an epoch is a function of (seed, epoch): rows are permuted, cut into chunks of 50 batches, sorted by
    length inside each chunk, cut into batches, and the batches are permuted. So a resumed run sees the same batches,
    whatever was drawn before. With several processes, each takes its own rows of every batch.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        super().__init__(config, dataset, sampler, shuffle=shuffle)
        self.epoch = 0
        self._lengths = dataset.inter_feat[config["ITEM_LIST_LENGTH_FIELD"]]
        self._bucketed = bool(config["bucket_by_length"])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._row_batches())

    def __iter__(self) -> Iterator[Interaction]:
        for rows in self._row_batches():
            yield self.collate_fn(rows)

    def _row_batches(self) -> list[Tensor]:
        n_rows = len(self._lengths)
        if not self.shuffle:
            return self._share(torch.arange(n_rows).split(self._batch_rows()))
        generator = torch.Generator().manual_seed(int(self.config["seed"]) * 100_003 + self.epoch)
        order = torch.randperm(n_rows, generator=generator)
        if not self._bucketed:
            return self._share(order.split(self._batch_rows()))
        batches: list[Tensor] = []
        for chunk in order.split(_CHUNK_BATCHES * self._batch_rows()):
            by_length = chunk[torch.argsort(self._lengths[chunk], stable=True)]
            batches += by_length.split(self._batch_rows())
        return self._share(tuple(batches[i] for i in torch.randperm(len(batches), generator=generator)))

    def _batch_rows(self) -> int:
        return int(self._batch_size)

    def _share(self, batches: tuple[Tensor, ...]) -> list[Tensor]:
        """The rows of this process; every process gets at least one row of each batch (a repeated one if need be)."""
        if self.config["single_spec"]:
            return list(batches)
        rank, world = (
            int(self.config["local_rank"]) + int(self.config["offset"]),
            int(self.config["world_size"]),
        )
        return [batch[rank::world] if len(batch) > rank else batch[:1] for batch in batches]


def evaluates_with_history(config: Any, phase: str) -> bool:
    """Whether the loader of this phase has to return the users' histories, to be masked.

    Raises:
        InputError: if `mask_history` is set for a split in which "the history" is not defined.
    """
    if not config["mask_history"] or config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return False
    if config["eval_args"]["mode"][phase] != "full":
        raise InputError(
            f"mask_history: needs full ranking, but eval_args.mode is {config['eval_args']['mode']}; "
            "set mask_history: False or mode: full"
        )
    if config["benchmark_filename"]:
        raise InputError("mask_history: files of benchmark_filename hold no whole histories; set mask_history: False")
    n_left_out(config["eval_args"]["split"], phase)  # raises for other splits
    return True


class HistoryEvalDataLoader(FullSortEvalDataLoader):
    """Full-ranking loader that returns each user's WHOLE history, so that RecBole's trainer masks it.

    RecBole's trainer already sets ``scores[history_index] = -inf`` when the loader returns an index; its own loader
    returns None for sequential models. Source: docs/method.md section 6.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self._histories: Histories = histories_of(sampler.dataset)
        self._left_out = n_left_out(config["eval_args"]["split"], sampler.phase)
        super().__init__(config, dataset, sampler, shuffle=shuffle)

    def collate_fn(self, index: Any) -> tuple[Interaction, tuple[Tensor, Tensor], Tensor, Tensor]:
        """Return (interaction, (rows, items) of the histories, rows of the targets, the targets)."""
        interaction, _, positive_u, positive_i = super().collate_fn(index)
        history = self._histories.pairs(interaction[self.uid_field], self._left_out)
        return interaction, history, positive_u, positive_i
