"""Loading and building training data: atomic file -> dataset -> splits -> loaders, ours against stock RecBole.

    python benchmarks/loading.py            # 1 M interactions, three sides in turns; then PAD on 10 M
    python benchmarks/loading.py --full     # 10 M only: PAD, and RecBole's SASRec with fast_data

Each measurement is a process of its own, one thread. Counted are `create_dataset` + `data_preparation`, and one pass
over the batches of all three loaders: ours make the lists of a row there, RecBole's before. Not counted: imports and
reading the config. Sides: stock RecBole (SASRec, `fast_data: False`, history not masked), the same with `fast_data:
True`, and PAD with its default rows (one training sequence per user, where RecBole has a row per prefix; the held-out
rows are the same). Checked are the sequences and the split: (user, history with times, target) of every row of the two
SASRec sides, and for PAD the held-out rows and each user's last training row. Memory is the peak of the whole process,
imports included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

SIDES: dict[str, tuple[str, dict[str, Any]]] = {
    "stock": ("SASRec", {"fast_data": False, "mask_history": False}),
    "SASRec": ("SASRec", {"fast_data": True, "mask_history": False}),
    "PAD": ("PAD", {}),
}
TENTH = {"name": "tenth", "n_interactions": 1_000_000, "n_users": 100_000, "n_items": 50_000}
FULL = {"name": "full", "n_interactions": 10_000_000, "n_users": 1_000_000, "n_items": 500_000}
SETTINGS = {
    "state": "ERROR",
    "show_progress": False,
    "MAX_ITEM_LIST_LENGTH": 50,
    "train_batch_size": 2048,
    "eval_batch_size": 2048,
    "train_neg_sample_args": None,
}
CHUNK = 1_000_000  # lines written at once


# --- data ----------------------------------------------------------------------------------------------------------


def write_dataset(folder: Path, name: str, n_interactions: int, n_users: int, n_items: int) -> None:
    """An atomic file sorted by user and time: at least five interactions a user, popularity and length long-tailed."""
    rng = np.random.default_rng(0)
    weight = rng.exponential(size=n_users)
    more = np.searchsorted(np.cumsum(weight / weight.sum()), rng.random(n_interactions - 5 * n_users))
    users = np.sort(np.concatenate([np.repeat(np.arange(n_users), 5), more.clip(max=n_users - 1)]))
    items = (n_items * rng.random(n_interactions) ** 2.5).astype(np.int64).clip(max=n_items - 1)
    times = 1_400_000_000 + rng.integers(0, 200_000_000, n_interactions)
    times = times[np.lexsort((times, users))]
    (folder / name).mkdir()
    with (folder / name / f"{name}.inter").open("wb") as file:
        file.write(b"user_id:token\titem_id:token\ttimestamp:float\n")
        for start in range(0, n_interactions, CHUNK):
            part = slice(start, start + CHUNK)
            fields = [
                b"u",
                digits(users[part], 7),
                b"\ti",
                digits(items[part], 6),
                b"\t",
                digits(times[part], 10),
                b"\n",
            ]
            n_lines = len(users[part])
            columns = [
                np.tile(np.frombuffer(field, dtype=np.uint8), (n_lines, 1)) if isinstance(field, bytes) else field
                for field in fields
            ]
            file.write(np.concatenate(columns, axis=1).tobytes())


def digits(numbers: np.ndarray, width: int) -> np.ndarray:
    """Decimal digits as ASCII codes, shape (n, width)."""
    places = 10 ** np.arange(width - 1, -1, -1)
    return (numbers[:, None] // places % 10 + ord("0")).astype(np.uint8)


# --- one side, in a process of its own -----------------------------------------------------------------------------


def measure(folder: Path, name: str, side: str) -> dict[str, Any]:
    """CPU and wall seconds of building and of one pass, peak memory, and digests of what was built."""
    sys.argv = sys.argv[:1]  # RecBole reads it
    import torch
    from common import cpu_and_wall
    from recbole.data import create_dataset, data_preparation

    from recbole_pad.preflight import settled_config

    torch.set_num_threads(1)
    model, changes = SIDES[side]
    own = {"data_path": str(folder), "checkpoint_dir": str(folder / "saved")}
    config = settled_config(model, name, None, {**SETTINGS, **own, **changes})
    before, built = peak_gb(), []
    build = cpu_and_wall(lambda: built.extend(data_preparation(config, create_dataset(config))))
    peak_of_building = peak_gb()
    once = cpu_and_wall(lambda: [None for loader in built for _ in loader])
    keys_cpu = (
        cpu_and_wall(lambda: built[0]._dataset.train_histories.keys(built[0]._dataset.item_num))[0]
        if side == "PAD"
        else 0
    )
    peak = peak_gb()
    return {
        "cpu_build": build[0],
        "wall_build": build[1],
        "cpu_pass": once[0],
        "wall_pass": once[1],
        "cpu_keys": keys_cpu,
        "gb_imports": before,
        "gb_build": peak_of_building,
        "gb": peak,
        "rows": [len(loader._dataset) for loader in built],
        "digests": digests(built, all_rows=side != "PAD"),
    }


def peak_gb() -> float:
    """Peak resident memory of this process since its start, memory maps included."""
    with Path("/proc/self/status").open(encoding="ascii") as status:
        peak = next(line for line in status if line.startswith("VmHWM"))
    return float(peak.split()[1]) * 1024 / 1e9


def digests(loaders: list[Any], all_rows: bool) -> dict[str, str]:
    """Names of the users' last training rows and of the held-out rows; and of all training rows in their order."""
    feats = {
        split: loader._dataset.inter_feat for split, loader in zip(("train", "valid", "test"), loaders, strict=True)
    }
    found = {
        split: digest(loaders[0]._dataset, feat, last_of_each(feat["user_id"].numpy())) for split, feat in feats.items()
    }
    if all_rows:
        for split, feat in feats.items():
            found[f"all of {split}"] = digest(loaders[0]._dataset, feat, np.arange(len(feat)))
    return found


