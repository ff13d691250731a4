"""The search: one Optuna study, filled by this process and any others, until it has enough trials."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from recbole.utils import init_logger

from recbole_pad.backbone_classes import is_own
from recbole_pad.backbones import BACKBONES
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.errors import InputError
from recbole_pad.input_files import input_digests
from recbole_pad.keys import FIRST_READ_IN, PHASE_KEYS, WITHOUT_EFFECT
from recbole_pad.phases import PHASES
from recbole_pad.preflight import checked_config, settled_config
from recbole_pad.property_files import KEYS_OF_PHASES, own_backbone_settings, recbole_keys, unread_keys
from recbole_pad.registration import has_our_backbone, has_phases
from recbole_pad.registry import pick
from recbole_pad.result import yaml_value
from recbole_pad.tune import outcome
from recbole_pad.tune.engine import PRUNERS, SAMPLERS, Grid, open_storage, quiet
from recbole_pad.tune.space import Space, read_space
from recbole_pad.tune.trial import OWN_VALUES, SETTINGS, Objective
from recbole_pad.tune.workers import fail_abandoned

_PATIENCE = 20  # failures in a row that end a search; fewer, if the study has no finished trial and wants fewer
_MADE_WITH = "made_with"
_QUIET = {"state": "WARNING", "show_progress": False}


def search(
    model: str,
    dataset: str,
    trials: int,
    *,
    space: str | None = None,
    config_file_list: list[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    storage: str | None = None,
    study: str = "search",
    timeout: float | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    metric: str | None = None,
) -> dict[str, Any]:
    """Search the settings of a model: the best validation score of the last phase, by trials in this process.

    The study goes on if it exists in the storage. Other processes may work on it at the same time. Files are written
    to ``<checkpoint_dir>/tune-<model>-<dataset>-<study>/`` after every trial.

    Args:
        model: PAD or a model of RecBole.
        dataset: a dataset name.
        trials: the study is finished when it has so many completed and pruned trials, of all sessions and workers.
        space: a file, the name of a shipped space, or None for the model's shipped one.
        config_file_list: as of `quick_start.run_recbole`; settings of all trials.
        config_dict: the same; a trial's settings win.
        storage: see `engine.open_storage`.
        study: its name, for several searches of one model on one dataset.
        timeout: seconds after which this process starts no further trial.
        sampler: a word of `engine.SAMPLERS`.
        pruner: a word of `engine.PRUNERS`.
        metric: another `valid_metric`, for early stopping and the score alike.

    Returns:
        ``best_valid_score``, ``best_settings``, ``best_trial`` (None without a completed trial), ``folder``, ``counts``
        (number of trials by state) and ``table``.

    Raises:
        InputError: for an argument, space or setting that cannot be used, for a study that was begun with others, and
            if trials keep failing.
    """
    started = time.monotonic()
    if trials < 1 or "/" in study or not study:
        raise InputError(f"trials: {trials} must be at least 1, and study: {study!r} a name without a slash")
    settings = {**(config_dict or {}), **({"valid_metric": metric} if metric else {})}
    base = _base_config(model, dataset, config_file_list, settings)
    settings |= {key: value for key, value in _QUIET.items() if key not in base.external_config_dict}
    chosen_space = read_space(space, model)
    _check_space(
        chosen_space, base, lambda chosen: settled_config(model, dataset, config_file_list, {**settings, **chosen})
    )
    chosen_space = _read_by(chosen_space, base)
    pruning = pick(PRUNERS, pruner, "pruner")
    chooser = pick(SAMPLERS, sampler, "sampler")(chosen_space, int(base["seed"]))
    folder = Path(base["checkpoint_dir"]) / f"tune-{model}-{dataset}-{study}"
    quiet()
    opened = _open_study(open_storage(storage, folder), f"{model}-{dataset}-{study}", base)
    opened.sampler, opened.pruner = chooser, pruning.make()
    _same_or_first(opened, _signature(base, chosen_space, pruner), chosen_space, base, sampler)
    init_logger(settled_config(model, dataset, config_file_list, settings))
    objective = Objective(model, dataset, config_file_list, settings, base, chosen_space, pruning.step)
    given = {"model": model, "dataset": dataset, **_plain(base.external_config_dict)}
    worker = _Worker(opened, objective, folder, given, trials, None if timeout is None else started + timeout)
    worker.work()
    return worker.result()


class _Worker:
    """Runs trials of a study in this process and keeps the files up to date."""

    def __init__(
        self, study: Study, objective: Objective, folder: Path, given: dict[str, Any], trials: int, end: float | None
    ) -> None:
        self._study, self._objective, self._folder, self._given = study, objective, folder, given
        self._trials, self._end = trials, end
        self._keys = [parameter.key for parameter in objective.space.parameters]
        self._metric = objective.base["valid_metric"]

    def work(self) -> None:
        """Run trials until the study has enough, the time is up, or only other workers' trials are left to wait for.

        Raises:
            InputError: if so many trials fail in a row that the others would too.
        """
        failures = 0
        try:
            while self._is_open():
                trial = self._run_one()
                self._say(trial)
                failures = failures + 1 if trial.state == TrialState.FAIL else 0
                if failures >= self._patience():
                    raise InputError(
                        f"tune: {failures} trials in a row have failed, the last one by {outcome.reason(trial)}. "
                        f"All are in {self._folder / 'trials.csv'}; correct the settings or the space"
                    )
        finally:
            self.write()

    def _patience(self) -> int:
        now = outcome.counts(self._study)
        return _PATIENCE if now["complete"] + now["pruned"] else min(self._trials, _PATIENCE)

    def _run_one(self) -> FrozenTrial:
        trial = self._study.ask()
        score, state = None, TrialState.FAIL
        try:
            score, state = self._objective(trial), TrialState.COMPLETE
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Exception as error:  # a search outlives a trial; the reason is in the trial's attributes
            getLogger().debug("trial %d: %s", trial.number, error)
        finally:  # another worker may have given this trial up, if this machine slept
            told = self._study.tell(trial, score, state, skip_if_finished=True)
        gc.collect()
        return told

    def _is_open(self) -> bool:
        for number in fail_abandoned(self._study):
            print(f"trial {number}: was left by a process that is gone; failed", flush=True)
        now = outcome.counts(self._study)
        if isinstance(self._study.sampler, Grid) and self._study.sampler.is_exhausted(self._study):
            print("every point of the grid has been tried", flush=True)
            return False
        in_time = self._end is None or time.monotonic() < self._end
        return in_time and now["complete"] + now["pruned"] + now["running"] < self._trials

    def _say(self, trial: FrozenTrial) -> None:
        settings = outcome.shown(trial.user_attrs.get(SETTINGS, {}))
        score = f"{self._metric} {trial.value:.6f}" if trial.state == TrialState.COMPLETE else outcome.reason(trial)
        print(f"trial {trial.number}: {trial.state.name.lower()}, {score}; {settings}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the files of the study as it is now."""
        outcome.write_trials(self._folder, self._study, self._keys)
        for best in outcome.ranked(self._study)[:1]:
            outcome.write_best(self._folder, best, self._given)

    def result(self) -> dict[str, Any]:
        """What `search` returns."""
        best = next(iter(outcome.ranked(self._study)), None)
        return {
            "best_valid_score": None if best is None else best.value,
            "best_settings": None if best is None else best.user_attrs[SETTINGS],
            "best_trial": None if best is None else best.number,
            "folder": str(self._folder),
            "counts": outcome.counts(self._study),
            "table": outcome.table(self._study, self._metric, self._keys),
        }


