"""PADTrainer: runs the phases in order, from a run folder, a cache or the start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recbole.trainer import Trainer
from torch import nn

from recbole_pad import checkpoint
from recbole_pad.checkpoint import RunFolder
from recbole_pad.config import PADConfig, experts_to_load
from recbole_pad.dataset_prep.files import make_folder, write_whole
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError
from recbole_pad.phase_trainers import (
    PHASE_TRAINERS,
    ModuleStates,
    PhaseRecord,
    PhaseTrainer,
    copied_states,
    load_modules,
)
from recbole_pad.process_group import require_shared


class PADTrainer(Trainer):
    """Runs the phases of config key `phases` in order; best-validation weights pass from phase to phase.

    A phase is taken from the run folder (``resume``), or from ``phase_cache``, when its fingerprint is the same there;
    else it is trained. ``init_checkpoint`` gives weights of earlier phases.

    Attributes:
        folder: the run folder, from `fit` on; None with ``saved=False``.
        folder_opened: called with its path once it is there; may be replaced.
        phase_begins: called with each phase's name once its experts have their start values, whether it is then trained
            or taken from a file; may be replaced.
        records: what is remembered of each phase.
    """

    def __init__(self, config: Any, model: Any) -> None:
        self.processes = Processes.of(config)
        super().__init__(config, model)
        self.settings = PADConfig.read(config)
        self.folder: RunFolder | None = None
        self.folder_opened: Callable[[Path], None] = lambda path: None
        self.phase_begins: Callable[[str], None] = lambda phase: None
        self.records: dict[str, PhaseRecord] = {}
        self._states: dict[str, ModuleStates] = {}

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float | None, dict[str, float] | None]:
        """Run the phases; the model ends in the last one.

        Args and returns: as RecBole's `Trainer.fit`; score and result are the last phase's. With ``saved=False``
        nothing is written but finished phases into `phase_cache`, if that is set.

        Raises:
            InputError: if the gate has no validation rows to be fitted to, a checkpoint does not fit, or a folder
                cannot be written.
        """
        self._check_gate_rows()
        dataset = train_data._dataset
        names = {phase: checkpoint.fingerprint(self.config, dataset, phase) for phase in self.settings.phases}
        last_name = names[self.settings.phases[-1]]
        if saved:
            self.folder = self.processes.from_first(lambda: self._open_folder(last_name))
            require_shared(self.folder.path, self.processes)
            self.folder_opened(self.folder.path)
        trained = self._load_initial()
        for phase in self.settings.phases:
            self.model.phase = phase
            self.model.start_experts(trained)
            self.phase_begins(phase)
            trainer = PHASE_TRAINERS[phase](self.config, self.model, self.folder, names[phase])
            reused = self._reuse(trainer)
            self.processes.wait()  # nobody may look at files of a phase that another has begun
            if not reused:
                if self.config["phase_cache"]:
                    make_folder(Path(self.config["phase_cache"]), "phase_cache")
                learning = ", ".join(self.model.learning_experts()) or "no expert"
                self.logger.info(f"phase {phase}: training {learning} of {', '.join(self.model.phase_modules())}")
                trainer.fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)
                self._to_cache(trainer)
            self.records[phase] = trainer.record
            if self.folder is None:
                self._states[phase] = copied_states(self.model)
            trained |= {name.removeprefix("experts.") for name in self.model.phase_modules()}
        if self.folder is not None:
            self.saved_model_file = str(self.folder.model_file)
            if self.processes.is_first:
                write_whole(self.folder.model_file, self._save_recbole_checkpoint)
                self.folder.last_file.unlink(missing_ok=True)
        last = self.records[self.settings.phases[-1]]
        self.best_valid_score, self.best_valid_result = last.best_valid_score, last.best_valid_result
        return last.best_valid_score, last.best_valid_result

    def _check_gate_rows(self) -> None:
        """Refuse, before hours of training, an evaluation on which the gate cannot be fitted at their end."""
        mode = self.config["eval_args"]["mode"]["valid"]
        if self.settings.fits_gate and mode != "full":
            raise InputError(
                f"gate_fit: valid ranks validation targets among all items, but eval_args.mode is {mode}; set mode: "
                "full, or gate_fit: none"
            )

    def resume_checkpoint(self, resume_file: Any) -> None:
        """Let `fit` continue the run that `resume_file`, its folder or a file in it, belongs to."""
        path = Path(resume_file)
        self.config["resume"] = str(path if path.is_dir() else path.parent)

    def enter_phase(self, phase: str) -> None:
        """Put the model back to the end of a phase that `fit` ran: its weights and its way of scoring."""
        self.model.phase = phase
        if self.folder is None:
            load_modules(self.model, self._states[phase])
        else:
            load_modules(self.model, checkpoint.load(self.folder.phase_file(phase), self.device)["modules"])
        self.model.train(False)

    def _open_folder(self, name: str) -> RunFolder:
        resume = self.config["resume"]
        if resume and resume is not True:
            path = Path(resume)
            if not path.is_dir():
                raise InputError(f"resume: {path} is not a folder; give a run's folder, or True for the newest run")
            return RunFolder(path)
        found = RunFolder.find(self.config, name) if resume else None
        if found is not None:
            return found
        if resume:
            self.logger.warning("resume: no earlier run of these settings, starting a new one")
        return RunFolder.create(self.config, name)

    def _load_initial(self) -> set[str]:
        if not self.config["init_checkpoint"]:
            return set()
        path = Path(self.config["init_checkpoint"])
        content = checkpoint.load(path, self.device)
        wanted = experts_to_load(self.config)
        names = list(content["modules"]) if wanted is None else [f"experts.{name}" for name in wanted]
        missing = [name for name in names if name not in content["modules"]]
        if missing:
            raise InputError(f"init_experts: {path} holds {', '.join(content['modules'])}, not {', '.join(missing)}")
        usable = {name: content["modules"][name] for name in names if _fits(self.model, name)}
        if not usable:
            raise InputError(f"{path}: holds {', '.join(content['modules'])}, none of which this model has")
        try:
            load_modules(self.model, usable)
        except RuntimeError as error:
            raise InputError(
                f"{path}: does not fit this model (other dataset, backbone or sizes?): "
                f"{str(error).splitlines()[-1].strip()}"
            ) from error
        return {name.removeprefix("experts.") for name in usable}

    def _reuse(self, trainer: PhaseTrainer) -> bool:
        """Take the phase from the run folder or the cache if it is there; else prepare to continue a killed run."""
        for path in self._places(trainer):
            if not path.is_file():
                continue
            content = checkpoint.load(path, self.device)
            _require_fingerprint(path, content, trainer)
            if content["finished"]:
                load_modules(self.model, content["modules"])
                trainer.record = PhaseRecord(**{**content["record"], "reused_from": str(path)})
                if self.folder is not None and path.parent != self.folder.path and self.processes.is_first:
                    checkpoint.save(self.folder.phase_file(trainer.phase), _without_format(content))
                self.logger.info(f"phase {trainer.phase}: taken from {path}")
                return True
        if self.folder is not None and self.folder.last_file.is_file():
            last = checkpoint.load(self.folder.last_file, self.device)
            if last["phase"] == trainer.phase:
                _require_fingerprint(self.folder.last_file, last, trainer)
                self.logger.info(
                    f"phase {trainer.phase}: continuing at epoch {last['epoch']} from {self.folder.last_file}"
                )
                trainer.continue_from(last)
        return False

    def _places(self, trainer: PhaseTrainer) -> list[Path]:
        places = [] if self.folder is None else [self.folder.phase_file(trainer.phase)]
        if self.config["phase_cache"]:
            places.append(Path(self.config["phase_cache"]) / f"{trainer.phase}-{trainer.fingerprint}.pth")
        return places

    def _to_cache(self, trainer: PhaseTrainer) -> None:
        if not self.config["phase_cache"] or not self.processes.is_first:
            return
        checkpoint.save(self._places(trainer)[-1], trainer.content(finished=True))

    def _save_recbole_checkpoint(self, path: Path) -> None:
        super()._save_checkpoint(-1, verbose=False, saved_model_file=str(path))


def _require_fingerprint(path: Path, content: dict[str, Any], trainer: PhaseTrainer) -> None:
    if content["fingerprint"] != trainer.fingerprint:
        raise InputError(
            f"{path}: was trained with other settings, data or seed (fingerprint {content['fingerprint']}, now "
            f"{trainer.fingerprint}); resume with the settings of that run, or start a new one with resume: False"
        )


def _fits(model: nn.Module, name: str) -> bool:
    return name in dict(model.named_modules())


def _without_format(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "format"}