def last_of_each(users: np.ndarray) -> np.ndarray:
    """The last row of each user, by user."""
    order = np.argsort(users, kind="stable")
    return order[np.flatnonzero(np.diff(users[order], append=-1))]


def digest(dataset: Any, feat: Any, rows: np.ndarray) -> str:
    """sha256 of (user, target, its time, length, history, times of the history) of the rows, and of the tokens."""
    hasher = hashlib.sha256()
    for start in range(0, len(rows), CHUNK // 10):
        part = feat[rows[start : start + CHUNK // 10]]
        for field in ("user_id", "item_id", "timestamp", "item_length", "item_id_list", "timestamp_list"):
            hasher.update(part[field].contiguous().numpy())
    for field in ("user_id", "item_id"):
        hasher.update(np.ascontiguousarray(dataset.field2id_token[field]))
    return hasher.hexdigest()[:16]


def in_own_process(folder: Path, name: str, side: str) -> dict[str, Any]:
    """`measure` in a new process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", side, "--folder", str(folder), "--name", name],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# --- the table -----------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="10 M interactions only, PAD and SASRec with fast_data")
    parser.add_argument("--repeats", type=int, default=3, help="of each side on the tenth (default 3)")
    for hidden in ("--measure", "--folder", "--name"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(Path(asked.folder), asked.name, asked.measure)))
        return
    from common import finish

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder, **FULL)
        if asked.full:
            finish([full_row(in_own_process(folder, FULL["name"], side), side) for side in ("PAD", "SASRec")])
            return
        write_dataset(folder, **TENTH)
        runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(asked.repeats):
            for side, taken in runs.items():
                taken.append(in_own_process(folder, TENTH["name"], side))
        full = in_own_process(folder, FULL["name"], "PAD")
    finish([pad_row(runs, full), sasrec_row(runs)])


def median(runs: list[dict[str, Any]], *keys: str) -> float:
    """Of the sum of some figures."""
    return statistics.median(sum(run[key] for key in keys) for run in runs)


def times_fewer(runs: dict[str, list[dict[str, Any]]], side: str) -> dict[str, float]:
    """How many times fewer CPU seconds than stock RecBole: building, and building with one pass over the batches."""
    return {
        "building": median(runs["stock"], "cpu_build") / median(runs[side], "cpu_build"),
        "building and one pass": median(runs["stock"], "cpu_build", "cpu_pass")
        / median(runs[side], "cpu_build", "cpu_pass"),
    }


def same(runs: dict[str, list[dict[str, Any]]], side: str) -> bool:
    """Whether all digests that a side has are stock RecBole's, in every run."""
    stock = runs["stock"][0]["digests"]
    return all(
        run["digests"] == {name: stock[name] for name in run["digests"]} for run in [*runs["stock"], *runs[side]]
    )


def seconds(runs: dict[str, list[dict[str, Any]]], side: str) -> dict[str, Any]:
    """What is kept of the runs of a side."""
    kept = {key: median(runs[side], key) for key in ("cpu_build", "wall_build", "cpu_pass", "wall_pass", "gb")}
    return {**kept, "rows": runs[side][0]["rows"]}


def pad_row(runs: dict[str, list[dict[str, Any]]], full: dict[str, Any]) -> dict[str, Any]:
    """The target of the issue: the ratio at a tenth, the memory at full size."""
    from common import row

    ratios, is_same = times_fewer(runs, "PAD"), same(runs, "PAD")
    return row(
        "loading and building training data, 10 M interactions, 1 M users, PAD",
        "stock RecBole SASRec, at a tenth",
        "at least 10 times faster, at most 4 GB; same sequences, same split",
        f"{ratios['building']:.0f} times fewer CPU s at a tenth ({ratios['building and one pass']:.0f} with one pass "
        f"over the batches); {full['gb']:.1f} GB and {full['cpu_build']:.0f} CPU s at full size; "
        f"{'same' if is_same else 'OTHER'} rows",
        min(ratios.values()) >= 10 and full["gb"] <= 4 and is_same,
        tenth={side: seconds(runs, side) for side in ("stock", "PAD")},
        full=full,
    )


def sasrec_row(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """RecBole's own model with `fast_data`, row for row the same."""
    from common import row

    ratios, is_same = times_fewer(runs, "SASRec"), same(runs, "SASRec")
    return row(
        "the same at a tenth, RecBole's SASRec with fast_data",
        "the same with fast_data: False",
        "faster; equal rows in equal order",
        f"{ratios['building']:.0f} times fewer CPU s ({ratios['building and one pass']:.0f} with one pass over the "
        f"batches), {median(runs['SASRec'], 'gb'):.1f} GB instead of {median(runs['stock'], 'gb'):.1f}; "
        f"{'equal' if is_same else 'OTHER'} rows",
        min(ratios.values()) > 1 and is_same,
        stock=seconds(runs, "stock"),
        fast=seconds(runs, "SASRec"),
    )


def full_row(run: dict[str, Any], side: str) -> dict[str, Any]:
    """One side at full size, alone."""
    from common import row

    return row(
        f"loading and building training data, 10 M interactions, 1 M users, {side} with fast_data",
        "-",
        "at most 4 GB",
        f"{run['gb']:.1f} GB, {run['cpu_build']:.0f} CPU s, and {run['cpu_pass']:.0f} for one pass over the batches",
        run["gb"] <= 4,
        **run,
    )


if __name__ == "__main__":
    main()
