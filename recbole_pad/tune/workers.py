"""Which trials of a shared study are running, and which were left by a process that is gone."""

from __future__ import annotations

import os
import platform
import threading
import time
from datetime import datetime
from logging import getLogger
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil  # type: ignore[import-untyped]
from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

BEAT_SECONDS = 60.0
GRACE_SECONDS = 600.0  # of another machine's trial: network storages and clocks may lag
_WORKER, _ALIVE, _RETRY = "worker", "alive", "retry_of"
_KEPT = ("fixed_params", "grid_id", "search_space")  # Optuna's own notes that a second attempt needs


class SignOfLife:
    """While the block runs, the trial says which process runs it, and every minute that it still does."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> SignOfLife:
        self._trial.set_user_attr(_ALIVE, time.time())
        self._trial.set_user_attr(_WORKER, this_process())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                self._trial.set_user_attr(_ALIVE, time.time())
            except Exception as error:  # a storage that is away for a moment must not end the beat
                getLogger().warning("trial %d: no sign of life could be written: %s", self._trial.number, error)


def this_process() -> dict[str, Any]:
    """The name of this process: its machine, number and start (Unix time)."""
    return {"machine": _machine(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def _machine() -> str:
    """A name for everything that has the same process numbers: on Linux also the boot and the process namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    words = [platform.node()]
    if boot.is_file() and namespace.is_symlink():
        words += [boot.read_text(encoding="ascii").strip(), str(namespace.readlink())]
    return " ".join(words)


def fail_abandoned(study: Study) -> list[int]:
    """Fail the running trials whose process is gone, and queue each once more.

    On this machine a process is gone when the system says so; on another one, when its trial has shown no sign of
    life for `GRACE_SECONDS`. A trial that was abandoned twice is not tried a third time: it may be what ends the
    process (out of memory, for example).

    Returns:
        The numbers of the trials that this call failed.
    """
    failed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not is_abandoned(trial):
            continue
        try:
            study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):  # another worker was quicker
            continue
        failed.append(trial.number)
        if _RETRY not in trial.user_attrs:
            study.add_trial(_again(trial))
    return failed


def is_abandoned(trial: FrozenTrial) -> bool:
    """Whether the process of a running trial is gone."""
    worker = trial.user_attrs.get(_WORKER)
    if worker is None:  # it has just begun, or its process ended right then
        began = trial.datetime_start
        return began is not None and (datetime.now() - began).total_seconds() > GRACE_SECONDS
    if worker["machine"] == _machine():
        return not _runs(worker["pid"], worker["started"])
    return time.time() - trial.user_attrs[_ALIVE] > GRACE_SECONDS


def _runs(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return abs(process.create_time() - started) < 2 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _without_marks(attributes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in attributes.items() if key not in (_WORKER, _ALIVE)}


def _again(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={**_without_marks(trial.user_attrs), _RETRY: trial.number},
        system_attrs={key: trial.system_attrs[key] for key in _KEPT if key in trial.system_attrs},
    )
