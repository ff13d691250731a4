"""What RecBole's samplers hold per user, without an object for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np


def used_ids(original: Callable[[Any], np.ndarray], sampler: Any) -> np.ndarray:
    """`RepeatableSampler.get_used_ids`: an empty set for every user, the same one (RecBole only reads them)."""
    return np.array([set()] * sampler.user_num)
