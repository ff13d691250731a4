"""Full ranking of one split under both history protocols at once, overall and by frequency of the target."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from recbole_pad.data.cold_split import withheld_of
from recbole_pad.data.frequency import FREQUENCY_GROUPS, equal_mass_bins, frequency_group
from recbole_pad.data.histories import Histories, histories_of, n_left_out, train_counts, train_histories
from recbole_pad.data.time_cuts import left_out_of
from recbole_pad.evaluation.collector import Pairs, RankCollector, Ranks
from recbole_pad.evaluation.metrics import grouped_metrics, metrics


@dataclass(frozen=True)
class ItemGroups:
    """Train frequency of the items, and the users' histories; the same for PAD and for stock models.

    Attributes:
        histories: all interactions in time order.
        counts: train interactions of each item, shape (V,).
        bins: equal-mass frequency bins, shape (V,), 1 = most frequent.
        withheld: True for the items that `cold_split` keeps out of training, shape (V,); None without it.
        left_out: by phase, the last interactions of its user that are not history of a row, shape (n_rows,); None where
            they are equal for all rows (leave-one-out).
    """

    histories: Histories
    counts: np.ndarray
    bins: np.ndarray
    withheld: np.ndarray | None = None
    left_out: Mapping[str, np.ndarray | None] = field(default_factory=dict)

    @classmethod
    def of(cls, dataset: Any, valid_data: Any, test_data: Any, n_bins: int) -> ItemGroups:
        """Count from a sequential dataset (not split) and its held-out splits."""
        histories = histories_of(dataset)
        train = train_histories(histories, [valid_data._dataset, test_data._dataset], dataset.uid_field)
        counts = train_counts(train, dataset.item_num)
        left_out = {"valid": left_out_of(valid_data._dataset), "test": left_out_of(test_data._dataset)}
        return cls(histories, counts, equal_mass_bins(counts, n_bins), withheld_of(test_data._dataset), left_out)

    def pairs(self, split: dict[str, Any], phase: str) -> Pairs:
        """The (row, item) pairs of the histories when `phase` of RecBole's `split` is evaluated."""
        of_rows = self.left_out.get(phase)
        if of_rows is not None:
            return lambda users, rows: self.histories.pairs(users, of_rows[rows.numpy()])
        left_out = n_left_out(split, phase)
        return lambda users, rows: self.histories.pairs(users, left_out)


@torch.no_grad()
def split_ranks(trainer: Any, loader: Any, pairs: Pairs) -> Ranks:
    """Rank of every held-out target among all items, under both history protocols.

    Args:
        trainer: a RecBole trainer; its model scores the batches.
        loader: a full-ranking loader of RecBole or ours.
        pairs: the histories, for the mask.
    """
    trainer.model.eval()
    trainer.tot_item_num = loader._dataset.item_num
    if trainer.item_tensor is None:
        trainer.item_tensor = loader._dataset.get_item_feature().to(trainer.device)
    collector = RankCollector(trainer, loader, pairs)
    for batch in loader:
        collector.add(batch)
    return collector.ranks()


def evaluate_split(
    trainer: Any,
    loader: Any,
    groups: ItemGroups,
    split: dict[str, Any],
    phase: str,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Hit, NDCG and MRR of one split, history masked and not, overall, per frequency group and per bin.

    Args:
        trainer: a RecBole trainer.
        loader: its validation or test loader.
        groups: frequencies and histories.
        split: RecBole's ``eval_args["split"]``.
        phase: ``valid`` or ``test``.
        ranks: of this split and these weights, where they are known already; else they are computed.

    Returns:
        ``{"masked": {"all": {...}, "frequency": {...}, "bins": {...}}, "unmasked": ...}``, and with withheld items
        ``"cold_split": {"in_set": {...}, "cold": {...}}`` beside them; each innermost entry holds ``n`` (held-out rows)
        and, where n > 0, the metrics.
    """
    if ranks is None:
        ranks = split_ranks(trainer, loader, groups.pairs(split, phase))
    targets = ranks.target
    bin_names = [str(number) for number in range(int(groups.bins.max()) + 1)]
    report: dict[str, Any] = {}
    for protocol, own in (("masked", ranks.masked), ("unmasked", ranks.unmasked)):
        by_bin = grouped_metrics(own, groups.bins[targets], bin_names)
        del by_bin["0"]  # padding is never a target
        report[protocol] = {
            "all": {"n": len(targets), **metrics(own)},
            "frequency": grouped_metrics(own, frequency_group(groups.counts[targets]), FREQUENCY_GROUPS),
            "bins": by_bin,
        }
        if groups.withheld is not None:
            report[protocol]["cold_split"] = grouped_metrics(
                own, groups.withheld[targets].astype(np.int64), ("in_set", "cold")
            )
    return report
