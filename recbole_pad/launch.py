"""Start the processes of a run on this machine, watch them, and say clearly what happened when one of them dies."""

from __future__ import annotations

import logging
import os
import pickle
import re
import signal
import socket
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.multiprocessing as multiprocessing
from torch.multiprocessing.spawn import ProcessContext, ProcessException

from recbole_pad.dataset_prep.shares import threads_of_each
from recbole_pad.errors import InputError

DEFAULT_PORT = "5678"
_TORCHRUN = {
    "local_rank": "LOCAL_RANK",
    "nproc": "LOCAL_WORLD_SIZE",
    "world_size": "WORLD_SIZE",
    "port": "MASTER_PORT",
    "ip": "MASTER_ADDR",
}
_LOST_ANOTHER = re.compile(
    r"connection (closed|reset) by (remote )?peer|broken pipe|socket timeout|gloo.*timed? ?out|nccl.*error",
    re.IGNORECASE,
)
_POLL_SECONDS = 0.2


class ProcessError(InputError):
    """A process of a distributed run died; the message says which, why, and how to go on."""


def torchrun_settings(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """RecBole's settings of this process if torchrun (or the like) has started it as one of several, else None."""
    if not {"RANK", *_TORCHRUN.values()} <= set(environment) or int(environment["WORLD_SIZE"]) < 2:
        return None
    found: dict[str, Any] = {key: environment[name] for key, name in _TORCHRUN.items()}
    found |= {key: int(found[key]) for key in ("local_rank", "nproc", "world_size")}
    return {**found, "offset": int(environment["RANK"]) - found["local_rank"]}


def process_settings(nproc: int, world_size: int, ip: str, port: str, group_offset: int) -> dict[str, Any]:
    """RecBole's settings for `nproc` processes on this machine; arguments as of RecBole's `run`.

    A run on one machine takes a free port unless another than the default one is asked for.

    Raises:
        InputError: if the numbers do not go together.
    """
    world = world_size if world_size > 0 else nproc
    if nproc < 1 or group_offset < 0 or group_offset + nproc > world:
        raise InputError(
            f"nproc, world_size, group_offset: this machine would run ranks {group_offset} to "
            f"{group_offset + nproc - 1} of {world}; world_size is the number of processes on all machines, and "
            "group_offset the rank of this machine's first one"
        )
    if nproc == world and str(port) == DEFAULT_PORT:
        port = str(_free_port())
    return {"nproc": nproc, "world_size": world, "ip": ip, "port": port, "offset": group_offset}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Mailbox:
    """Where a process leaves something for the one that started it; whole or not at all, also if it is killed.

    Attributes:
        folder: a folder of the starting process's own.
    """

    folder: Path

    def put(self, result: Any) -> None:
        """Leave the result of the run."""
        self.leave("result", result)

    def run_folder(self, path: Path) -> None:
        """Leave the run's folder."""
        self.leave("run_folder", str(path))

    def leave(self, name: str, content: Any) -> None:
        """Leave something under a name."""
        temporary = self.folder / f".{name}.{uuid.uuid4().hex}"
        temporary.write_bytes(pickle.dumps(content))
        temporary.replace(self.folder / name)

    def found(self, name: str) -> Any:
        """What was left under this name, or None."""
        file = self.folder / name
        return pickle.loads(file.read_bytes()) if file.is_file() else None


def run_processes(
    function: Callable[..., None],
    make_args: Callable[[Mailbox], tuple[Any, ...]],
    settings: Mapping[str, Any],
    remedy: Callable[[str | None], str],
) -> Any:
    """Run ``function(local_rank, *args)`` in processes of its own and wait for them; if one dies, all end.

    Args:
        function: of a module; the arguments are pickled.
        make_args: gives the arguments; what the function puts into the mailbox comes back.
        settings: see `process_settings`.
        remedy: what to do after a failure, given the run's folder (None if there is none yet).

    Returns:
        What was put into the mailbox, or None.

    Raises:
        InputError: the refusal of a process.
        ProcessError: if a process dies or raises anything else; its traceback is printed.
    """
    with tempfile.TemporaryDirectory(prefix="recbole-pad-") as folder:
        mailbox = Mailbox(Path(folder))
        nproc = int(settings["nproc"])
        with _threads(nproc), _quiet_spawn():
            processes = multiprocessing.spawn(  # type: ignore[attr-defined]
                _in_process, args=(function, make_args(mailbox), mailbox), nprocs=nproc, join=False
            )
            try:
                while not processes.join(timeout=_POLL_SECONDS):
                    pass
            except ProcessException:
                raise _failure(processes, mailbox, settings, remedy) from None
            finally:
                _end(processes)
        return mailbox.found("result")


def _in_process(local_rank: int, function: Callable[..., None], args: tuple[Any, ...], mailbox: Mailbox) -> None:
    """In the new process: run the function; a refusal is no crash, it goes to the mailbox without a traceback."""
    end_on_sigterm()
    try:
        function(local_rank, *args)
    except InputError as error:
        mailbox.leave(f"refusal {local_rank}", str(error))
        sys.exit(2)


def end_on_sigterm() -> None:
    """SIGTERM ends this process at once: ray, which RecBole imports, has it wait for the end of a collective."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def _threads(nproc: int) -> Iterator[None]:
    """Processes that start inside the block share the cores, unless OMP_NUM_THREADS is set already."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(threads_of_each(nproc))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _quiet_spawn() -> Iterator[None]:
    """Without torch's remarks on the processes that it ends: `run_processes` says what happened."""
    log = logging.getLogger("torch.multiprocessing.spawn")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _end(processes: ProcessContext) -> None:
    """Leave no process behind, whatever has ended the waiting (Ctrl-C, a failure)."""
    for process in processes.processes:
        if process.is_alive():
            process.kill()
            process.join()


def _failure(
    processes: ProcessContext, mailbox: Mailbox, settings: Mapping[str, Any], remedy: Callable[[str | None], str]
) -> InputError:
    """The error that tells of the process that died first: the others lost it, or were stopped."""
    local_ranks = range(len(processes.processes))
    refusals = [mailbox.found(f"refusal {rank}") for rank in local_ranks]
    if any(refusals):
        return InputError(next(filter(None, refusals)))
    tracebacks = [_read_traceback(file) for file in processes.error_files]
    causes = [_cause(process.exitcode, trace) for process, trace in zip(processes.processes, tracebacks, strict=True)]
    first = min(local_ranks, key=lambda rank: (_guilt(processes.processes[rank].exitcode, tracebacks[rank]), rank))
    if tracebacks[first]:
        print(tracebacks[first], file=sys.stderr)
    rank, world = int(settings["offset"]) + first, int(settings["world_size"])
    return ProcessError(failure_message(rank, world, causes[first], mailbox.found("run_folder"), remedy))


def failure_message(
    rank: int, world: int, cause: str, run_folder: str | None, remedy: Callable[[str | None], str]
) -> str:
    """The one line that tells of a process that died."""
    return f"the process of rank {rank} of {world} {cause}; this ended the run. {remedy(run_folder)}"


def cause_of(error: BaseException) -> tuple[str, bool]:
    """What a process says of the exception that ends it, and whether another process's end is behind it."""
    return _cause_of_exception(traceback.format_exception_only(error)[-1])


def _cause_of_exception(last_line: str) -> tuple[str, bool]:
    lost = _LOST_ANOTHER.search(last_line)
    if lost:
        return f"lost another process of the run, which died before it ({lost.group()})", True
    return f"failed: {last_line.strip().splitlines()[0]}", False


def _cause(exitcode: int | None, trace: str) -> str:
    if trace:
        return _cause_of_exception(trace.strip().splitlines()[-1])[0]
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        why = " (often: the machine is out of memory)" if name == "SIGKILL" else ""
        return f"was killed by signal {name}{why}"
    return f"ended with exit code {exitcode}"


def _guilt(exitcode: int | None, trace: str) -> int:
    """Smaller for the process that started it: raised, or killed by others; larger for its victims."""
    if trace:
        return 2 if _cause_of_exception(trace.strip().splitlines()[-1])[1] else 0
    was_stopped = exitcode in (None, 0, -signal.SIGTERM, signal.SIGTERM)  # the last one: by ray's handler
    return 3 if was_stopped else 1


def _read_traceback(file: str | None) -> str:
    """What torch's `spawn` has written of a process's exception; nothing if it was stopped while it wrote."""
    try:
        return str(pickle.loads(Path(file).read_bytes())) if file else ""
    except (OSError, EOFError, pickle.UnpicklingError):
        return ""