def _base_config(model: str, dataset: str, files: list[str] | None, settings: dict[str, Any]) -> Any:
    base = checked_config(model, dataset, files, settings)
    several = [key for key in ("nproc", "world_size") if base.external_config_dict.get(key, 1) not in (1, -1)]
    if several:
        raise InputError(
            f"{several[0]}: a trial runs in one process; for more, start tune several times on one --storage"
        )
    return base


def _check_space(space: Space, base: Any, configs: Callable[[dict[str, Any]], Any]) -> None:
    """Check keys and values; `configs` gives the config of some settings of a trial."""
    known = {*base.internal_config_dict, *(key for keys in base.parameters.values() for key in keys)}
    known -= unread_keys(base["model"])
    if has_phases(base["model"]):
        known |= KEYS_OF_PHASES
    if has_our_backbone(base["model"]):
        named = [value for entry in space.parameters if entry.key == "backbone" for value in entry.range.ends()]
        for name in {*BACKBONES, *filter(is_own, map(str, named))}:
            known |= {*recbole_keys(name), *own_backbone_settings(name)}
    space.check_keys(known, base.cmd_config_dict)
    space.check_values(lambda chosen: _check_config(configs(chosen)), base)


def _read_by(space: Space, base: Any) -> Space:
    """The space without keys that no phase of the runs reads: searching them would only blur the others."""
    keys = [parameter.key for parameter in space.parameters]
    if not has_phases(base["model"]) or "phases" in keys:
        return space
    phases, names = list(base["phases"]), list(PHASES)
    later = names[names.index(phases[-1]) + 1 :]
    unread = {key for phase in later for key in FIRST_READ_IN.get(phase, ())}
    unread |= {f"{phase}.{key}" for phase in names if phase not in phases for key in PHASE_KEYS}
    left_out = [key for key in keys if key in unread]
    if len(left_out) == len(keys):
        raise InputError(f"{space.name}: none of its keys is read with phases: {phases}; search others, or add phases")
    if left_out:
        print(f"not searched, since no phase of {phases} reads them: {', '.join(left_out)}", flush=True)
    return space.only(set(keys) - unread)


