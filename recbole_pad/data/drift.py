"""How the train frequency of targets drifts from one step to the next, estimated inside the training data."""

from __future__ import annotations

import numpy as np

from recbole_pad.data.frequency import FREQUENCY_GROUPS, frequency_group
from recbole_pad.data.histories import Histories

_SMOOTHING = 20.0  # added to both counts of a group


def drift_weights(train: Histories, n_items: int) -> np.ndarray:
    """How much more often a frequency group holds the target two steps after the training data than one step after.

    Validation targets are one step after the training data and test targets two, and later targets are colder: on Prime
    Pantry 22 % of the validation targets have train frequency 0-5, and 31 % of the test targets. Whoever fits something
    on validation rows for use later should weight them. The ratio is estimated with the split moved two steps back: the
    last two TRAINING items of each user take the part of validation and test, and counts are taken without them. No
    held-out interaction is looked at.

    Args:
        train: each user's training interactions, in time order.
        n_items: number of item ids, padding included.

    Returns:
        Weight of each entry of `FREQUENCY_GROUPS`, shape (7,), > 0; 1 where nothing drifts. Source: ours.
    """
    long_enough = train.lengths >= 3
    end = train.offsets[1:][long_enough]
    one_step, two_steps = train.items[end - 2], train.items[end - 1]
    counts = np.bincount(train.items, minlength=n_items)
    counts = counts - np.bincount(one_step, minlength=n_items) - np.bincount(two_steps, minlength=n_items)
    n_groups = len(FREQUENCY_GROUPS)
    before = np.bincount(frequency_group(counts[one_step]), minlength=n_groups) + _SMOOTHING
    after = np.bincount(frequency_group(counts[two_steps]), minlength=n_groups) + _SMOOTHING
    return after / before
