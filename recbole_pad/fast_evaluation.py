"""RecBole's evaluation from the ranks of the targets instead of sorted lists (key `fast_evaluation`).

RecBole takes the first k of all scores of a user, and fills a (users x items) matrix to look the target up in. With one
held-out target per user, its rank says the same: the list holds the target at place `rank`, or not at all. So RecBole's
own `Trainer.evaluate` runs, with its checkpoint loading, logging and metrics, while two of its parts are replaced: the
scoring of a batch, and the collector of what the metrics need (`rec.topk`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from torch import Tensor

from recbole_pad.evaluation.collector import Pairs, RankCollector, Ranks

Evaluate = Callable[..., Any]


def evaluate_by_ranks(original: Evaluate, trainer: Any, eval_data: Any, *args: Any, **kwargs: Any) -> Any:
    """`Trainer.evaluate` of RecBole, from ranks where these suffice (see `ranks_suffice`), else as it is.

    The metrics are RecBole's to the last digit, but for two cases in which its own list is arbitrary:

    - Items of the same score: RecBole lists them in the order in which `torch.topk` happens to find them. Here the
      target gets the mean of their places, rounded up.
    - A masked target (it is in the user's history), or lists longer than the items that are left: RecBole fills up the
      list with masked items, the target perhaps among them. Here it is a miss.

    With several processes each user counts once; RecBole averages over the shares, which repeat some users.

    Args:
        original: RecBole's function.
        trainer: its `self`.
        eval_data: the loader.
        args: of RecBole's function.
        kwargs: likewise.

    Raises:
        InputError: where scores are NaN, since the model has diverged; RecBole would rank them first.
    """
    if isinstance(trainer.eval_collector, _TopKOfRanks) or not ranks_suffice(trainer, eval_data):
        return original(trainer, eval_data, *args, **kwargs)
    with _ranked_by(RankCollector(trainer, eval_data), trainer):
        return original(trainer, eval_data, *args, **kwargs)


def evaluate_with_ranks(trainer: Any, loader: Any, pairs: Pairs | None, **kwargs: Any) -> tuple[Any, Ranks | None]:
    """``trainer.evaluate(loader, **kwargs)``, and the ranks that it was made from.

    Args:
        trainer: a RecBole trainer.
        loader: the split.
        pairs: the histories, for the masked ranks; RecBole's result masks them only if the loader returns them.
        kwargs: of `Trainer.evaluate`.

    Returns:
        (RecBole's result, the ranks, or None where RecBole's own evaluation ran).
    """
    if not ranks_suffice(trainer, loader):
        return trainer.evaluate(loader, **kwargs), None
    collector = RankCollector(trainer, loader, pairs)
    with _ranked_by(collector, trainer):
        result = trainer.evaluate(loader, **kwargs)
    return result, collector.ranks()


def ranks_suffice(trainer: Any, loader: Any) -> bool:
    """Whether key `fast_evaluation` is on and the rank of one target per row gives all metrics asked for.

    So it is in full ranking by a sequential model, with metrics of which each needs the places of the targets only:
    Hit, NDCG, MRR, Recall, Precision, MAP.
    """
    if not trainer.config["fast_evaluation"] or not isinstance(loader, FullSortEvalDataLoader):
        return False
    needed = {name for name, is_needed in vars(trainer.eval_collector.register).items() if is_needed is True}
    return bool(loader.is_sequential) and needed == {"rec.topk"} and len(loader) > 0


@contextmanager
def _ranked_by(collector: RankCollector, trainer: Any) -> Iterator[None]:
    """Let RecBole's `evaluate` rank with `collector` inside the block."""

    def rank_batch(batch: Any) -> tuple[Any, None, Tensor, Tensor]:
        interaction, _, positive_u, positive_i = batch
        collector.add(batch)
        return interaction, None, positive_u, positive_i

    recboles = trainer.eval_collector
    trainer.eval_collector = _TopKOfRanks(recboles, collector)
    trainer._full_sort_batch_eval = rank_batch
    trainer._map_reduce = _as_it_is  # each process has the result of all rows
    try:
        yield
    finally:
        trainer.eval_collector = recboles
        del trainer._full_sort_batch_eval, trainer._map_reduce


def _as_it_is(result: Any, _: int) -> Any:
    return result


class _TopKOfRanks:
    """RecBole's collector, with `rec.topk` made from ranks."""

    def __init__(self, recboles: Any, collector: RankCollector) -> None:
        self._recboles, self._collector = recboles, collector

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recboles, name)

    def eval_batch_collect(self, scores: None, interaction: Any, positive_u: Tensor, positive_i: Tensor) -> None:
        """Nothing: the batch is ranked already."""

    def get_data_struct(self) -> Any:
        """What RecBole's metrics read."""
        ranks: np.ndarray = getattr(self._collector.ranks(), self._collector.protocol)
        self._recboles.data_struct.update_tensor("rec.topk", hits_at_places(ranks, max(self._recboles.topk)))
        return self._recboles.get_data_struct()


def hits_at_places(ranks: np.ndarray, k: int) -> Tensor:
    """RecBole's ``rec.topk`` of lists of length k with one target each.

    Args:
        ranks: of the targets, from 1, shape (n,); not whole (ties) counts as the next place, infinite as a miss.
        k: length of the lists.

    Returns:
        Shape (n, k + 1), int32: 1 at the place of the target, if the list holds it; in the last column the number of
        targets, 1.
    """
    listed = ranks <= k
    hits = torch.zeros(len(ranks), k + 1, dtype=torch.int32)
    hits[torch.from_numpy(np.flatnonzero(listed)), torch.from_numpy(np.ceil(ranks[listed]).astype(np.int64) - 1)] = 1
    hits[:, k] = 1
    return hits
