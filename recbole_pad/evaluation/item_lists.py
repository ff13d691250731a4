"""The items that a model ranks best, and those that it ranks worst, when they are the held-out targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from recbole_pad.evaluation.metrics import gains, metrics

K = 10


def best_and_hardest(
    ranks: NDArray[np.floating], targets: NDArray[np.integer], n_listed: int = 15, at_least: int = 5
) -> dict[str, Any]:
    """Items by the NDCG@10 of the rows whose target they are.

    Args:
        ranks: of the targets, shape (n_rows,); infinite for a sure miss.
        targets: item ids, shape (n_rows,).
        n_listed: length of each list.
        at_least: an item is listed if it is the target of so many rows. Where that leaves fewer than two lists full of
            items, the largest number that does leave them, or 1.

    Returns:
        ``at_least``, the number that was used; ``best``, NDCG descending, and ``hardest``, NDCG ascending. Equal NDCG:
        more rows first, then the smaller id. An entry: ``item`` (id), ``n`` (rows), ``hit@10`` and ``ndcg@10``.
    """
    items, place, n_rows = np.unique(targets, return_inverse=True, return_counts=True)
    wanted = 2 * n_listed
    enough = next((number for number in range(at_least, 1, -1) if (n_rows >= number).sum() >= wanted), 1)
    is_listed = n_rows >= enough
    ndcg = np.bincount(place, weights=gains(ranks, f"ndcg@{K}"), minlength=len(items)) / n_rows
    ndcg = ndcg.round(12)  # equal sums may differ in the last digit, by the order of their terms
    chosen = {}
    for name, key in (("best", -ndcg), ("hardest", ndcg)):
        order = np.lexsort((items, -n_rows, key))
        chosen[name] = order[is_listed[order]][:n_listed]
    wanted_metrics = (f"hit@{K}", f"ndcg@{K}")
    lists = {
        name: [
            {
                "item": int(items[index]),
                "n": int(n_rows[index]),
                **{key: metrics(ranks[place == index], (K,))[key] for key in wanted_metrics},
            }
            for index in order
        ]
        for name, order in chosen.items()
    }
    return {"at_least": enough, **lists}
