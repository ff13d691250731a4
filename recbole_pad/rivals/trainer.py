"""RecBole's own trainer, told to follow the epochs of the length-bucketed loader and to average weights."""

from __future__ import annotations

from typing import Any

from recbole.trainer import Trainer
from torch import Tensor

from recbole_pad.averaging import WeightAverage
from recbole_pad.budget import patience, refuse_nan_loss


class RivalTrainer(Trainer):
    """RecBole's `Trainer`; each epoch sees its batches in an order of its own, a resumed run the same ones.

    With `weight_average` the moving average of the weights is validated and saved, as in PAD's phases. RecBole's
    checkpoint holds the averages alone: a run that is resumed goes on from them.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        self.average = WeightAverage(trained, self.optimizer, model.settings.weight_average)

    def fit(self, train_data: Any, *args: Any, **kwargs: Any) -> Any:
        """As RecBole's `Trainer.fit`; `stopping_step` may be ``auto``."""
        self.stopping_step = patience(self.model.settings.stopping_step, self.eval_step, len(train_data))
        return super().fit(train_data, *args, **kwargs)

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
