"""Full cross entropy in blocks (`blocked_softmax_ce`) against the plain one, which holds all scores.

    python benchmarks/softmax.py [--positions 4096] [--items 200000] [--width 64] [--repeats 9]

One thread; value and the gradients of user states and item vectors. The large case: each variant runs once, in a
process of its own; memory is the peak of the process's own memory over its value with states, vectors and targets in
place, so both gradients are in it. The plain one holds about three matrices of scores; it runs on as many of the
positions as keep it below 6 GB. The ordinary cases: in turns in one process, medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import alternating, cpu_and_wall, finish, peak_memory, row
from torch import Tensor
from torch.nn import functional as F

from recbole_pad.nn.blocked_softmax import blocked_softmax_ce

PLAIN_BYTES = 6e9
DEFAULT_MB = 512  # of the key score_memory_mb
SMALL_MB = 4
ORDINARY = [(600, 8300, 64), (600, 8300, 128), (3200, 1682, 64)]  # Prime Pantry at two widths, ml-100k


def problem(n_positions: int, n_items: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, item vectors (both ask for gradients) and targets."""
    torch.manual_seed(0)
    states, vectors = torch.randn(n_positions, width), 0.3 * torch.randn(n_items, width)
    return states.requires_grad_(), vectors.requires_grad_(), torch.randint(n_items, (n_positions,))


def plain(states: Tensor, vectors: Tensor, target: Tensor) -> Tensor:
    """All scores at once."""
    return F.cross_entropy(states @ vectors.T, target)


def blocked(states: Tensor, vectors: Tensor, target: Tensor, megabytes: int = DEFAULT_MB) -> Tensor:
    """The library's."""
    return blocked_softmax_ce(states, vectors, target, megabytes * 10**6)


def step(loss: Callable[..., Tensor], sample: tuple[Tensor, Tensor, Tensor]) -> float:
    """Forward and backward; returns the value."""
    states, vectors, _ = sample
    states.grad = vectors.grad = None
    value = loss(*sample)
    value.backward()
    return value.item()


def measure(megabytes: int, n_positions: int, n_items: int, width: int) -> dict[str, Any]:
    """One call of the large case; 0 megabytes stand for the plain way."""
    torch.set_num_threads(1)
    loss = partial(blocked, megabytes=megabytes) if megabytes else plain
    step(loss, problem(3, 5, width))
    sample = problem(n_positions, n_items, width)
    values: list[float] = []
    with peak_memory() as peak:
        cpu, wall = cpu_and_wall(lambda: values.append(step(loss, sample)))
    states, vectors, _ = sample
    assert states.grad is not None
    assert vectors.grad is not None
    return {
        "positions": n_positions,
        "score_memory_mb": megabytes,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "peak_mb": peak["mb"],
        "gradients_mb": (states.grad.numel() + vectors.grad.numel()) * 4 / 1e6,
        "value": values[0],
        "grad_norms": [float(states.grad.norm()), float(vectors.grad.norm())],
    }


def in_own_process(megabytes: int, n_positions: int, n_items: int, width: int) -> dict[str, Any]:
    """What `measure` returns, from a fresh process."""
    command = [sys.executable, __file__, "--megabytes", str(megabytes)]
    command += ["--positions", str(n_positions), "--items", str(n_items), "--width", str(width)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def large_case(n_positions: int, n_items: int, width: int) -> dict[str, Any]:
    """Memory at the size asked for, and of the plain way at the size that fits."""
    fewer = min(n_positions, int(PLAIN_BYTES / (3.2 * 4 * n_items)))
    all_at_once = in_own_process(0, fewer, n_items, width)
    same_size = in_own_process(DEFAULT_MB, fewer, n_items, width)
    runs = [in_own_process(megabytes, n_positions, n_items, width) for megabytes in (DEFAULT_MB, SMALL_MB)]
    bounded = all(run["peak_mb"] < run["score_memory_mb"] + 2 * run["gradients_mb"] + 20 for run in runs)
    equal = abs(all_at_once["value"] - same_size["value"]) < 1e-5 * all_at_once["value"] and all(
        abs(a - b) < 1e-5 * a for a, b in zip(all_at_once["grad_norms"], same_size["grad_norms"], strict=True)
    )
    return row(
        f"full cross-entropy over a large catalogue: {n_positions:,} positions x {n_items:,} items, d {width}",
        f"all scores at once, {fewer:,} positions: {all_at_once['peak_mb'] / 1000:.1f} GB, "
        f"{all_at_once['cpu_seconds']:.1f} CPU s (blocks: {same_size['cpu_seconds']:.1f})",
        "peak below score_memory_mb plus twice the gradients plus 20 MB; same value and gradients",
        ", ".join(
            f"{run['peak_mb']:.0f} MB at score_memory_mb {run['score_memory_mb']} ({run['cpu_seconds']:.1f} CPU s)"
            for run in runs
        ),
        bounded and equal,
        plain=all_at_once,
        blocked_same_size=same_size,
        blocked=runs,
    )


def ordinary_case(n_positions: int, n_items: int, width: int, repeats: int) -> dict[str, Any]:
    """CPU seconds of both ways."""
    sample = problem(n_positions, n_items, width)
    taken = alternating({"plain": lambda: step(plain, sample), "blocked": lambda: step(blocked, sample)}, repeats)
    ratio = taken["blocked"]["cpu"] / taken["plain"]["cpu"]
    return row(
        f"full cross-entropy, {n_positions:,} positions x {n_items:,} items, d {width}, forward and backward",
        f"all scores at once: {1000 * taken['plain']['cpu']:.0f} CPU ms",
        "not slower",
        f"{ratio:.2f} times the CPU seconds ({1000 * taken['blocked']['cpu']:.0f} ms)",
        ratio <= 1,
        ratio=ratio,
        seconds=taken,
    )


def main() -> None:
    """Run both cases and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=4096)
    parser.add_argument("--items", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--megabytes", type=int)
    arguments = parser.parse_args()
    size = arguments.positions, arguments.items, arguments.width
    if arguments.megabytes is not None:
        print(json.dumps(measure(arguments.megabytes, *size)))
        return
    torch.set_num_threads(1)
    finish([large_case(*size), *(ordinary_case(*case, arguments.repeats) for case in ORDINARY)])


if __name__ == "__main__":
    main()
