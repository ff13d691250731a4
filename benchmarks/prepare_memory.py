"""Peak memory and time of `recbole-pad prepare` on a dump that does not fit into memory.

    python benchmarks/prepare_memory.py [--millions 5 10 20] [--engine duckdb] [--memory_limit 1GB] [--folder DIR]

Makes a dump in the schema of Amazon Reviews 2018 (JSON lines of some 400 bytes, seeded, streamed; metadata of 500,000
items) and prepares it with the usual 5-core recipe in a process of its own. Reported: the peak of that process's
resident memory, as the kernel counts it, its time, and how the time grows with the rows (figures: docs/datasets.md,
"Large dumps"). Disk: 0.4 GB a million rows for the dump, in --folder (default: the temporary folder), and some 0.2 GB
for what DuckDB writes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, row

ROOT = Path(__file__).resolve().parents[1]
PART_ROWS = 1_000_000
N_ITEMS = 500_000
USERS_OF_PART = 120_000
MAX_GB = 2.0
LINEAR = 1.3  # seconds per row at the largest size over those at the smallest

REVIEW = (
    '{{"overall": {rating}.0, "verified": true, "reviewTime": "05 1, 2014", "reviewerID": "A{user:013d}", '
    '"asin": "B{item:09d}", "style": {{"Size:": " 16 oz"}}, "reviewerName": "A. Customer", "reviewText": "{text}", '
    '"summary": "Five Stars", "unixReviewTime": {time}}}\n'
)
TEXT = "Works as it should and came in two days; would buy it again. " * 3
META = (
    '{{"category": ["Electronics", "Cables &amp; Adapters"], "description": ["{text}"], "title": "Cable &amp; plug '
    '{item}", "brand": "Maker {brand}", "main_cat": "Electronics", "price": "$9.99", "asin": "B{item:09d}"}}\n'
)


def write_part(path: Path, number: int) -> None:
    """A million reviews: users of this part, items of the whole catalogue, some far more often; 1 % written twice."""
    rng = np.random.default_rng([7, number])
    user = number * USERS_OF_PART + (USERS_OF_PART * rng.random(PART_ROWS) ** 2).astype(np.int64)
    item = (N_ITEMS * rng.random(PART_ROWS) ** 3).astype(np.int64)
    day = rng.integers(14_000, 17_500, PART_ROWS) * 86_400
    rating = rng.integers(1, 6, PART_ROWS)
    twice = rng.random(PART_ROWS) < 0.01
    with path.open("w", encoding="utf-8") as file:
        for u, i, t, r, again in zip(*(a.tolist() for a in (user, item, day, rating, twice)), strict=True):
            line = REVIEW.format(user=u, item=i, time=t, rating=r, text=TEXT)
            file.write(line + line if again else line)


def write_items(path: Path) -> None:
    """The metadata of all items."""
    with path.open("w", encoding="utf-8") as file:
        for item in range(N_ITEMS):
            file.write(META.format(item=item, brand=item % 997, text=TEXT))


def prepared(parts: list[Path], items: Path, folder: Path, engine: str, memory_limit: str) -> dict[str, Any]:
    """Run the command in a process of its own."""
    command = [sys.executable, "-m", "dataset_prep", "prepare", "amazon-2018", "--name", "dump", "--data_path", folder]
    command += ["--interactions", *parts, "--items", items, "--engine", engine, "--memory_limit", memory_limit]
    start = time.perf_counter()
    child = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"prepare ended with {os.waitstatus_to_exitcode(status)}")
    manifest = json.loads((folder / "dump" / "dump.manifest.json").read_text(encoding="utf-8"))
    return {
        "seconds": time.perf_counter() - start,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "read": manifest["filters"][0]["left"],
        "kept": manifest["counts"]["interactions"],
    }


def main() -> None:
    """Make the dump, prepare it at each size, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--millions", type=int, nargs="+", default=[5, 10, 20], help="rows, in millions")
    parser.add_argument("--engine", default="duckdb")
    parser.add_argument("--memory_limit", default="1GB", help="of DuckDB")
    parser.add_argument("--folder", default=None, help="for the dump and the results")
    arguments = parser.parse_args()
    rows, per_row = [], {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        items, parts = folder / "meta_Dump.json", []
        write_items(items)
        for millions in sorted(arguments.millions):
            for number in range(len(parts), millions):
                parts.append(folder / f"Dump_{number:03d}.json")
                write_part(parts[-1], number)
            result = prepared(parts, items, folder / "dataset", arguments.engine, arguments.memory_limit)
            print(f"{millions} million: {result}", file=sys.stderr, flush=True)
            per_row[millions] = result["seconds"] / result["read"]
            growth = per_row[millions] / next(iter(per_row.values()))
            rows.append(
                row(
                    f"prepare, {result['read']:,} reviews ({arguments.engine}, memory limit {arguments.memory_limit})",
                    "a fixed limit; time in proportion to the rows",
                    f"at most {MAX_GB:g} GB, and {LINEAR:g} times the seconds per row of the smallest dump",
                    f"{result['peak_gb']:.2f} GB, {result['seconds']:.0f} s ({growth:.2f} times)",
                    result["peak_gb"] <= MAX_GB and growth <= LINEAR,
                    **result,
                )
            )
    finish(rows)


if __name__ == "__main__":
    main()
