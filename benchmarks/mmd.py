"""MK-MMD: the library's closed form against explicit (2n, 2n, d) difference tensors, time and peak memory.

    python benchmarks/mmd.py [--rows 672] [--width 128] [--repeats 5]

Each variant runs in a process of its own (peak memory is the process's, minus that of importing torch), on one thread.
Prints JSON and a table.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

ALPHAS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)


def explicit(text: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
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


def fused(text: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The library's."""
    from recbole_pad.nn.mmd import mk_mmd

    return mk_mmd(text, ids, alphas=ALPHAS)


VARIANTS = {"explicit": explicit, "fused": fused}


def measure(name: str, n_rows: int, width: int, repeats: int) -> dict[str, float]:
    """CPU seconds (median) of forward and backward, peak memory in MB above the start, value."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    text, ids = torch.randn(n_rows, width), torch.randn(n_rows, width) + 0.3
    text.requires_grad_(True)
    ids.requires_grad_(True)
    loss = VARIANTS[name]
    loss(text[:4], ids[:4]).backward()
    start_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds = []
    for _ in range(repeats):
        text.grad = ids.grad = None
        began = time.process_time()
        value = loss(text, ids)
        value.backward()
        seconds.append(time.process_time() - began)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - start_mb
    norm = float(text.grad.norm())
    return {
        "cpu_seconds": statistics.median(seconds),
        "peak_mb": peak_mb,
        "value": float(value),
        "grad_norm": norm,
    }


def main() -> None:
    """Run both variants and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=672)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variant", choices=list(VARIANTS))
    arguments = parser.parse_args()
    if arguments.variant:
        print(json.dumps(measure(arguments.variant, arguments.rows, arguments.width, arguments.repeats)))
        return
    results = {}
    for name, repeats in (("explicit", 1), ("fused", arguments.repeats * 4)):
        command = [sys.executable, __file__, "--variant", name, "--repeats", str(repeats)]
        command += ["--rows", str(arguments.rows), "--width", str(arguments.width)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        results[name] = json.loads(output.splitlines()[-1])
    results["speedup"] = results["explicit"]["cpu_seconds"] / results["fused"]["cpu_seconds"]
    print(json.dumps(results, indent=2))
    print(
        "\n| variant | CPU s, forward and backward | peak MB | value | gradient norm |\n| --- | --- | --- | --- | --- |"
    )
    for name in VARIANTS:
        row = results[name]
        print(
            f"| {name} | {row['cpu_seconds']:.4f} | {row['peak_mb']:.0f} | {row['value']:.6f} | {row['grad_norm']:.6f} |"  # noqa: E501
        )


if __name__ == "__main__":
    main()
