"""Seconds per training epoch: PAD's phase 1 (all positions) against RecBole's own SASRec (prefixes), same run.

    python benchmarks/epoch_time.py [--dataset ml-100k] [--data_path DIR] [--length 50] [--repeats 3] [--threads 2]

Both train the same class with the same widths and full cross entropy, in one process, alternating: a PAD epoch, then a
share of a stock epoch (`--stock_batches` of its batches, scaled up: a whole one takes minutes).
Prints JSON and a table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

import recbole_pad  # noqa: F401 - registers PAD
from recbole_pad.quick_start import _config


def build(model: str, arguments: argparse.Namespace, **settings: Any) -> tuple[Any, Any]:
    """(trainer, train loader) of a model."""
    common = {"MAX_ITEM_LIST_LENGTH": arguments.length, "show_progress": False, "state": "ERROR", "seed": 1}
    if arguments.data_path:
        common["data_path"] = arguments.data_path
    config = _config(model, arguments.dataset, None, {**common, **settings})
    train_data = data_preparation(config, create_dataset(config))[0]
    init_seed(1, True)
    network = get_model(model)(config, train_data._dataset)
    return get_trainer(config["MODEL_TYPE"], model)(config, network), train_data


class FirstBatches:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, n_batches: int) -> None:
        self.loader, self.n_batches, self.shuffle = loader, n_batches, loader.shuffle

    def __len__(self) -> int:
        return min(self.n_batches, len(self.loader))

    def __iter__(self) -> Any:
        return itertools.islice(iter(self.loader), self.n_batches)


def timed(trainer: Any, loader: Any, epoch: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds) of one epoch."""
    wall, cpu = time.perf_counter(), time.process_time()
    trainer._train_epoch(loader, epoch)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure, and print JSON and a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--stock_batches", type=int, default=2)
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]
    torch.set_num_threads(arguments.threads)
    os.chdir(tempfile.mkdtemp())
    pad, pad_data = build("PAD", arguments, phases=["pretrain"])
    stock, stock_data = build("SASRec", arguments, train_neg_sample_args=None)
    part = FirstBatches(stock_data, arguments.stock_batches)
    scale = len(stock_data) / len(part)
    runs: dict[str, list[tuple[float, float]]] = {"pad": [], "stock": []}
    for repeat in range(-1, arguments.repeats):  # the first pair warms up
        pad_time, stock_time = timed(pad, pad_data, repeat + 1), timed(stock, part, repeat + 1)
        if repeat >= 0:
            runs["pad"].append(pad_time)
            runs["stock"].append((stock_time[0] * scale, stock_time[1] * scale))
    result = {
        name: {
            "wall_seconds": statistics.median(wall for wall, _ in times),
            "cpu_seconds": statistics.median(cpu for _, cpu in times),
        }
        for name, times in runs.items()
    }
    rows = {"pad": len(pad_data._dataset), "stock": len(stock_data._dataset)}
    ratios = [stock_cpu / pad_cpu for (_, pad_cpu), (_, stock_cpu) in zip(runs["pad"], runs["stock"], strict=True)]
    result |= {"rows": rows, "cpu_ratio": statistics.median(ratios), "threads": arguments.threads}
    print(json.dumps(result, indent=2))
    print(
        f"\n{arguments.dataset}, N = {arguments.length}, {arguments.threads} threads, one epoch, SASRec, full softmax"
    )
    print("\n| | rows | wall s | CPU s |\n| --- | --- | --- | --- |")
    for name, label in (("pad", "PAD phase 1, all positions"), ("stock", "RecBole, prefixes")):
        print(f"| {label} | {rows[name]} | {result[name]['wall_seconds']:.2f} | {result[name]['cpu_seconds']:.2f} |")
    print(f"| ratio | | | {result['cpu_ratio']:.1f} |")


if __name__ == "__main__":
    main()
