"""One trainer class per phase, each usable alone: RecBole's training loop with the phase's own settings."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from recbole_pad import checkpoint
from recbole_pad.averaging import WeightAverage
from recbole_pad.averaging_trainer import AveragingTrainer
from recbole_pad.budget import BudgetSpent, patience
from recbole_pad.checkpoint import RunFolder
from recbole_pad.config import PADConfig, phase_view
from recbole_pad.data.cold_split import withheld_of
from recbole_pad.data.drift import drift_weights
from recbole_pad.data.frequency import COLD, frequency_group, in_target_group
from recbole_pad.data.loader import of_all_rows
from recbole_pad.distributed import Processes, shared_loss
from recbole_pad.model.gate_fit import fit_gate
from recbole_pad.model.repeat_term import fit_repeat_term
from recbole_pad.optimizers import dense_groups, row_tables, with_rows
from recbole_pad.phases import PHASES
from recbole_pad.seeding import rng_state, seed_all, set_rng_state

_SEEDS_OF_A_PROCESS = 1_000_003  # distance of the seeds of two processes of a run
ModuleStates = dict[str, dict[str, Tensor]]


@dataclass
class PhaseRecord:
    """What is remembered of a trained phase, beside its weights.

    Attributes:
        best_epoch: epoch of the weights that are kept, counted from 0; -1 where none was better than the start.
        epochs: epochs trained.
        best_valid_score: value of `valid_metric` at the best epoch; None without validation data.
        best_valid_result: all validation metrics there.
        train_loss: mean loss per batch of each epoch.
        valid_curve: (epoch, value of `valid_metric`) of each validation.
        seconds: wall time of training and validation, over all sessions of a resumed run.
        peak_memory_mb: high-water mark of the process (on a GPU: of its memory) at the end of the phase.
        reused_from: the file the phase was taken from instead of being trained, or an empty string.
    """

    best_epoch: int = -1
    epochs: int = 0
    best_valid_score: float | None = None
    best_valid_result: dict[str, float] = field(default_factory=dict)
    train_loss: list[float] = field(default_factory=list)
    valid_curve: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    reused_from: str = ""


class PhaseTrainer(AveragingTrainer):
    """Trains one phase of a PAD model with RecBole's loop: own epochs, learning rate, optimizer and early stopping.

    Settings are those of the config with ``<phase>.<key>`` over ``<key>``. `fit` ends with the best weights in the
    model. With a run folder, the best weights are in ``<phase>.pth`` and the state at each epoch's start in
    ``last.pth``; without one, the best weights are kept in memory.

    Args:
        config: RecBole's config.
        model: a `PAD` model; its `phase` is set.
        folder: where to write, or None.
        fingerprint: of this phase (see `checkpoint.fingerprint`), stored with the weights.
    """

    phase: ClassVar[str]

    def __init__(self, config: Any, model: Any, folder: RunFolder | None = None, fingerprint: str = "") -> None:
        model.phase = self.phase
        self.settings = PADConfig.read(phase_view(config, self.phase))
        self.processes = Processes.of(config)
        super().__init__(phase_view(config, self.phase), model)
        if not model.learns():
            self.epochs = self.eval_step = 0  # all experts are taken as they are, at most the gate is fitted
        self.average = self._average_of_weights()
        self.tensorboard: Any = _TaggedWriter(self.tensorboard, self.phase)
        self.wandblogger: Any = _TaggedWandb(self.wandblogger, self.phase)
        self.folder = folder
        self.fingerprint = fingerprint
        self.record = PhaseRecord()
        self._best: ModuleStates | None = None
        self._continue_from: dict[str, Any] | None = None
        self._seconds_before = 0.0
        self._started = time.monotonic()
        self._loss: Callable[[Any], Any] | None = None  # RecBole's loop takes the model's own

    def _build_optimizer(self, **kwargs: Any) -> Any:
        """RecBole's optimizer over the phase's own parameters; tables with sparse gradients have one of their own."""
        experts = [self.model.experts[name] for name in self.model.learning_experts()]
        has_gate = "gate" in self.model.phase_modules() and self.settings.gate_fit != "none"
        gate = self.model.gate.parameters() if has_gate else ()
        tables = row_tables(experts)
        dense = super()._build_optimizer(params=dense_groups(experts, gate, self.settings, tables), **kwargs)
        if not tables:
            return dense
        self.clip_grad_norm = None  # RecBole's own call fails on sparse gradients
        return with_rows(dense, tables, self.settings, self.config["clip_grad_norm"])

    def _average_of_weights(self) -> WeightAverage:
        """Of the dense parameters that the phase trains; of none where tables are updated row by row."""
        experts = [self.model.experts[name] for name in self.model.learning_experts()]
        decay = self.settings.weight_average
        if decay > 0 and row_tables(experts):
            self.logger.info("weight_average: off, since ID tables are updated row by row (sparse_updates)")
            decay = 0.0
        parameters = [parameter for expert in experts for parameter in expert.parameters()]
        return WeightAverage(parameters, self.optimizer, decay)

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float | None, dict[str, float] | None]:
        """Train the phase from the model's present weights and leave the best ones in the model.

        Args and returns: as RecBole's `Trainer.fit`. `saved` is not read: the run folder decides.
        """
        self.model.phase = self.phase
        self._started = time.monotonic()
        if self._continue_from is None:
            self._seed()
        self._use_batch_size(train_data)
        self.stopping_step = patience(self.settings.stopping_step, self.eval_step, len(train_data))
        self.model.zero_grad(set_to_none=True)  # of earlier phases: RecBole clips over all parameters

        def validated(epoch: int, score: float) -> None:
            self.record.valid_curve.append([epoch, float(score)])
            if callback_fn is not None:
                callback_fn(epoch, score)

        with self._shared_loss() as self._loss, suppress(BudgetSpent):
            super().fit(train_data, valid_data, verbose, True, show_progress, validated)
        self._load_best()
        self._after_training(valid_data)
        self._finish()
        return self.record.best_valid_score, self.record.best_valid_result

    def _seed(self, epoch: int = 0) -> None:
        """Seed this process for the phase; each process of a run drops out and samples by itself."""
        first = self.settings.seed + list(PHASES).index(self.phase) + 1
        seed_all(first + _SEEDS_OF_A_PROCESS * self.processes.rank + epoch)

    def _shared_loss(self) -> AbstractContextManager[Callable[[Any], Any]]:
        """The model's loss, whose gradient is that of the whole step in every process."""
        if not self.epochs:
            return nullcontext(self.model.calculate_loss)
        tables = row_tables(self.model.experts[name] for name in self.model.learning_experts())
        is_table = {id(table) for table in tables}
        trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        dense = [parameter for parameter in trained if id(parameter) not in is_table]
        return shared_loss(self.model.calculate_loss, dense, tables, self.processes)

    def set_reduce_hook(self) -> None:
        """RecBole's dummy pass through DDP is not needed: the loss itself goes through it (`shared_loss`)."""

    def sync_grad_loss(self) -> float:
        """RecBole's zero times all parameters, likewise."""
        return 0.0

    def _use_batch_size(self, train_data: Any) -> None:
        if hasattr(train_data, "set_epoch"):
            train_data.set_batch_size(int(self.config["train_batch_size"]))

    @property
    def what(self) -> str:
        """As of `AveragingTrainer`."""
        return f"phase {self.phase}, epoch {self.record.epochs}"

    def _before_epoch(self, epoch: int) -> None:
        if self._continue_from is not None:
            self._restore_rng(self._continue_from)
            self._continue_from = None
        elif self.folder is not None:
            self._save_last(epoch)

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        own = super()._train_epoch(train_data, epoch_idx, loss_func or self._loss, show_progress)
        losses = self.processes.means(own) if isinstance(own, tuple) else self.processes.means([own])[0]
        total = sum(losses) if isinstance(losses, tuple) else losses
        self.record.train_loss.append(float(total) / max(len(train_data), 1))
        self.record.epochs = epoch_idx + 1
        return losses

    def _keep_best(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Keep the weights of the phase's modules: in its file, or without a run folder in memory."""
        self.record.best_epoch = epoch
        if self.folder is None:
            self._best = copied_states(self.model)
        elif self.processes.is_first:
            checkpoint.save(self.folder.phase_file(self.phase), self.content(finished=False))

    def content(self, finished: bool) -> dict[str, Any]:
        """What a phase's file holds: its name, fingerprint and record, and the weights of its modules as they are."""
        return {
            "phase": self.phase,
            "fingerprint": self.fingerprint,
            "finished": finished,
            "record": asdict(self.record),
            "modules": module_states(self.model),
        }

    def _save_last(self, epoch: int) -> None:
        """The state between two epochs: everything that the next epoch depends on."""
        assert self.folder is not None
        states = self.processes.objects(rng_state())
        if not self.processes.is_first:
            return
        self._note_progress()
        state = {
            **self.content(finished=False),
            "epoch": epoch,
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": _floats(self.best_valid_result),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state(),
            "rng": states[0],
            "rng_of_others": states[1:],
        }
        checkpoint.save(self.folder.last_file, state)

    def _restore_rng(self, last: dict[str, Any]) -> None:
        """Each process takes up its own random state; one that the killed run did not have starts a new one."""
        states = [last["rng"], *last.get("rng_of_others", [])]
        if self.processes.rank < len(states):
            set_rng_state(states[self.processes.rank])
        else:
            self._seed(int(last["epoch"]))

    def continue_from(self, last: dict[str, Any]) -> None:
        """Continue a killed run from the content of its ``last.pth``; call it before `fit`."""
        load_modules(self.model, last["modules"])
        self.optimizer.load_state_dict(last["optimizer"])
        self.average.load_state(last["average"])
        self.start_epoch, self.cur_step = last["epoch"], last["cur_step"]
        self.best_valid_score = last["best_valid_score"]
        self.best_valid_result = last["best_valid_result"] or None
        self.record = PhaseRecord(**last["record"])
        self._seconds_before = self.record.seconds
        self._continue_from = last

    def resume_checkpoint(self, resume_file: Any) -> None:
        """RecBole's name for `continue_from`; `resume_file` is a run's ``last.pth``."""
        self.continue_from(checkpoint.load(Path(resume_file), self.device))

    def evaluate(
        self,
        eval_data: Any,
        load_best_model: bool = False,
        model_file: str | None = None,
        show_progress: bool = False,
    ) -> Any:
        """As RecBole's `Trainer.evaluate`; after `fit` the best weights are in the model, so none are loaded."""
        return super().evaluate(eval_data, model_file is not None, model_file, show_progress)

    def _note_progress(self) -> None:
        self.record.seconds = self._seconds_before + time.monotonic() - self._started
        self.record.peak_memory_mb = peak_memory_mb(self.device)
        if self.best_valid_result:
            self.record.best_valid_score = float(self.best_valid_score)
            self.record.best_valid_result = _floats(self.best_valid_result)

    def _load_best(self) -> None:
        if self.folder is not None:
            self.processes.wait()
            self._best = checkpoint.load(self.folder.phase_file(self.phase), self.device)["modules"]
        if self._best is None:
            raise ValueError(f"phase {self.phase}: no epoch had a usable value of {self.config['valid_metric']} (NaN?)")
        load_modules(self.model, self._best)
        self.average.restart()
        self._best = None

    def _after_training(self, valid_data: Any) -> None:
        """Hook of a phase, with the best weights in the model."""

    def _finish(self) -> None:
        """Mark the phase's file as finished; it holds the weights that the model now has."""
        self._note_progress()
        if self.folder is not None and self.processes.is_first:
            checkpoint.save(self.folder.phase_file(self.phase), self.content(finished=True))


class PretrainTrainer(PhaseTrainer):
    """Phase 1: the ID expert alone. Source: docs/method.md section 2."""

    phase = "pretrain"


class AlignTrainer(PhaseTrainer):
    """Phase 2: the aligned expert, recommendation loss plus alignment loss. Source: docs/method.md section 3."""

    phase = "align"


class FinetuneTrainer(PhaseTrainer):
    """Phase 3: all experts and the gate. Source: docs/method.md section 4.

    Where one expert alone learns, by a loss of its own, it is validated by itself while it does: the mixture, with a
    gate that is not fitted yet, would stop it before it is done. The phase's result is always that of the mixture.

    With ``gate_fit: valid`` the gate is fitted on validation data once the experts have their best weights. The
    validation result of this phase is then in-sample for the gate's few numbers; the test result is not.
    """

    phase = "finetune"

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        """As `PhaseTrainer.fit`."""
        self.model.phase = self.phase
        self.model.scored_alone = self.model.learns_alone()
        try:
            return super().fit(*args, **kwargs)
        finally:
            self.model.scored_alone = None

    def _after_training(self, valid_data: Any) -> None:
        was_alone, self.model.scored_alone = self.model.scored_alone, None
        is_fitted = self._fit_gate(valid_data)
        self._fit_repeat_term(valid_data)
        if is_fitted:
            self._score_mixture(valid_data, "gate fitted on validation data (in-sample)")
        elif was_alone and valid_data:
            self._score_mixture(valid_data, "all experts")

    def _score_mixture(self, valid_data: Any, what: str) -> None:
        self.best_valid_score, self.best_valid_result = self._valid_epoch(valid_data)
        self.logger.info(f"{what}: {_floats(self.best_valid_result)}")

    def _fit_gate(self, valid_data: Any) -> bool:
        """Fit the gate if the settings ask for it and there are rows; whether it was done."""
        if not self.settings.fits_gate:
            return False
        if not valid_data:
            self.logger.warning(
                "gate_fit: valid, but there are no validation rows: the gate is not fitted and keeps its weights; "
                "leave rows for validation (eval_args.split, such as {LS: valid_and_test}), or set gate_fit: train and "
                "expert_loss: joint"
            )
            return False
        dataset = valid_data._dataset
        weights = drift_weights(dataset.train_histories, dataset.item_num)[frequency_group(dataset.train_counts)]
        is_cold = in_target_group(dataset.train_counts, COLD)
        weights = weights * np.where(is_cold, self.settings.gate_cold_weight, 1.0)
        withheld = withheld_of(dataset)
        is_fitted = self.processes.from_first(  # on all rows: a fit on shares of them would be another one
            lambda: fit_gate(
                self.model,
                of_all_rows(valid_data),
                torch.from_numpy(weights).float(),
                self.settings.seed,
                None if withheld is None else torch.from_numpy(withheld),
            )
        )
        if is_fitted:
            self.processes.same_values(self.model.gate.parameters())
        else:
            self.logger.warning("gate_fit: valid, but every validation target is masked: the gate keeps its weights")
        return bool(is_fitted)

    def _fit_repeat_term(self, valid_data: Any) -> None:
        """Fit the repeat term to the gate as it now is, if the settings ask for both fits and there are rows."""
        if self.settings.fits_gate and self.settings.repeat_term == "valid" and valid_data:
            fit_repeat_term(self.model, valid_data)


PHASE_TRAINERS: dict[str, type[PhaseTrainer]] = {
    trainer.phase: trainer for trainer in (PretrainTrainer, AlignTrainer, FinetuneTrainer)
}


class _TaggedWriter:
    """A TensorBoard writer that puts the phase before every tag, so that the phases are told apart."""

    def __init__(self, writer: Any, phase: str) -> None:
        self._writer, self._phase = writer, phase

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self._writer.add_scalar(f"{self._phase}/{tag}", value, step)

    def add_hparams(self, settings: dict[str, Any], metrics: dict[str, Any]) -> None:
        self._writer.add_hparams(settings, metrics, run_name=self._phase)


class _TaggedWandb:
    """RecBole's W&B logger with the phase before every name: each phase counts its steps from 0, on axes of its own."""

    def __init__(self, logger: Any, phase: str) -> None:
        self._logger, self._phase = logger, phase
        if logger.log_wandb:
            for head in ("train", "valid"):
                logger._wandb.define_metric(f"{phase}/{head}/*", step_metric=f"{phase}/{head}_step")

    def log_metrics(self, metrics: dict[str, Any], head: str = "train", commit: bool = True) -> None:
        """Two losses become two numbers: W&B draws no tuples. The logger puts `head` before all names but of steps."""
        named: dict[str, Any] = {}
        for name, value in metrics.items():
            if isinstance(value, tuple):
                named.update({f"{name}{number}": part for number, part in enumerate(value)})
            else:
                named[f"{self._phase}/{name}" if "_step" in name else name] = value
        self._logger.log_metrics(named, head=f"{self._phase}/{head}", commit=commit)

    def log_eval_metrics(self, metrics: dict[str, Any], head: str = "eval") -> None:
        self._logger.log_eval_metrics(metrics, head=f"{self._phase}/{head}")


def module_states(model: Any) -> ModuleStates:
    """The states of the modules of a PAD model's present phase, not copied."""
    return {name: module.state_dict() for name, module in model.phase_modules().items()}


def copied_states(model: Any) -> ModuleStates:
    """As `module_states`, in tensors of their own: further training does not change them."""
    return {
        name: {key: value.detach().clone() for key, value in state.items()}
        for name, state in module_states(model).items()
    }


def load_modules(model: nn.Module, states: ModuleStates) -> None:
    """Load the states of named submodules into a model."""
    for name, state in states.items():
        model.get_submodule(name).load_state_dict(state)


def peak_memory_mb(device: torch.device) -> float:
    """High-water mark in MB: of the GPU's allocations on a GPU, else of the whole process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _floats(result: Any) -> dict[str, float]:
    return {key: float(value) for key, value in (result or {}).items()}
