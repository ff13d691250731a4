"""Data loaders: training batches of similar length, and evaluation batches with the users' histories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader, TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.utils import ModelType
from torch import Tensor

from recbole_pad.data.histories import Histories, cuts_globally, histories_of, n_left_out
from recbole_pad.data.time_cuts import left_out_of
from recbole_pad.distributed import Processes, single
from recbole_pad.errors import InputError

REPEATED = "row_of_another_process"
"""Field that marks the row of a process which has no row of its own in a batch: it must not count."""

_CHUNK_BATCHES = 50  # rows are sorted by length within chunks of so many batches


class LengthBucketDataLoader(TrainDataLoader):
    """Training loader whose batches hold sequences of similar length, so that trimming a batch saves most padding.

    The order of an epoch is a function of (seed, epoch): rows are permuted, cut into chunks of 50 batches, sorted by
    length inside each chunk, cut into batches, and the batches are permuted. So a resumed run sees the same batches,
    whatever was drawn before. With several processes, each takes its own rows of every batch; one for which there is
    none gets the first row, with the field `REPEATED`.
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
        return -(-len(self._lengths) // self._batch_rows())

    def __iter__(self) -> Iterator[Interaction]:
        for rows in self._row_batches():
            own, is_repeated = self._share(rows)
            batch = self.collate_fn(own)
            if is_repeated:
                batch.update(Interaction({REPEATED: torch.ones(len(own), dtype=torch.bool)}))
            yield batch

    def _row_batches(self) -> tuple[Tensor, ...]:
        """Row numbers of the batches of this epoch, over all processes."""
        n_rows = len(self._lengths)
        if not self.shuffle:
            return torch.arange(n_rows).split(self._batch_rows())
        generator = torch.Generator().manual_seed(int(self.config["seed"]) * 100_003 + self.epoch)
        order = torch.randperm(n_rows, generator=generator)
        if not self._bucketed:
            return order.split(self._batch_rows())
        batches: list[Tensor] = []
        for chunk in order.split(_CHUNK_BATCHES * self._batch_rows()):
            by_length = chunk[torch.argsort(self._lengths[chunk], stable=True)]
            batches += by_length.split(self._batch_rows())
        return tuple(batches[i] for i in torch.randperm(len(batches), generator=generator).tolist())

    def _batch_rows(self) -> int:
        return int(self._batch_size)

    def _share(self, rows: Tensor) -> tuple[Tensor, bool]:
        """This process's rows of a batch, at least one, so that none waits for another; and whether it is repeated."""
        processes = Processes.of(self.config)
        own = rows[processes.rank :: processes.world]
        return (own, False) if len(own) else (rows[:1], True)


def of_all_rows(loader: Any) -> Any:
    """An evaluation loader of all rows, in a distributed run too; one that has them already is returned as it is."""
    if loader.config["single_spec"]:
        return loader
    return type(loader)(single(loader.config), loader._dataset, loader._sampler, shuffle=False)


def in_random_order(loader: Any, seed: int) -> Iterator[Any]:
    """The batches of an evaluation loader, the same ones, in an order that depends on the seed."""
    starts = np.arange(0, loader.sample_size, loader.step)
    for start in np.random.default_rng(seed).permutation(starts):
        yield loader.collate_fn(range(start, min(start + loader.step, loader.sample_size)))


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
    if not cuts_globally(config):
        n_left_out(config["eval_args"]["split"], phase)  # raises for other splits
    return True


class HistoryEvalDataLoader(FullSortEvalDataLoader):
    """Full-ranking loader that returns each user's WHOLE history, so that RecBole's trainer masks it.

    RecBole's trainer already sets ``scores[history_index] = -inf`` when the loader returns an index; its own loader
    returns None for sequential models. Source: docs/method.md section 6.
    """

    def __init__(self, config: Any, dataset: Any, sampler: Any, shuffle: bool = False) -> None:
        self._histories: Histories = histories_of(sampler.dataset)
        of_rows = left_out_of(dataset)
        same_for_all = 0 if of_rows is not None else n_left_out(config["eval_args"]["split"], sampler.phase)
        self._left_out = np.full(len(dataset), same_for_all) if of_rows is None else of_rows
        super().__init__(config, dataset, sampler, shuffle=shuffle)

    def collate_fn(self, index: Any) -> tuple[Interaction, tuple[Tensor, Tensor], Tensor, Tensor]:
        """Return (interaction, (rows, items) of the histories, rows of the targets, the targets)."""
        interaction, _, positive_u, positive_i = super().collate_fn(index)
        history = self._histories.pairs(interaction[self.uid_field], self._left_out[np.asarray(index)])
        return interaction, history, positive_u, positive_i
