"""RecBole's own trainer, told to follow the epochs of our loader, to average weights and to fit the repeat term."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recbole_pad.averaging import WeightAverage
from recbole_pad.averaging_trainer import AveragingTrainer
from recbole_pad.budget import BudgetSpent, patience
from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.model.repeat_term import fit_repeat_term


class RivalTrainer(AveragingTrainer):
    """RecBole's `Trainer`; each epoch sees its batches in an order of its own, a resumed run the same ones.

    With `weight_average` the moving average of the weights is validated and saved, as in PAD's phases. RecBole's
    checkpoint holds the averages alone: a run that is resumed goes on from them.
    """

    best_valid_result: Any

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        self.average = WeightAverage(trained, self.optimizer, model.settings.weight_average)

    @property
    def what(self) -> str:
        """As of `AveragingTrainer`."""
        return str(self.config["model"])

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, Any]:
        """As RecBole's `Trainer.fit`; `stopping_step` may be ``auto``.

        The model ends with its best weights, also with ``saved=False``, or where no epoch is validated with the last
        average. To them the repeat term is then fitted, if there are validation rows: the validation result is
        in-sample for this one number.
        """
        self.stopping_step = patience(self.model.settings.stopping_step, self.eval_step, len(train_data))
        if self.start_epoch < self.epochs:
            self.model.repeats.shift.zero_()  # of a run that is resumed: epochs are chosen without it
        best: dict[str, Tensor] = {}

        def validated(epoch: int, score: float) -> None:
            if not saved and self.cur_step == 0:  # the best so far
                best.update({name: value.clone() for name, value in self.model.state_dict().items()})
            if callback_fn is not None:
                callback_fn(epoch, score)

        with suppress(BudgetSpent):
            super().fit(train_data, valid_data, verbose, saved, show_progress, validated)
        is_kept = self.best_valid_result or self.eval_step <= 0 or not valid_data
        content = self._saved_content() if saved and is_kept else {"state_dict": best}
        if content["state_dict"]:
            self.model.load_state_dict(content["state_dict"])
        else:  # nothing was kept: the average of the last steps
            self.average.enter()
        self.average.restart()
        if is_kept and valid_data and self._fits_repeat_term():
            fit_repeat_term(self.model, valid_data)
            if self.best_valid_result:
                self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data)
            if saved:
                self._save_shift(content)
        return self.best_valid_score, self.best_valid_result

    def _fits_repeat_term(self) -> bool:
        if self.model.settings.repeat_term == "none":
            return False
        is_full = self.config["eval_args"]["mode"]["valid"] == "full"
        if not is_full:
            self.logger.warning("repeat_term: valid needs full ranking of validation rows (eval_args.mode): not fitted")
        return is_full

    def _saved_content(self) -> dict[str, Any]:
        """What RecBole's checkpoint of this run holds."""
        self.model.processes.wait()  # for the first one, which writes it
        content: dict[str, Any] = torch.load(self.saved_model_file, map_location="cpu", weights_only=False)
        return content

    def _save_shift(self, content: dict[str, Any]) -> None:
        if self.model.processes.is_first:
            content["state_dict"]["repeats.shift"] = self.model.repeats.shift.cpu()
            write_whole(
                Path(self.saved_model_file), lambda temporary: torch.save(content, temporary, pickle_protocol=4)
            )
        self.model.processes.wait()
