"""Groups of items by how often they stand in the training interactions: one definition for data and results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FREQUENCY_GROUPS = ("0", "1-5", "6-10", "11-20", "21-50", "51-100", ">100")
GROUP_LAST_COUNTS = (0, 5, 10, 20, 50, 100)  # of each group but the last, which has no end


def frequency_group(counts: NDArray[np.integer]) -> NDArray[np.int64]:
    """Index into `FREQUENCY_GROUPS` for each train count, shape (n,) -> (n,)."""
    return np.searchsorted(GROUP_LAST_COUNTS, counts, side="left").astype(np.int64)
