"""Which part of the leave-one-out split an interaction is in, as RecBole makes it of a user's rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ROWS_ALONE", "NEITHER", "ROWS_FOR_TEST", "ROWS_FOR_VALID", "TEST", "TRAIN", "VALID", "part_of_split"]

TRAIN, VALID, TEST, NEITHER = "train", "valid", "test", "neither"
ROWS_FOR_TEST, ROWS_FOR_VALID = 3, 4  # interactions of a user, from which on one is held out
MOST_ROWS_ALONE = 1  # a user of one interaction has none that follows another: it is in no part


def part_of_split(back: NDArray[np.int64], size: NDArray[np.int64]) -> NDArray[np.str_]:
    """The part of each interaction.

    A training row needs an item and one that follows; it is kept first, then the test target, then the validation
    target. Source: `recbole.data.dataset.Dataset.leave_one_out` on the rows of `SequentialDataset`.

    Args:
        back: 1 for a user's newest interaction, 2 for the one before, ..., shape (n,).
        size: interactions of its user, shape (n,).

    Returns:
        TRAIN, VALID, TEST or NEITHER, shape (n,).
    """
    return np.select(
        [(back == 1) & (size >= ROWS_FOR_TEST), (back == 2) & (size >= ROWS_FOR_VALID), size > MOST_ROWS_ALONE],
        [TEST, VALID, TRAIN],
        NEITHER,
    )
