"""Pruning by the validation curve of one phase: scores of different phases are not compared."""

from __future__ import annotations

import copy
from collections.abc import Container
from typing import Any, cast

from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from recbole_pad.phases import PHASES

_STRIDE = 1_000_000  # epochs of a phase, at most (config._RANGES)


def step_of(phase: str, epoch: int) -> int:
    """Optuna's step of a validation: equal steps are equal epochs of equal phases, and later phases have later steps.

    Args:
        phase: a phase of PAD; any other word (a stock model's ``train``) counts as the first one.
        epoch: counted from 0 in each phase.
    """
    return _STRIDE * (list(PHASES).index(phase) if phase in PHASES else 0) + epoch


def epoch_of(step: int) -> tuple[int, int]:
    """(phase counted from 0, epoch counted from 0) of a step."""
    return divmod(step, _STRIDE)


class PhasePruner(BasePruner):
    """Lets another pruner see the present phase only: of each trial, the curve of that phase, its steps from 0.

    A pruner such as Optuna's median pruner compares the best score of a trial so far with other trials; without this
    the best of an earlier phase would stand for the present one. Trials without a curve in the phase (it was taken
    from the cache, or they do not have it) are left out.

    Args:
        within: a pruner that reads `study.get_trials` and `study.direction` only.
    """

    def __init__(self, within: BasePruner) -> None:
        self._within = within

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial at its last step."""
        if trial.last_step is None:
            return False
        phase, _ = epoch_of(trial.last_step)
        return self._within.prune(cast(Study, _PhaseStudy(study, phase)), _in_phase(trial, phase))


class _PhaseStudy:
    """A study as `PhasePruner` shows it to the pruner within."""

    def __init__(self, study: Study, phase: int) -> None:
        self._study, self._phase = study, phase

    @property
    def direction(self) -> StudyDirection:
        return self._study.direction

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = [_in_phase(trial, self._phase) for trial in self._study.get_trials(deepcopy=False, states=states)]
        return [trial for trial in trials if trial.intermediate_values]


def _in_phase(trial: FrozenTrial, phase: int) -> FrozenTrial:
    """A copy of a trial with the curve of one phase."""
    shown = copy.copy(trial)
    values: dict[int, Any] = {}
    for step, value in trial.intermediate_values.items():
        of, epoch = epoch_of(step)
        if of == phase:
            values[epoch] = value
    shown.intermediate_values = values
    return shown
