"""A limit on training time that every model keeps in the same way (config key `train_seconds`)."""

from __future__ import annotations

import time
from collections.abc import Callable


class BudgetSpent(Exception):  # noqa: N818 - an end, not an error
    """Raised by the callback of a `Budget`; ends RecBole's training loop, whose best weights are saved by then."""


class Budget:
    """Ends training at the first validation after so many seconds.

    RecBole calls back after it has validated an epoch and saved the best one, so nothing is lost, and every training
    (every phase of PAD) has at least one epoch.

    Args:
        seconds: the limit, of wall time from now on; None: no limit.
        clock: seconds that pass.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._started = clock()

    def __call__(self, epoch: int, score: float) -> None:
        """RecBole's callback after a validation.

        Raises:
            BudgetSpent: if the time is over.
        """
        if self._seconds is not None and self._clock() - self._started >= self._seconds:
            raise BudgetSpent
