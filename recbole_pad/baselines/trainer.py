"""The trainer of models without parameters: one validation, no epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recbole.trainer import Trainer
from recbole.utils import dict2str

from recbole_pad.errors import InputError


class TrainingFreeTrainer(Trainer):
    """Validates once; a checkpoint holds settings, no weights, since the model counts again when it is built.

    Raises:
        InputError: with several processes, which RecBole gives to models with gradients only.
    """

    def __init__(self, config: Any, model: Any) -> None:
        if not config["single_spec"]:
            raise InputError(f"nproc: {config['model']} has nothing to train in several processes; leave nproc at 1")
        super().__init__(config, model)
        self.epochs = self.eval_step = 0

    def _build_optimizer(self, **kwargs: Any) -> _NoOptimizer:
        return _NoOptimizer()

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, Any]:
        """Validate the model as it is.

        Args and returns: as RecBole's `Trainer.fit`; `callback_fn` is called once, with epoch 0.
        """
        self.eval_collector.data_collect(train_data)
        if valid_data:
            self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data, show_progress)
            if verbose:
                self.logger.info(f"nothing to train; valid result:\n{dict2str(self.best_valid_result)}")
            if callback_fn:
                callback_fn(0, self.best_valid_score)
        if saved:
            self._save_checkpoint(-1, verbose=verbose)
        self._add_hparam_to_tensorboard(self.best_valid_score)
        return self.best_valid_score, self.best_valid_result


class _NoOptimizer:
    """Stands where RecBole stores an optimizer's state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
