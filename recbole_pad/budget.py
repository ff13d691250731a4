"""When training ends: a limit of time that every model keeps, the patience of early stopping, a loss that diverges."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from logging import getLogger

from torch import Tensor

from recbole_pad.distributed import ALONE, Processes
from recbole_pad.errors import InputError

AUTO = "auto"
_EVALUATIONS, _STEPS = 4, 300  # of `stopping_step: auto`


def patience(stopping_step: int | str, eval_step: int, steps_of_epoch: int) -> int:
    """Evaluations without a better score that training takes before it stops (config key `stopping_step`).

    Args:
        stopping_step: a number, which is returned; or ``auto``: 4, and at least as many as 300 optimizer steps take: on
            a small dataset an epoch is a few steps, of which a score may well take hundreds to rise.
        eval_step: epochs between evaluations.
        steps_of_epoch: optimizer steps of an epoch.
    """
    if stopping_step != AUTO:
        return int(stopping_step)
    return max(_EVALUATIONS, math.ceil(_STEPS / max(1, steps_of_epoch * eval_step)))


def refuse_nan_loss(loss: Tensor, what: str, learning_rate: float) -> None:
    """End a training whose loss is NaN; RecBole's own error says no more than that.

    Args:
        loss: of one step.
        what: what is trained, for the error.
        learning_rate: its rate, likewise.

    Raises:
        InputError: if it is.
    """
    if loss.isnan():
        raise InputError(
            f"{what}: the training loss is NaN: training has diverged; choose a lower learning_rate than "
            f"{learning_rate:g}, or limit the gradients with clip_grad_norm={{'max_norm': 1}}"
        )


class BudgetSpent(Exception):  # noqa: N818 - an end, not an error
    """Raised by the callback of a `Budget`; ends RecBole's training loop, whose best weights are saved by then."""


class Budget:
    """Ends training at the first validation after so many seconds (config key `train_seconds`).

    RecBole calls back after it has validated an epoch and saved the best one, so nothing is lost, and every training
    (every phase of PAD) has at least one epoch.

    Args:
        seconds: the limit, of wall time from now on; None: no limit.
        processes: of the run; the clock of the first one counts, so that all end with the same epoch.
        clock: seconds that pass.
    """

    def __init__(
        self, seconds: float | None, processes: Processes = ALONE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._processes, self._clock = seconds, processes, clock
        self._started = clock()

    def __call__(self, epoch: int, score: float) -> None:
        """RecBole's callback after a validation.

        Raises:
            BudgetSpent: if the time is over.
        """
        if self._seconds is not None and self._processes.from_first(self._is_over):
            getLogger().info(f"train_seconds: {self._seconds} s are over, training ends here")
            raise BudgetSpent

    def _is_over(self) -> bool:
        return self._seconds is not None and self._clock() - self._started >= self._seconds
