"""MK-MMD of the alignment phase: the library's against explicit (2n, 2n, d) difference tensors, and with repeated rows.

    python benchmarks/mmd.py [--rows 672] [--width 128] [--repeats 20]

Each variant runs in a process of its own (memory freed by one would hide that of another), on one thread; forward and
backward. CPU seconds are medians, of the explicit way a single call. Memory is the peak of the process's own memory
over its value before the first call of that size, so it holds the workspaces that the first call sets up.

`all` and `all, by multiplicity` are the published mode ``mmd_rows: all``: a batch of 128 users, 20 slots each for
inputs, targets and negatives, padding included (made up: lengths as in Prime Pantry, item frequencies as 1/rank).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from common import finish, peak_memory, row
from torch import Tensor

from recbole_pad.nn.mmd import ALPHAS, mk_mmd

USERS, SLOTS, ITEMS = 128, 20, 8347
SAME = ("value", "text_grad_norm", "ids_grad_norm")
Sample = tuple[Tensor, Tensor, Tensor | None]


def explicit(text: Tensor, ids: Tensor, counts: Tensor | None) -> Tensor:
    """The formula with every difference vector written out, once per kernel."""
    n = len(text)
    rows = torch.cat([text, ids])
    total = torch.zeros(())
    for alpha in ALPHAS:
        difference = rows[:, None, :] - rows[None, :, :]
        sq_dist = (difference**2).sum(dim=2)
        kernel = torch.exp(-sq_dist / (2 * alpha * sq_dist.detach().mean()))
        within = kernel[:n, :n].sum() + kernel[n:, n:].sum() - 2 * n
        total = total + within / (n * (n - 1)) - 2 * kernel[:n, n:].mean()
    return total


def library(text: Tensor, ids: Tensor, counts: Tensor | None) -> Tensor:
    """`mk_mmd`."""
    return mk_mmd(text, ids, alphas=ALPHAS, counts=counts)


def repeated(text: Tensor, ids: Tensor, counts: Tensor | None) -> Tensor:
    """`mk_mmd` of rows that are written out as often as they occur."""
    assert counts is not None
    return mk_mmd(*(each.repeat_interleave(counts, dim=0) for each in (text, ids)), alphas=ALPHAS)


def _two_normals(n_rows: int, width: int) -> Sample:
    return torch.randn(n_rows, width), torch.randn(n_rows, width) + 0.3, None


def _batch_of_slots(n_rows: int, width: int) -> Sample:
    """Distinct items of a batch, item 0 padding, and how often each stands in a slot; `n_rows` is not used."""
    lengths = torch.distributions.Geometric(0.2).sample((USERS,)).add_(4).clamp_(max=SLOTS).long()
    n_real = int(lengths.sum())
    popularity = 1 / torch.arange(1, ITEMS + 1).float()
    items = torch.multinomial(popularity, 2 * n_real, replacement=True) + 1
    negatives = torch.randint(1, ITEMS + 1, (n_real,))
    padding = torch.zeros(3 * (USERS * SLOTS - n_real), dtype=torch.long)
    ids, counts = torch.unique(torch.cat([items, negatives, padding]), return_counts=True)
    return torch.randn(len(ids), width), torch.randn(len(ids), width) + 0.3, counts


Variant = tuple[Callable[[int, int], Sample], Callable[[Tensor, Tensor, Tensor | None], Tensor], int]
VARIANTS: dict[str, Variant] = {  # name -> sample, loss, divisor of the number of calls
    "explicit": (_two_normals, explicit, 10**9),
    "library": (_two_normals, library, 1),
    "all": (_batch_of_slots, repeated, 7),
    "all, by multiplicity": (_batch_of_slots, library, 1),
}


def measure(name: str, n_rows: int, width: int, repeats: int) -> dict[str, Any]:
    """CPU seconds (median) of forward and backward, peak memory in MB, value and gradient norms of one variant."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    make, loss, fewer = VARIANTS[name]
    text, ids, counts = make(n_rows, width)
    text.requires_grad_()
    ids.requires_grad_()
    _, small_loss, _ = VARIANTS["explicit"]
    (small_loss(text[:4], ids[:4], None) + library(text[:4], ids[:4], None)).backward()
    seconds: list[float] = []

    def step() -> float:
        text.grad = ids.grad = None
        began = time.process_time()
        value = loss(text, ids, counts)
        value.backward()
        seconds.append(time.process_time() - began)
        return value.item()

    calls = max(1, repeats // fewer)
    with peak_memory() as peak:
        for _ in range(min(calls, 5)):
            value = step()
    if calls > 1:  # again, without the thread that watches the memory
        seconds.clear()
        for _ in range(calls):
            value = step()
    assert text.grad is not None
    assert ids.grad is not None
    return {
        "rows": len(text) if counts is None else int(counts.sum()),
        "distinct_rows": len(text),
        "cpu_seconds": statistics.median(seconds),
        "peak_mb": peak["mb"],
        "value": value,
        "text_grad_norm": float(text.grad.norm()),
        "ids_grad_norm": float(ids.grad.norm()),
    }


def in_own_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `measure` returns, from a fresh process."""
    command = [sys.executable, __file__, "--variant", name]
    for key in ("rows", "width", "repeats"):
        command += [f"--{key}", str(getattr(arguments, key))]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return measured


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(abs(one[key] - other[key]) < 1e-4 * abs(one[key]) for key in SAME)


def main() -> None:
    """Run all variants and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=672)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--variant", choices=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.rows, arguments.width, arguments.repeats)))
        return
    results = {name: in_own_process(name, arguments) for name in VARIANTS}
    plain, ours = results["explicit"], results["library"]
    slots, distinct = results["all"], results["all, by multiplicity"]
    speedup = plain["cpu_seconds"] / ours["cpu_seconds"]
    saving = slots["cpu_seconds"] / distinct["cpu_seconds"]
    finish(
        [
            row(
                f"MK-MMD, n {arguments.rows}, d {arguments.width}, five kernels, forward and backward, one thread",
                f"explicit (2n, 2n, d) tensors: {plain['cpu_seconds']:.1f} CPU s, {plain['peak_mb'] / 1000:.1f} GB",
                "at least 1,000 times faster, under 50 MB",
                f"{speedup:,.0f} times faster ({1000 * ours['cpu_seconds']:.1f} CPU ms), {ours['peak_mb']:.1f} MB",
                speedup >= 1000 and ours["peak_mb"] < 50 and _same(plain, ours),
                speedup=speedup,
                variants={"explicit": plain, "library": ours},
            ),
            row(
                f"MK-MMD over all slots of a batch: {slots['rows']:,} rows, {distinct['distinct_rows']:,} distinct, "
                f"d {arguments.width}",
                f"the same function on every row: {slots['cpu_seconds']:.2f} CPU s, {slots['peak_mb']:.0f} MB",
                "faster; value and gradient norms the same",
                f"{saving:.0f} times faster ({1000 * distinct['cpu_seconds']:.0f} CPU ms), "
                f"{distinct['peak_mb']:.0f} MB",
                saving > 1 and _same(slots, distinct),
                saving=saving,
                variants={"all": slots, "all, by multiplicity": distinct},
            ),
        ]
    )


if __name__ == "__main__":
    main()
