"""Every row of the table of docs/performance.md: `make bench`, or `python benchmarks/run_all.py [NAME ...]`.

Runs the scripts one after the other, each in a process of its own, prints one table with the verdicts, and writes
all figures to benchmarks/results.json (not committed). Prime Pantry is read below RECBOLE_PAD_DATA; rows that need it
are reported as not measured without it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import table

HERE = Path(__file__).resolve().parent
SCRIPTS = (  # in the order of the table
    "epoch_time",
    "phase_epochs",
    "ranking",
    "mmd",
    "softmax",
    "catalogue",
    "memory",
    "loading",
    "startup",
)
NEEDS_DATA = {"phase_epochs"}


def run(name: str) -> list[dict[str, Any]]:
    """The rows of one script; one that fails gives a row that says so."""
    if name in NEEDS_DATA and not os.environ.get("RECBOLE_PAD_DATA"):
        return [_no_figure(name, "RECBOLE_PAD_DATA is not set")]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    started = time.monotonic()
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=HERE, env=environment, capture_output=True, text=True)
    print(done.stdout, flush=True)
    print(f"{name}: {time.monotonic() - started:.0f} s\n", flush=True)
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)
        return [_no_figure(name, f"exit code {done.returncode}")]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])["rows"]
    return rows


def _no_figure(name: str, why: str) -> dict[str, Any]:
    return {"what": name, "against": "", "target": "", "figure": f"not measured: {why}", "met": False, "details": {}}


def main() -> int:
    """Run what is asked for (all by default); exit code 0 if every script ran, whatever its verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; all by default")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(SCRIPTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(SCRIPTS)}")
    rows = [entry for name in arguments.names or SCRIPTS for entry in run(name)]
    machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
    temporary = arguments.output.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(arguments.output)
    print(table(rows))
    print(f"\n{sum(entry['met'] for entry in rows)} of {len(rows)} met; figures: {arguments.output}")
    return int(any(entry["figure"].startswith("not measured: exit") for entry in rows))


if __name__ == "__main__":
    sys.exit(main())