def _check_config(config: Any) -> None:
    """Read settings as a run would before it reads the data."""
    if has_our_backbone(config["model"]):
        for phase in PADConfig.read(config).phases:
            PADConfig.read(phase_view(config, phase))


def _open_study(storage: BaseStorage, name: str, base: Any) -> Study:
    direction = StudyDirection.MAXIMIZE if base["valid_metric_bigger"] else StudyDirection.MINIMIZE
    return optuna.create_study(study_name=name, storage=storage, direction=direction, load_if_exists=True)


def _signature(base: Any, space: Space, pruner: str) -> dict[str, Any]:
    """What all trials of a study must have in common for their scores to be comparable."""

    def values(key: str) -> list[Any]:
        return [base[key], *(value for entry in space.parameters if entry.key == key for value in entry.range.ends())]

    return {
        "space": json.loads(json.dumps(space.content)),
        "valid_metric": base["valid_metric"],
        "pruner": pruner,
        "settings": {
            key: value for key, value in _plain(base.external_config_dict).items() if key not in WITHOUT_EFFECT
        },
        "data": input_digests(Path(base["data_path"]), base["dataset"], values),
    }


def _same_or_first(study: Study, signature: dict[str, Any], space: Space, base: Any, sampler: str) -> None:
    """Refuse to go on with other settings; mark a new study and let it begin with the config's own values."""
    before = study.user_attrs.get(_MADE_WITH)
    if before is None:
        study.set_user_attr(_MADE_WITH, signature)
        defaults = space.defaults(base)
        if not defaults:
            getLogger().warning("space: holds no value of the config as it is, so that no trial is the config as it is")
        elif sampler != "grid":
            study.enqueue_trial(defaults, user_attrs={OWN_VALUES: True}, skip_if_exists=True)
        return
    settings = before.get("settings", {})
    before = {**before, "settings": {key: settings[key] for key in settings if key not in WITHOUT_EFFECT}}
    for key, value in signature.items():
        if before.get(key) != value:
            raise InputError(
                f"study: {study.study_name} was begun with {_difference(key, before.get(key), value)}; its trials "
                "would not be comparable: use the same again, or another --study"
            )


def _difference(key: str, before: Any, now: Any) -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            if before.get(name) != now.get(name):
                return f"{key}: {name}: {before.get(name)!r}, not {now.get(name)!r}"
    return f"another {key} ({before!r}, not {now!r})"


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as values that JSON and YAML hold."""
    return {key: yaml_value(value) for key, value in settings.items()}
