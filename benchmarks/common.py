"""What the benchmarks share: CPU seconds, memory, fair repetition, and the form of a result.

Every script measures one or more rows of docs/performance.md, alone in its process: it prints a table and, as its last
line, ``{"rows": [...]}``, each row as `row` makes it. `run_all.py` runs them all and prints one table.
"""

from __future__ import annotations

import gc
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def cpu_and_wall(work: Callable[[], object]) -> tuple[float, float]:
    """(CPU seconds of all threads, wall seconds) of one call."""
    gc.collect()
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def alternating(works: dict[str, Callable[[], object]], repeats: int, warm_up: int = 1) -> dict[str, dict[str, float]]:
    """Run several things in turns, so that a slow minute of the machine hits all of them.

    Returns:
        name -> ``cpu`` and ``wall``, medians of `repeats` calls in seconds, after `warm_up` calls that do not count.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for repeat in range(-warm_up, repeats):
        for name, work in works.items():
            measured = cpu_and_wall(work)
            if repeat >= 0:
                times[name].append(measured)
    return {
        name: {"cpu": statistics.median(c for c, _ in taken), "wall": statistics.median(w for _, w in taken)}
        for name, taken in times.items()
    }


def memory_mb() -> dict[str, float]:
    """Resident memory of this process in MB: ``anonymous`` (its own), ``file`` (memory maps, may be dropped)."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    kib = {name: float(fields[name].split()[0]) for name in ("RssAnon", "RssFile")}
    return {"anonymous": kib["RssAnon"] * 1024 / 1e6, "file": kib["RssFile"] * 1024 / 1e6}


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Peak of the process's own (anonymous) memory over its value at the start, in MB, sampled every 2 ms.

    The dict that is yielded holds ``mb`` after the block.
    """
    gc.collect()
    start = memory_mb()["anonymous"]
    peak = {"mb": 0.0}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak["mb"] = max(peak["mb"], memory_mb()["anonymous"] - start)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        peak["mb"] = max(peak["mb"], memory_mb()["anonymous"] - start)
        done.set()
        watcher.join()


def row(what: str, against: str, target: str, figure: str, met: bool, **details: Any) -> dict[str, Any]:
    """One row of the table of docs/performance.md.

    Args:
        what: what is measured.
        against: what it is compared with.
        target: the goal in words, for example "at most 1.5 times".
        figure: the measured figure in words, with its unit.
        met: whether the goal is reached.
        details: everything else that was measured.
    """
    return {"what": what, "against": against, "target": target, "figure": figure, "met": bool(met), "details": details}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| what | against | target | figure | met |", "| --- | --- | --- | --- | --- |"]
    for entry in rows:
        cells = [str(entry[key]) for key in ("what", "against", "target", "figure")]
        lines.append(f"| {' | '.join(cells)} | {'yes' if entry['met'] else 'NO'} |")
    return "\n".join(lines)


def finish(rows: list[dict[str, Any]]) -> None:
    """Print the table and the last line that `run_all.py` reads."""
    print(table(rows))
    print(json.dumps({"rows": rows}, default=float))
