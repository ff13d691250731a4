"""How often an item was bought or clicked in training: bins for the gate, groups for the reports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recbole_pad.dataset_prep.frequency import FREQUENCY_GROUPS, frequency_group

__all__ = ["FREQUENCY_GROUPS", "equal_mass_bins", "frequency_group", "in_target_group"]

COLD, OVER_20, WARM = "cold", "over 20", "over 100"
TARGET_GROUPS = {  # what results are told of, beside all targets -> its entries of `FREQUENCY_GROUPS`
    COLD: ("0", "1-5"),
    OVER_20: ("21-50", "51-100", ">100"),
    WARM: (">100",),
}
COLD_TEXT = "train frequency 0-5"


def in_target_group(counts: NDArray[np.integer], group: str) -> NDArray[np.bool_]:
    """Whether each train count falls into a group of `TARGET_GROUPS`; shape (n,) -> (n,)."""
    return np.isin(frequency_group(counts), [FREQUENCY_GROUPS.index(name) for name in TARGET_GROUPS[group]])


def equal_mass_bins(counts: NDArray[np.integer], n_bins: int) -> NDArray[np.int64]:
    """Bins of equal interaction mass.

    Items are sorted by descending count (ties by id); walking down, a bin is closed as soon as its OWN mass
    reaches total / n_bins, and the next starts at 0; the last bin takes the rest. Items never seen are always
    in the last bin, also when a few very frequent items leave bins before it empty.

    Args:
        counts: train interactions per item, shape (V,), whole numbers >= 0; counts[0] is padding and not
            used.
        n_bins: number of bins, >= 1.

    Returns:
        The bin of each item, shape (V,): 0 for padding, 1 for the most frequent to `n_bins` for the rarest.
        An item with a smaller count never has a lower bin number.

    Raises:
        ValueError: `n_bins` below 1, counts not 1-D, fractional or negative.

    Source: PAD, disentangle phase; gives the published edges on Prime Pantry.
    """
    counts = np.asarray(counts)
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, got {n_bins}")
    if counts.ndim != 1 or not np.issubdtype(counts.dtype, np.integer) or (counts[1:] < 0).any():
        raise ValueError(f"counts must be whole numbers >= 0, shape (V,); got {counts.dtype} {counts.shape}")
    bins = np.zeros(len(counts), dtype=np.int64)
    item_counts = counts[1:].astype(np.int64)
    order = np.argsort(-item_counts, kind="stable")
    mass = np.cumsum(item_counts[order])
    n_seen = int((item_counts > 0).sum())
    in_order = np.full(len(order), n_bins, dtype=np.int64)
    first = 0
    for number in range(1, n_bins):
        if first >= n_seen:
            break
        reached = (mass - (mass[first - 1] if first else 0)) * n_bins >= mass[-1]  # in whole numbers: no rounding
        end = int(np.argmax(reached)) + 1 if reached[-1] else n_seen
        in_order[first:end] = number
        first = end
    bins[1:][order] = in_order
    return bins
