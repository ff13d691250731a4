"""Seconds of a process that imports the plugin, or prints the help; loading torch, which both avoid, for comparison.

    python benchmarks/startup.py [--repeats 5]

Every start is a process of its own, with the interpreter's start in the figure (it is measured alone too); the things
measured take turns, and the first round, which fills the file cache, does not count. CPU seconds are user plus system
time of the process. Not in: the first start after an install, when Python compiles the modules.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable

from common import alternating, finish, row

TARGET_SECONDS = 1.0
STARTS: dict[str, list[str]] = {
    "interpreter alone": ["-c", "pass"],
    "import recbole_pad": ["-c", "import recbole_pad"],
    "recbole-pad --help": ["-m", "recbole_pad", "--help"],
    "import torch": ["-c", "import torch"],
    "import recbole_pad, recbole.quick_start": ["-c", "import recbole_pad, recbole.quick_start"],
}


def starter(arguments: list[str], folder: str, cpu: list[float]) -> Callable[[], None]:
    """A start of the interpreter with these arguments; its CPU seconds are added to the list."""

    def start() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    return start


def main() -> None:
    """Measure, and print the table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cpu: dict[str, list[float]] = {name: [] for name in STARTS}
    with tempfile.TemporaryDirectory() as folder:
        works = {name: starter(words, folder, cpu[name]) for name, words in STARTS.items()}
        wall = {name: times["wall"] for name, times in alternating(works, arguments.repeats).items()}
    middle = {name: sorted(times[1:])[len(times[1:]) // 2] for name, times in cpu.items()}
    details = {
        f"{kind} seconds, {name}": round(seconds[name], 4)
        for kind, seconds in (("wall", wall), ("CPU", middle))
        for name in STARTS
    }
    finish(
        [
            row(
                f"`{name}`",
                f"`import torch`: {wall['import torch']:.2f} s",
                f"under {TARGET_SECONDS:.0f} s",
                f"{wall[name]:.2f} s ({middle[name]:.2f} CPU s)",
                wall[name] < TARGET_SECONDS,
                **details,
            )
            for name in ("import recbole_pad", "recbole-pad --help")
        ]
    )


if __name__ == "__main__":
    main()
