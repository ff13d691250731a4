"""What is taken from Optuna, by the word of the command line: storages, samplers, pruners."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GridSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from recbole_pad.errors import InputError
from recbole_pad.tune.phase_pruner import PhasePruner, step_of
from recbole_pad.tune.space import Space

StepOf = Callable[[str, int, str], int | None]


def open_storage(word: str | None, folder: Path) -> BaseStorage:
    """The storage that a word names.

    Args:
        word: None (a journal in the folder), ``none`` (memory), a URL of SQLAlchemy, or a journal file ``*.log``.
        folder: of the search.

    Raises:
        InputError: for a word that names nothing, a database that cannot be opened, or a damaged journal.
    """
    if word == "none":
        return InMemoryStorage()
    if word is not None and "://" in word:
        return _database(word)
    path = folder / "study.log" if word is None else Path(word)
    if path.suffix != ".log":
        raise InputError(
            f"storage: {word!r} is not a journal file (NAME.log), a database (sqlite:///FILE.db, "
            "postgresql://USER@HOST/DB, ...) or none"
        )
    return _journal(path)


def _journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return JournalStorage(JournalFileBackend(str(path)))
    except (ValueError, KeyError) as error:  # a line that is no JSON, or no entry of a journal
        raise InputError(
            f"storage: {path} is no journal of Optuna or is damaged ({error}); remove the damaged line, or give "
            "another --storage or --study"
        ) from error
    except OSError as error:
        raise InputError(f"storage: {path} cannot be opened: {error}") from error


def _database(url: str) -> BaseStorage:
    try:
        return RDBStorage(url)
    except Exception as error:  # ArgumentError, OperationalError, ImportError of a driver, Optuna's own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"storage: {_without_password(url)} cannot be opened: {reason}; check the URL, and that its driver is "
            "installed (sqlite:///FILE.db needs none)"
        ) from error


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


class SeededByTrial(BaseSampler):
    """A sampler whose random numbers come from the seed and the trial's number.

    So a trial draws the same numbers whichever worker runs it, and a search that goes on does not begin to draw from
    the start again.

    Args:
        make: makes the sampler of a trial from its seed.
        seed: of the study.
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self._make, self._seed = make, seed
        self._own = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Make the sampler of this trial."""
        self._own = self._make((self._seed * 1_000_003 + trial.number) % 2**32)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """As the own sampler."""
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the own sampler."""
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """As the own sampler."""
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """As the own sampler."""
        self._own.after_trial(study, trial, state, values)


def _tpe(space: Space, seed: int) -> BaseSampler:
    return SeededByTrial(lambda of_trial: TPESampler(seed=of_trial), seed)


def _random(space: Space, seed: int) -> BaseSampler:
    return SeededByTrial(lambda of_trial: RandomSampler(seed=of_trial), seed)


class Grid(GridSampler):
    """Optuna's grid; whether it is exhausted is asked before a trial, instead of stopping the study after one."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Nothing to do."""


def _grid(space: Space, seed: int) -> BaseSampler:
    return Grid(space.grid(), seed=seed)


SAMPLERS: dict[str, Callable[[Space, int], BaseSampler]] = {"tpe": _tpe, "random": _random, "grid": _grid}


@dataclass(frozen=True)
class Pruning:
    """How trials are stopped early.

    Attributes:
        make: makes Optuna's pruner.
        step: Optuna's step of a validation, from the phase, its epoch and the name of the trial's last phase; None
            where the validation is not reported.
    """

    make: Callable[[], BasePruner]
    step: StepOf


def _in_any_phase(phase: str, epoch: int, last_phase: str) -> int | None:
    return step_of(phase, epoch)


def _in_last_phase(phase: str, epoch: int, last_phase: str) -> int | None:
    return epoch if phase == last_phase else None


def _median() -> BasePruner:
    return PhasePruner(MedianPruner(n_startup_trials=5, n_warmup_steps=3))


PRUNERS: dict[str, Pruning] = {
    "median": Pruning(_median, _in_any_phase),
    "hyperband": Pruning(HyperbandPruner, _in_last_phase),
    "none": Pruning(NopPruner, _in_any_phase),
}


def quiet() -> None:
    """Our own lines say what Optuna would: its errors only."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
