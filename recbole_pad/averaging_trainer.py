"""RecBole's trainer with a moving average of the weights: what PAD's phases and its rivals have in common."""

from __future__ import annotations

from typing import Any

from recbole.trainer import Trainer
from torch import Tensor

from recbole_pad.averaging import WeightAverage
from recbole_pad.budget import refuse_nan_loss


class AveragingTrainer(Trainer):
    """Trains the weights; validates and keeps their average. Each epoch sees its batches in an order of its own.

    Attributes:
        average: of the weights that are trained; a subclass sets it once it has its optimizer.
    """

    average: WeightAverage

    @property
    def what(self) -> str:
        """What is trained, for the error that the loss is NaN."""
        raise NotImplementedError

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.average.leave()
        self._before_epoch(epoch_idx)
        if hasattr(train_data, "set_epoch"):  # a plain loader, of a user's own code, shuffles by itself
            train_data.set_epoch(epoch_idx)
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _before_epoch(self, epoch: int) -> None:
        """Hook: the trained weights are in the model, and nothing of the epoch is drawn yet."""

    def _check_nan(self, loss: Tensor) -> None:
        refuse_nan_loss(loss, self.what, self.learning_rate)

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Validate the averaged weights; they stay in the model until training goes on."""
        self.average.enter()
        return super()._valid_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Called by RecBole's loop when the validation score is the best so far."""
        self.average.enter()  # also where nothing is validated
        self._keep_best(*args, **kwargs)

    def _keep_best(self, *args: Any, **kwargs: Any) -> None:
        """Keep the weights that are in the model: in RecBole's checkpoint."""
        super()._save_checkpoint(*args, **kwargs)
