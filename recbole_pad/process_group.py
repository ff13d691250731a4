"""RecBole's own distributed code made to work on the CPU too, with one process that writes.

RecBole's `Config` joins the process group, its `AbstractTrainer` makes the DDP module, its `Trainer` writes
checkpoints and TensorBoard files: `registration` replaces these four functions by the ones made here. A run in one
process goes on with RecBole's code.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from recbole_pad.distributed import Processes, single
from recbole_pad.errors import InputError

TIMEOUT = timedelta(hours=1)
"""How long a process waits for another that is alive but does not come: longer than the first one writes files."""

_SILENT = {
    "state": "error",
    "show_progress": False,
    "verbose": False,
    "log_wandb": False,
    "save_dataset": False,
    "save_dataloaders": False,
}


def runs_on_gpus(config: Any) -> bool:
    """Whether each process of this machine gets a GPU of its own; else all run on the CPU.

    Args:
        config: RecBole's config, or a dict of it, with ``nproc`` (processes on this machine).
    """
    nproc = int(config["nproc"])
    named = [name for name in str(config["gpu_id"]).split(",") if name.strip()]
    enough = len(named) >= nproc and torch.cuda.device_count() >= nproc
    return bool(config["use_gpu"]) and enough and distributed.is_nccl_available()


def on_any_device(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """`Config._init_device`: a process with a rank joins the group; with NCCL on its own GPU, or with gloo."""

    def init_device(self: Any) -> None:
        settings = self.final_config_dict
        if "local_rank" not in settings:
            original(self)
            return
        gpu_id = settings["gpu_id"]
        settings["gpu_id"] = ",".join(map(str, gpu_id)) if isinstance(gpu_id, tuple) else str(gpu_id)
        os.environ["CUDA_VISIBLE_DEVICES"] = settings["gpu_id"]
        settings.setdefault("offset", 0)
        on_gpus = runs_on_gpus(settings)
        settings["single_spec"] = False
        settings["device"] = torch.device("cuda", settings["local_rank"]) if on_gpus else torch.device("cpu")
        if on_gpus:
            torch.cuda.set_device(settings["local_rank"])
        processes = Processes.of(settings)
        _join_group(settings, processes, "cpu:gloo,cuda:nccl" if on_gpus else "gloo")
        if not processes.is_first:
            settings.update(_SILENT)

    return init_device


def _join_group(settings: dict[str, Any], processes: Processes, backend: str) -> None:
    if distributed.is_initialized():
        return
    address = f"{settings['ip']}:{settings['port']}"
    try:
        distributed.init_process_group(
            backend, f"tcp://{address}", timeout=TIMEOUT, rank=processes.rank, world_size=processes.world
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"ip, port: rank {processes.rank} of {processes.world} did not meet the other processes at {address} "
            f"({str(error).splitlines()[0]}); --ip and --port must name the first machine, and a free port of it, on "
            "every machine, and all of them must be started"
        ) from error


@contextmanager
def torchrun_processes() -> Iterator[Processes]:
    """The processes that `torchrun` has started, this one among them; without torchrun this one alone.

    They may wait for each other for days: what they do between meetings may take as long.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "MASTER_ADDR" not in os.environ:
        yield Processes()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    distributed.init_process_group("gloo", timeout=timedelta(days=30))
    try:
        yield Processes(distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()


def with_ddp_on_any_device(original: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any, Any], None]:
    """`AbstractTrainer.__init__`: RecBole's DDP names a CUDA device; PAD's trainers do without (`shared_loss`)."""

    def init(self: Any, config: Any, model: nn.Module) -> None:
        needs_ddp = not hasattr(self, "processes") and any(p.requires_grad for p in model.parameters())
        if config["single_spec"] or (needs_ddp and config["device"].type == "cuda"):
            original(self, config, model)
            return
        self.config, self.model = config, model
        if needs_ddp:
            self.distributed_model = DistributedDataParallel(model)

    return init


def by_first_process(original: Callable[..., None]) -> Callable[..., None]:
    """`Trainer._save_checkpoint`: the first process of all machines writes, and writes what one process can load."""

    def save(self: Any, *args: Any, **kwargs: Any) -> None:
        config = self.config
        if not Processes.of(config).is_first:
            return
        self.config = config if config["single_spec"] else single(config)
        try:
            original(self, *args, **kwargs)
        finally:
            self.config = config

    return save


def for_first_process(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`get_tensorboard`: the other processes of a run get a writer that writes nothing."""

    def writer(logger: Any) -> Any:
        is_other = distributed.is_initialized() and distributed.get_rank() > 0
        return NoWriter() if is_other else original(logger)

    return writer


class NoWriter:
    """A TensorBoard writer without a file."""

    def add_scalar(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""

    def add_hparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing."""


def require_shared(folder: Path, processes: Processes) -> None:
    """Refuse a folder that the first process has made and this one does not see.

    Raises:
        InputError: naming the folder and this machine.
    """
    if not folder.is_dir():
        raise InputError(
            f"checkpoint_dir: the first process made {folder}, but rank {processes.rank} on {socket.gethostname()} "
            "does not see it; set checkpoint_dir to a folder that all machines of the run share"
        )
