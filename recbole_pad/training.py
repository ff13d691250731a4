"""One training, seen alike by the pipeline: of PAD's phases, or of any other model, which has one, called ``train``."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole_pad.budget import Budget, BudgetSpent
from recbole_pad.checkpoint import RunFolder
from recbole_pad.distributed import Processes
from recbole_pad.phase_trainers import PhaseRecord, peak_memory_mb
from recbole_pad.process_group import require_shared
from recbole_pad.trainer import PADTrainer

Result = tuple[float | None, dict[str, float] | None]


class Training:
    """Trains by a trainer of RecBole's kind, within the budget of `train_seconds`.

    Args:
        trainer: of RecBole's.
        folder_opened: called with the run's folder once it is there.

    Attributes:
        folder: the run folder, from `fit` on; None with ``saved=False``.
        records: what is remembered of each phase, from the end of `fit` on.
    """

    def __init__(self, trainer: Any, folder_opened: Callable[[Path], None]) -> None:
        self.folder: RunFolder | None = None
        self.records: dict[str, PhaseRecord] = {}
        self._trainer, self._folder_opened = trainer, folder_opened
        self._processes = Processes.of(trainer.config)

    def fit(
        self,
        train_data: Any,
        valid_data: Any,
        saved: bool,
        validated: Callable[[str, int, float], None] | None = None,
    ) -> Result:
        """Train; the model ends with its best weights of the last phase, or they are in the run's folder.

        Args:
            train_data: RecBole's loader.
            valid_data: likewise.
            saved: whether anything is written.
            validated: called after each validation with the phase, the epoch in it, counted from 0, and the score; what
                it raises ends the training.

        Returns:
            Best validation score and result, of the last phase.
        """
        if saved:
            self._open_folder()
        started, curve = time.monotonic(), []
        budget = Budget(self._trainer.config["train_seconds"], self._processes)

        def epoch_done(epoch: int, score: float) -> None:
            curve.append([epoch, float(score)])
            if validated is not None:
                validated(self._phase(), epoch, float(score))
            budget(epoch, score)

        show = self._trainer.config["show_progress"]
        try:
            result: Result = self._trainer.fit(
                train_data, valid_data, saved=saved, show_progress=show, callback_fn=epoch_done
            )
        except BudgetSpent:
            result = self._trainer.best_valid_score, self._trainer.best_valid_result
        self._remember(len(train_data), time.monotonic() - started, curve)
        self._processes.wait()
        return result

    def enter(self, phase: str) -> None:
        """Let the model score as at the end of a phase."""

    def _phase(self) -> str:
        """The phase that is trained now."""
        return "train"

    def _open_folder(self) -> None:
        config = self._trainer.config
        self.folder = self._processes.from_first(lambda: RunFolder.create(config, f"seed{config['seed']}"))
        require_shared(self.folder.path, self._processes)
        self._folder_opened(self.folder.path)
        self._trainer.saved_model_file = str(self.folder.model_file)

    def _remember(self, n_batches: int, seconds: float, curve: list[list[float]]) -> None:
        """Make a record of what RecBole's trainer remembers of its training."""
        trainer = self._trainer
        losses = [float(loss) for loss in getattr(trainer, "train_loss_dict", {}).values()]
        record = PhaseRecord(
            epochs=len(losses),
            # RecBole sums over this process's rows; here: the mean over the processes
            train_loss=[loss / max(n_batches, 1) for loss in self._processes.means(losses)],
            seconds=seconds,
            peak_memory_mb=peak_memory_mb(trainer.config["device"]),
            valid_curve=curve,
        )
        if trainer.best_valid_result:
            n_evaluations = len(losses) // max(trainer.eval_step, 1)  # a training-free model has no epochs
            record.best_epoch = (n_evaluations - trainer.cur_step) * trainer.eval_step - 1
            record.best_valid_score = float(trainer.best_valid_score)
            record.best_valid_result = plain(trainer.best_valid_result) or {}
        self.records = {"train": record}


class PhasedTraining(Training):
    """By `PADTrainer`, which opens the run's folder and remembers its phases by itself."""

    _trainer: PADTrainer

    def enter(self, phase: str) -> None:
        """Let the model score as at the end of a phase."""
        self._trainer.enter_phase(phase)

    def _phase(self) -> str:
        return str(self._trainer.model.phase)

    def _open_folder(self) -> None:
        self._trainer.folder_opened = self._folder_opened

    def _remember(self, n_batches: int, seconds: float, curve: list[list[float]]) -> None:
        self.folder, self.records = self._trainer.folder, self._trainer.records


def training_of(trainer: Any, folder_opened: Callable[[Path], None] = lambda path: None) -> Training:
    """The training by a trainer, of PAD or of RecBole's."""
    return (PhasedTraining if isinstance(trainer, PADTrainer) else Training)(trainer, folder_opened)


def plain(result: Any) -> dict[str, float] | None:
    """RecBole's metrics as plain floats: numpy 2 prints np.float64(...)."""
    return None if result is None else {key: float(value) for key, value in result.items()}
