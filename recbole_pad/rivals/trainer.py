"""RecBole's own trainer, told to follow the epochs of the length-bucketed loader."""

from __future__ import annotations

from typing import Any

from recbole.trainer import Trainer


class RivalTrainer(Trainer):
    """RecBole's `Trainer`; each epoch sees its batches in an order of its own, a resumed run the same ones."""

    def _train_epoch(self, train_data: Any, epoch_idx: int, *args: Any, **kwargs: Any) -> Any:
        if hasattr(train_data, "set_epoch"):  # a plain loader, of a user's own code, shuffles by itself
            train_data.set_epoch(epoch_idx)
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)
