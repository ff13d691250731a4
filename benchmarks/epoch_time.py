"""Phase 1 (all positions of a sequence at once) against RecBole's own SASRec (a row for each prefix), in one process.

    python benchmarks/epoch_time.py [--dataset ml-100k] [--data_path DIR] [--equal_seconds 60]

Both train the same class: SASRec, d 64, 2 layers, 2 heads, N = 50, full cross entropy, each with its own defaults for
the rest (batch size, learning rate, dropout), on one thread.

1. CPU seconds of a training epoch, in turns: an epoch of PAD, then some batches of the stock one (`--stock_batches`),
   scaled up to its epoch, which takes minutes. Autograd's anomaly mode, which RecBole leaves on, is off for both.
2. Both start anew and train for the same wall time, in turns of 5 s; then NDCG@10 of the models as they are, on
   validation and test data: full ranking, history not masked (RecBole's protocol). Evaluation does not count.

PAD's epoch covers the last N + 1 training items of each user here, RecBole's every prefix; point 2 compares them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch
from common import cpu_and_wall, finish, row
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model, get_trainer, init_seed

import recbole_pad  # noqa: F401 - registers PAD
from recbole_pad.phase_trainers import PretrainTrainer
from recbole_pad.preflight import settled_config

TARGET_RATIO = 60
TURN_SECONDS = 5.0
SIDES: dict[str, dict[str, Any]] = {
    "PAD": {"phases": ["pretrain"], "loss": "ce", "train_windows": "last"},
    "SASRec": {"loss_type": "CE"},
}
SIZES = {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "n_heads": 2}
EVALUATION = {"protocol": "recbole", "metrics": ["NDCG"], "topk": [10], "valid_metric": "NDCG@10"}


class Side:
    """A model at its start, its trainer and its data; it trains for a while, and goes on from there the next time."""

    def __init__(self, model: str, arguments: argparse.Namespace) -> None:
        common = {"MAX_ITEM_LIST_LENGTH": arguments.length, "show_progress": False, "state": "ERROR", "seed": 1}
        if arguments.data_path:
            common["data_path"] = arguments.data_path
        config = settled_config(model, arguments.dataset, None, {**common, **SIZES, **EVALUATION, **SIDES[model]})
        self.train_data, self.valid_data, self.test_data = data_preparation(config, create_dataset(config))
        init_seed(1, True)
        network = get_model(model)(config, self.train_data._dataset)
        make = PretrainTrainer if model == "PAD" else get_trainer(config["MODEL_TYPE"], model)
        self.trainer: Any = make(config, network)
        self.batches = self._endless()
        self.seconds, self.steps = 0.0, 0

    def _endless(self) -> Iterator[Any]:
        for epoch in itertools.count():
            if hasattr(self.train_data, "set_epoch"):
                self.train_data.set_epoch(epoch)
            yield from self.train_data

    def epoch(self, n_batches: int | None = None) -> None:
        """Train one epoch, or the next `n_batches` batches."""
        self.trainer._train_epoch(Batches(self, itertools.islice(self.batches, n_batches or len(self.train_data))), 0)

    def turn(self, seconds: float) -> None:
        """Train for some wall time; the last step may end later, which is counted."""
        started = time.perf_counter()
        until = itertools.takewhile(lambda _: time.perf_counter() - started < seconds, self.batches)
        self.trainer._train_epoch(Batches(self, until), 0)
        self.seconds += time.perf_counter() - started

    def ndcg(self) -> dict[str, float]:
        """NDCG@10 of the model as it is."""
        splits = {"valid": self.valid_data, "test": self.test_data}
        return {
            name: float(self.trainer.evaluate(data, load_best_model=False)["ndcg@10"]) for name, data in splits.items()
        }


class Batches:
    """Some batches as a loader."""

    shuffle = True

    def __init__(self, side: Side, batches: Iterator[Any]) -> None:
        self.side, self.batches = side, batches

    def __len__(self) -> int:
        return len(self.side.train_data)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches:
            self.side.steps += 1
            yield batch


def epoch_seconds(arguments: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds of an epoch of each side, medians; and the median of their ratios."""
    pad, stock = Side("PAD", arguments), Side("SASRec", arguments)
    scale = len(stock.train_data) / arguments.stock_batches
    pairs = []
    for _ in range(arguments.repeats + 1):  # the first pair warms up
        cpu, _ = cpu_and_wall(pad.epoch)
        stock_cpu, _ = cpu_and_wall(lambda: stock.epoch(arguments.stock_batches))
        pairs.append((cpu, stock_cpu * scale))
    return {
        "pad_cpu_seconds": statistics.median(cpu for cpu, _ in pairs[1:]),
        "stock_cpu_seconds": statistics.median(stock_cpu for _, stock_cpu in pairs[1:]),
        "cpu_ratio": statistics.median(stock_cpu / cpu for cpu, stock_cpu in pairs[1:]),
        "pad_rows": len(pad.train_data._dataset),
        "stock_rows": len(stock.train_data._dataset),
    }


def after_equal_time(arguments: argparse.Namespace) -> dict[str, Any]:
    """NDCG@10 of both sides after `equal_seconds` of training each."""
    sides = {name: Side(name, arguments) for name in SIDES}
    while min(side.seconds for side in sides.values()) < arguments.equal_seconds:
        behind = min(sides.values(), key=lambda side: side.seconds)
        behind.turn(min(TURN_SECONDS, arguments.equal_seconds - behind.seconds))
    return {
        name: {
            "wall_seconds": side.seconds,
            "epochs": side.steps / len(side.train_data),
            **{f"{split}_ndcg@10": value for split, value in side.ndcg().items()},
        }
        for name, side in sides.items()
    }


def main() -> None:
    """Measure both, and print the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--data_path")
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stock_batches", type=int, default=1)
    parser.add_argument("--equal_seconds", type=float, default=60.0, help="training time of each side in point 2")
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads it
    torch.set_num_threads(1)
    os.chdir(tempfile.mkdtemp())
    times = epoch_seconds(arguments)
    models = after_equal_time(arguments)
    ratio = times["cpu_ratio"]
    pad, stock = models["PAD"]["test_ndcg@10"], models["SASRec"]["test_ndcg@10"]
    higher = all(models["PAD"][key] > models["SASRec"][key] for key in ("valid_ndcg@10", "test_ndcg@10"))
    finish(
        [
            row(
                f"phase 1 epoch, SASRec d 64, 2 layers, L {arguments.length}, {arguments.dataset}, same loss (CE)",
                "stock RecBole SASRec, same run",
                f"at least {TARGET_RATIO} times fewer CPU seconds, nDCG@10 after equal wall time higher",
                f"{ratio:.0f} times ({times['pad_cpu_seconds']:.2f} against {times['stock_cpu_seconds']:.0f} CPU s); "
                f"test nDCG@10 after {arguments.equal_seconds:.0f} s each {pad:.4f} against {stock:.4f}",
                ratio >= TARGET_RATIO and higher,
                **times,
                after_equal_time=models,
            )
        ]
    )


if __name__ == "__main__":
    main()
