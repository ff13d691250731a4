"""Step time as the catalogue grows: 10 thousand, 100 thousand and 1 million items, all three phases, two losses.

    python benchmarks/catalogue.py [--items 10000 100000 1000000] [--users 64] [--length 50] [--repeats 5]

A step is RecBole's own: zero_grad, loss, NaN check, backward, optimizer step, on one thread. Batches of 64 users with
50 positions each, d = 64, SASRec of two layers, default experts and settings (`sparse_updates: auto`: dense Adam at
10 k, row-wise from 100 k on). The text vectors, 384 wide, stay on disk. The sizes take turns in one process; every
repetition has a batch of its own. Not in the figure: reading the batch, evaluation, the first steps (they make the Adam
tables). A step over a larger catalogue reads more distinct items, `distinct_items` says how many.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from common import alternating, finish, row
from synthetic import SyntheticDataset, config, random_text_table

from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS

TARGET = 1.5
LOSSES = {"bce": 1, "sampled_softmax": 1024}  # negatives: of each position; shared by the step
TRAINED_BEFORE: dict[str, set[str]] = {"pretrain": set(), "align": {"rec"}, "finetune": {"rec", "align"}}


def steps(
    model: Any, settings: Any, phase: str, dataset: SyntheticDataset, users: int, mmd_weight: float = 0.2
) -> Callable[[], object]:
    """A function that trains one step of a phase, on the next batch at each call."""
    model.phase = phase
    model.phase_settings[phase] = replace(model.phase_settings[phase], mmd_weight=mmd_weight)
    model.start_experts(TRAINED_BEFORE[phase])
    trainer = PHASE_TRAINERS[phase](settings, model)
    batches = itertools.cycle(dataset.batches(16, users))

    def step() -> None:
        model.phase = phase
        trainer._train_epoch([next(batches)], 0)

    return step


def distinct_items(dataset: SyntheticDataset, users: int) -> float:
    """Distinct items that a batch reads, on average; negatives not counted."""
    batches = dataset.batches(16, users)
    return sum(len(torch.unique(batch["item_id_list"])) for batch in batches) / len(batches)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """CPU milliseconds of a step: one entry for each loss and phase."""
    datasets = {
        n_items: SyntheticDataset(n_items, 20_000, arguments.length + 1, random_text_table(folder, n_items, 384))
        for n_items in arguments.items
    }
    measured = []
    for loss, n_negatives in LOSSES.items():
        changes = {"text_memory_mb": 0, "text_transform": "none", "MAX_ITEM_LIST_LENGTH": arguments.length}
        settings = config(folder, loss=loss, n_negatives=n_negatives, **changes)
        models = {n_items: PAD(settings, dataset) for n_items, dataset in datasets.items()}
        for phase in PHASE_TRAINERS:
            build = partial(steps, settings=settings, phase=phase, users=arguments.users)
            works = {str(n): build(models[n], dataset=datasets[n]) for n in arguments.items}
            times = alternating(works, arguments.repeats, warm_up=2)
            measured.append({"loss": loss, "phase": phase, "ms": {n: 1000 * t["cpu"] for n, t in times.items()}})
            if phase == "align":
                works = {str(n): build(models[n], dataset=datasets[n], mmd_weight=0.0) for n in arguments.items}
                times = alternating(works, arguments.repeats, warm_up=2)
                measured[-1]["ms_without_alignment_loss"] = {n: 1000 * t["cpu"] for n, t in times.items()}
            print(measured[-1], file=sys.stderr)
    return [*measured, {"distinct_items": {n: distinct_items(data, arguments.users) for n, data in datasets.items()}}]


def main() -> None:
    """Measure, and print the table and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    sys.argv = sys.argv[:1]  # RecBole reads the command line
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        *measured, distinct = measure(arguments, Path(name))
        os.chdir("/")
    smallest, largest = str(min(arguments.items)), str(max(arguments.items))
    rows = []
    for entry in measured:
        ratio = entry["ms"][largest] / entry["ms"][smallest]
        rows.append(
            row(
                f"step time, {entry['loss']}, phase {entry['phase']}, {int(largest):,} items",
                f"itself at {int(smallest):,} items",
                f"at most {TARGET} times",
                f"{ratio:.2f} times ({entry['ms'][largest]:.0f} against {entry['ms'][smallest]:.0f} CPU ms)",
                ratio <= TARGET,
                **{key.replace("ms", "cpu_ms", 1): value for key, value in entry.items() if key.startswith("ms")},
                **distinct,
            )
        )
    finish(rows)


if __name__ == "__main__":
    main()
