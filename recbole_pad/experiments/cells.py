"""Cells of a comparison: one training run each, in a process of its own, kept once it is finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import recbole
import yaml
from numpy.typing import NDArray

import recbole_pad
from recbole_pad.checkpoint import NUMBERS
from recbole_pad.dataset_prep.files import write_text
from recbole_pad.errors import InputError
from recbole_pad.evaluation.collector import Ranks
from recbole_pad.evaluation.rank_files import RANKS_FILE, read_frequency, read_ranks
from recbole_pad.input_files import input_digests
from recbole_pad.keys import PLACES
from recbole_pad.property_files import shipped_settings
from recbole_pad.registration import has_phases

_POLL_SECONDS = 2.0
_PHASES_FOLDER = "phases"


@dataclass(frozen=True)
class Cell:
    """One run: a model with settings on a dataset with a seed.

    Attributes:
        dataset: its name.
        label: of the variant, in tables; cells that differ in it alone share their run.
        model: a model name.
        settings: all settings but the seed.
        seed: the seed.
        start: the cell (PAD) whose trained experts this one takes (`init_checkpoint`), or None.
        start_experts: the experts that it takes.
    """

    dataset: str
    label: str
    model: str
    settings: dict[str, Any] = field(hash=False)
    seed: int
    start: Cell | None = None
    start_experts: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """A name for everything but the seed that determines the result: versions, settings, defaults, and data."""
        settings = {key: value for key, value in self.settings.items() if key not in PLACES}
        versions = [NUMBERS, recbole_pad.__version__, recbole.__version__]
        defaults = shipped_settings(self.model, self.dataset)
        content: list[Any] = [versions, self.model, self.dataset, settings, defaults, self._data()]
        if self.start is not None:
            content += [self.start.digest, self.start_experts]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:10]

    def _data(self) -> list[str | None]:
        folder = Path(str(self.settings.get("data_path", "dataset"))) / self.dataset
        return [*input_digests(folder, self.dataset, lambda key: [self.settings.get(key)]).values()]

    def folder(self, root: Path) -> Path:
        """Where the cell's run is kept below `root`."""
        return root / self.dataset / f"{self.model}-{self.digest}" / f"seed{self.seed}"

    def __str__(self) -> str:
        return f"{self.label} on {self.dataset}, seed {self.seed}"


@dataclass(frozen=True)
class CellResult:
    """What a finished cell left.

    Attributes:
        folder: the run folder.
        report: content of its result.json.
    """

    folder: Path
    report: dict[str, Any]

    @cached_property
    def ranks(self) -> dict[str, Ranks]:
        """Test ranks of each phase.

        Raises:
            InputError: if the run has none.
        """
        return read_ranks(self.folder / RANKS_FILE)

    @cached_property
    def frequency(self) -> NDArray[np.int64]:
        """Train frequency of each test row's target, in the order of `ranks`; errors likewise."""
        return read_frequency(self.folder / RANKS_FILE)


def result_of(cell: Cell, root: Path) -> CellResult | None:
    """The cell's result, if it is finished."""
    found = sorted(cell.folder(root).glob("*/result.json"))
    if not found:
        return None
    return CellResult(found[-1].parent, json.loads(found[-1].read_text(encoding="utf-8")))


def on_screen(line: str) -> None:
    """Print a line at once, also into a file."""
    print(line, flush=True)


