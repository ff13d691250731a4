"""One trial: settings from the space, a training run, its validation curve to Optuna, its score back."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import getLogger
from typing import Any

import optuna
import recbole.trainer.trainer
from optuna.trial import Trial

from recbole_pad.errors import InputError
from recbole_pad.process_group import NoWriter
from recbole_pad.quick_start import train
from recbole_pad.tune.engine import StepOf
from recbole_pad.tune.space import Space
from recbole_pad.tune.workers import SignOfLife

# What a trial of ours has beside Optuna's own fields; the first one marks the trial of the config's own values.
OWN_VALUES = "own_values"
SETTINGS, REASON, SECONDS, RESULT, PHASES = "settings", "reason", "seconds", "best_valid_result", "phases"
_EXPECTED = (InputError, ValueError, RuntimeError, MemoryError, ArithmeticError)  # NaN, out of memory, sizes that clash


@dataclass(frozen=True)
class Objective:
    """What Optuna calls with a trial: trains, validates, and never scores the test split.

    Attributes:
        model: the model's name.
        dataset: the dataset's name.
        files: config files.
        settings: of all trials; those of a trial win over them.
        base: the config without the settings of a trial.
        space: the search space.
        step: Optuna's step of a validation (see `engine.Pruning`).
    """

    model: str
    dataset: str
    files: list[str] | None
    settings: dict[str, Any]
    base: Any
    space: Space
    step: StepOf

    def __call__(self, trial: Trial) -> float:
        """The best validation score of the trial's last phase.

        Raises:
            optuna.TrialPruned: if the curve is one that the pruner stops.
            Exception: what ended the training; its text is in the trial's attribute ``reason``.
        """
        started = time.monotonic()
        with SignOfLife(trial):
            try:
                return self._run(trial)
            except optuna.TrialPruned as pruned:
                trial.set_user_attr(REASON, str(pruned))
                raise
            except BaseException as error:
                trial.set_user_attr(REASON, _reason(error))
                if isinstance(error, Exception) and not isinstance(error, _EXPECTED):
                    getLogger().exception("trial %d: unexpected error", trial.number)
                raise
            finally:
                trial.set_user_attr(SECONDS, time.monotonic() - started)

    def _run(self, trial: Trial) -> float:
        space = self.space.only(self.space.defaults(self.base)) if trial.user_attrs.get(OWN_VALUES) else self.space
        chosen = space.suggest(trial, self.base)
        trial.set_user_attr(SETTINGS, chosen)
        last_phase = list(chosen.get("phases") or self.base["phases"] or ["train"])[-1]

        def validated(phase: str, epoch: int, score: float) -> None:
            step = self.step(phase, epoch, last_phase)
            if step is None:
                return
            trial.report(score, step)
            if trial.should_prune():
                raise optuna.TrialPruned(f"stopped in phase {phase} after epoch {epoch}, {score:.6g}")

        with _without_tensorboard():
            result = train(self.model, self.dataset, self.files, {**self.settings, **chosen}, validated)
        trial.set_user_attr(RESULT, result["best_valid_result"])
        trial.set_user_attr(PHASES, result["phases"])
        score = result["best_valid_score"]
        if score is None or not math.isfinite(score):
            raise InputError("no epoch was validated; set epochs and eval_step so that at least one is")
        return float(score)


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


@contextmanager
def _without_tensorboard() -> Iterator[None]:
    """RecBole's trainers open a writer each, with a thread and a file, and close none; Optuna keeps the curves."""
    module = recbole.trainer.trainer
    original = module.get_tensorboard
    module.get_tensorboard = lambda logger: NoWriter()
    try:
        yield
    finally:
        module.get_tensorboard = original
