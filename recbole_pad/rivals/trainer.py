"""RecBole's own trainer, told to follow the epochs of our loader, to average weights and to fit the repeat term."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from recbole.trainer import Trainer
from torch import Tensor

from recbole_pad.averaging import WeightAverage
from recbole_pad.budget import BudgetSpent, patience, refuse_nan_loss
from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.model.repeat_term import fit_repeat_term


class RivalTrainer(Trainer):
    """RecBole's `Trainer`; each epoch sees its batches in an order of its own, a resumed run the same ones.

    With `weight_average` the moving average of the weights is validated and saved, as in PAD's phases. RecBole's
    checkpoint holds the averages alone: a run that is resumed goes on from them.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        self.average = WeightAverage(trained, self.optimizer, model.settings.weight_average)

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

        Then the repeat term is fitted, to the weights that will be tested: the saved ones, or with ``saved=False``, as
        RecBole has it, the last. The validation result of saved ones is in-sample for this one number.
        """
        self.stopping_step = patience(self.model.settings.stopping_step, self.eval_step, len(train_data))
        try:
            super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
        except BudgetSpent:
            self._fit_repeat_term(valid_data, saved)
            raise
        self._fit_repeat_term(valid_data, saved)
        return self.best_valid_score, self.best_valid_result

    def _fit_repeat_term(self, valid_data: Any, saved: bool) -> None:
        if self.model.settings.repeat_term == "none" or not valid_data:
            return
        if self.config["eval_args"]["mode"]["valid"] != "full":
            self.logger.warning("repeat_term: valid needs full ranking of validation rows (eval_args.mode): not fitted")
            return
        if not saved:
            self.average.enter()
            fit_repeat_term(self.model, valid_data)
            return
        processes, path = self.model.processes, Path(self.saved_model_file)
        processes.wait()  # for the first one, which writes the file
        content = torch.load(path, map_location=self.device, weights_only=False)  # of this run, RecBole's pickle
        self.model.load_state_dict(content["state_dict"])
        self.average.restart()  # or the next validation would put the average of the last epoch in their place
        fit_repeat_term(self.model, valid_data)
        if processes.is_first:
            content["state_dict"] = self.model.state_dict()
            write_whole(path, lambda temporary: torch.save(content, temporary, pickle_protocol=4))
        processes.wait()
        self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data)

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.average.leave()
        if hasattr(train_data, "set_epoch"):  # a plain loader, of a user's own code, shuffles by itself
            train_data.set_epoch(epoch_idx)
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _check_nan(self, loss: Tensor) -> None:
        refuse_nan_loss(loss, self.config["model"], self.learning_rate)

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        self.average.enter()
        return super()._valid_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.average.enter()  # also where nothing is validated
        super()._save_checkpoint(*args, **kwargs)