@dataclass
class Grid:
    """Runs cells that are not finished, several at once if asked to.

    The same command may run twice at the same time, on one machine or on several that share the folder: a cell that
    another process runs is waited for. A killed cell of PAD is continued, of another model, or with a budget
    (`train_seconds`), begun again.

    Args:
        root: where cells are kept.
        jobs: cells that run at the same time.
        say: takes a line for each cell that starts, ends or fails.
        run: starts the process of a cell; another one in tests.
    """

    root: Path
    jobs: int = 1
    say: Callable[[str], None] = on_screen
    run: Callable[[Cell, Path, IO[bytes], int], int] | None = None
    failures: dict[str, str] = field(default_factory=dict)

    def results(self, cells: Sequence[Cell]) -> dict[Cell, CellResult]:
        """Run what is missing, the cells that others start from first; failed cells are not in the answer.

        The failures are in `failures`: cell -> the end of its log.

        Raises:
            InputError: for no jobs, or a folder whose name holds a space.
        """
        if self.jobs < 1:
            raise InputError(f"jobs: {self.jobs} is not a whole number from 1")
        if " " in str(self.root):
            raise InputError(f"cells: {str(self.root)!r} holds a space, which config_files cannot; name another folder")
        for wave in _waves(cells):
            self._run_all([cell for cell in wave if result_of(cell, self.root) is None])
        done = {cell: result_of(cell, self.root) for cell in cells}
        return {cell: result for cell, result in done.items() if result is not None}

    def _run_all(self, cells: list[Cell]) -> None:
        if not cells:
            return
        counter = _Counter(len(cells))
        waiting = list(cells)
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    if not waiting:
                        return
                    cell = waiting.pop(0)
                if not self._run_one(cell, counter):
                    with lock:
                        waiting.append(cell)
                    time.sleep(_POLL_SECONDS)

        with ThreadPoolExecutor(max_workers=self.jobs) as pool:
            for worker in [pool.submit(work) for _ in range(self.jobs)]:
                worker.result()

    def _run_one(self, cell: Cell, counter: _Counter) -> bool:
        """Run a cell unless it is finished; False if another process is running it."""
        folder = cell.folder(self.root)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if result_of(cell, self.root) is not None:
                counter.next()
                return True
            if cell.start is not None and result_of(cell.start, self.root) is None:
                self.failures[str(cell)] = f"it starts from {cell.start}, which failed"
                counter.next()
                return True
            self._run_locked(cell, folder, lock, counter)
            return True

    def _run_locked(self, cell: Cell, folder: Path, lock: IO[str], counter: _Counter) -> None:
        settings = self._settings(cell, folder)
        file = folder / "settings.yaml"
        write_text(file, yaml.safe_dump(settings, sort_keys=False))
        started = time.monotonic()
        with (folder / "log.txt").open("ab") as log:
            code = (self.run or _run_process)(cell, file, log, lock.fileno())
        seconds = time.monotonic() - started
        if code == 0 and result_of(cell, self.root) is not None:
            self.failures.pop(str(cell), None)
            self.say(f"[{counter.next()}] {cell}: {seconds:.0f} s")
        else:
            self.failures[str(cell)] = f"exit code {code}; {folder / 'log.txt'} ends: {_last_line(folder / 'log.txt')}"
            self.say(f"[{counter.next()}] {cell}: FAILED, {self.failures[str(cell)]}")

    def _settings(self, cell: Cell, folder: Path) -> dict[str, Any]:
        """The settings of a cell's run: its own, and where its files are."""
        settings = {**cell.settings, "seed": cell.seed, "checkpoint_dir": str(folder), "show_progress": False}
        # a budget is of one run: phases of others, or of an earlier call, would cost nothing of it
        if has_phases(cell.model) and "train_seconds" not in settings:
            settings.setdefault("phase_cache", str(self.root / _PHASES_FOLDER))
            settings["resume"] = any(folder.glob("*/last.pth"))
        start = None if cell.start is None else result_of(cell.start, self.root)
        if start is not None:
            settings["init_checkpoint"] = str(start.folder / f"{list(start.report['phases'])[-1]}.pth")
            settings["init_experts"] = list(cell.start_experts)
        return settings


class _Counter:
    """Numbers the cells as they end: ``3/12``."""

    def __init__(self, n: int) -> None:
        self._n, self._done, self._lock = n, 0, threading.Lock()

    def next(self) -> str:
        with self._lock:
            self._done += 1
            return f"{self._done}/{self._n}"


def _waves(cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells and all that they start from, each after the one that it starts from."""
    depth: dict[Cell, int] = {}

    def place(cell: Cell) -> int:
        depth[cell] = 0 if cell.start is None else place(cell.start) + 1
        return depth[cell]

    for cell in cells:
        place(cell)
    return [[cell for cell in depth if depth[cell] == level] for level in range(max(depth.values(), default=-1) + 1)]


def _run_process(cell: Cell, settings: Path, log: IO[bytes], lock: int) -> int:
    """Run `recbole-pad run`; the process holds the lock too, so that it stays locked if we are killed."""
    command = [sys.executable, "-m", "recbole_pad", "run", f"--model={cell.model}", f"--dataset={cell.dataset}"]
    command.append(f"--config_files={settings}")
    return subprocess.run(command, stdout=log, stderr=log, env=os.environ, pass_fds=[lock], check=False).returncode


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "(empty)"
