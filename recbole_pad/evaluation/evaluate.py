"""Full ranking of one split under both history protocols at once, overall and by frequency of the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from recbole_pad.data.frequency import FREQUENCY_GROUPS, equal_mass_bins, frequency_group
from recbole_pad.data.histories import Histories, histories_of, n_left_out, train_counts, train_histories
from recbole_pad.evaluation.metrics import grouped_metrics, metrics
from recbole_pad.evaluation.ranks import target_ranks

KS = (5, 10, 20)


@dataclass(frozen=True)
class ItemGroups:
    """Train frequency of the items, and the users' histories; the same for PAD and for stock models.

    Attributes:
        histories: all interactions in time order.
        counts: train interactions of each item, shape (V,).
        bins: equal-mass frequency bins, shape (V,), 1 = most frequent.
    """

    histories: Histories
    counts: np.ndarray
    bins: np.ndarray

    @classmethod
    def of(cls, dataset: Any, valid_data: Any, test_data: Any, n_bins: int) -> ItemGroups:
        """Count from a sequential dataset (not split) and its held-out splits."""
        histories = histories_of(dataset)
        train = train_histories(histories, [valid_data._dataset, test_data._dataset], dataset.uid_field)
        counts = train_counts(train, dataset.item_num, histories.lengths >= 2)
        return cls(histories, counts, equal_mass_bins(counts, n_bins))


@torch.no_grad()
def split_ranks(trainer: Any, loader: Any, histories: Histories, left_out: int) -> dict[str, np.ndarray]:
    """Rank of every held-out target among all items.

    Args:
        trainer: a RecBole trainer; its model scores the batches.
        loader: a full-ranking loader of RecBole or ours.
        histories: for the mask.
        left_out: see `histories.n_left_out`.

    Returns:
        ``user`` and ``target``: ids; ``unmasked`` and ``masked``: ranks from 1 (ties share their mean; a masked
        target has rank inf); each of shape (n_rows,).
    """
    trainer.model.eval()
    trainer.tot_item_num = loader._dataset.item_num
    if trainer.item_tensor is None:
        trainer.item_tensor = loader._dataset.get_item_feature().to(trainer.device)
    parts: dict[str, list[np.ndarray]] = {"user": [], "target": [], "unmasked": [], "masked": []}
    for interaction, _, positive_u, positive_i in loader:
        _, scores, _, _ = trainer._full_sort_batch_eval((interaction, None, positive_u, positive_i))
        users = interaction[loader.uid_field].cpu()
        rows, items = histories.pairs(users, left_out)
        device = scores.device
        unmasked, masked = target_ranks(scores, positive_i.to(device), rows.to(device), items.to(device))
        parts["user"].append(users.numpy())
        parts["target"].append(positive_i.numpy())
        parts["unmasked"].append(unmasked.cpu().numpy())
        parts["masked"].append(masked.cpu().numpy())
    ranks = {name: np.concatenate(arrays) if arrays else np.zeros(0) for name, arrays in parts.items()}
    return ranks if trainer.config["single_spec"] else _of_all_processes(ranks)


def _of_all_processes(ranks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join the shares; RecBole's sampler repeats rows to make them equal, but a user has one held-out row."""
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, ranks)
    joined = {name: np.concatenate([share[name] for share in shares]) for name in ranks}
    _, first = np.unique(joined["user"], return_index=True)
    return {name: values[first] for name, values in joined.items()}


def evaluate_split(
    trainer: Any, loader: Any, groups: ItemGroups, split: dict[str, Any], phase: str, ks: Sequence[int] = KS
) -> dict[str, Any]:
    """Hit, NDCG and MRR of one split, history masked and not, overall, per frequency group and per bin.

    Args:
        trainer: a RecBole trainer.
        loader: its validation or test loader.
        groups: frequencies and histories.
        split: RecBole's ``eval_args["split"]``.
        phase: ``valid`` or ``test``.
        ks: cut-offs.

    Returns:
        ``{"masked": {"all": {...}, "frequency": {...}, "bins": {...}}, "unmasked": ...}``; each innermost entry holds
        ``n`` (held-out rows) and, where n > 0, the metrics.
    """
    ranks = split_ranks(trainer, loader, groups.histories, n_left_out(split, phase))
    targets = ranks["target"].astype(np.int64)
    bin_names = [str(number) for number in range(int(groups.bins.max()) + 1)]
    report: dict[str, Any] = {}
    for protocol in ("masked", "unmasked"):
        by_bin = grouped_metrics(ranks[protocol], groups.bins[targets], bin_names, ks)
        del by_bin["0"]  # padding is never a target
        report[protocol] = {
            "all": {"n": len(targets), **metrics(ranks[protocol], ks)},
            "frequency": grouped_metrics(
                ranks[protocol], frequency_group(groups.counts[targets]), FREQUENCY_GROUPS, ks
            ),
            "bins": by_bin,
        }
    return report
