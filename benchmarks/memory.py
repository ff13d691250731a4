"""Memory of training over 1 million items with 384 text values each: the process against the tables themselves.

    python benchmarks/memory.py [--items 1000000] [--width 384] [--steps 4]

Peak of the process's own (anonymous) memory over that after the imports and the making of the data, while the model is
built (the text vectors are whitened, out of core) and each phase is trained for a few steps, with all its checkpoints:
the state before the epoch, the best weights, and their way back into the model. Against it: parameters and optimizer
state of the phase that has most of them. Default settings with bce: d = 64, AdamW, text vectors of more than 1 GB on
disk. Memory of the text file's map is the kernel's to take back: it is reported apart. Not in the figure: evaluation.
Each variant runs in a process of its own, one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import finish, memory_mb, peak_memory, row
from synthetic import SyntheticDataset, config, megabytes, random_text_table

from recbole_pad.checkpoint import RunFolder
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS

TARGET = 1.5
VARIANTS = {  # experts, and whether those of earlier phases go on training in the last one
    "three experts": (["rec", "align", "llm"], False),
    "three experts, all trained in the last phase": (["rec", "align", "llm"], True),
    "default (with match)": (["rec", "align", "llm", "match"], False),
}


def optimizer_tensors(optimizer: Any) -> list[torch.Tensor]:
    """The state of an optimizer, or of the parts of one."""
    parts = getattr(optimizer, "parts", {"": optimizer}).values()
    return [value for part in parts for state in part.state.values() for value in state.values() if _is_tensor(value)]


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def measure(name: str, folder: Path, n_items: int, width: int, n_steps: int) -> dict[str, Any]:
    """Build and train one variant; all figures in MB."""
    experts, retrain = VARIANTS[name]
    dataset = SyntheticDataset(n_items, 20_000, 51, random_text_table(folder, n_items, width))
    settings = config(folder, loss="bce", epochs=1, experts=experts, retrain_experts=retrain)
    batches = dataset.batches(n_steps, 64)
    tables: dict[str, float] = {}
    peaks: dict[str, float] = {}
    start = memory_mb()["anonymous"]
    with peak_memory() as peak:
        model = PAD(settings, dataset)
    peaks["build"] = peak["mb"]
    trained: set[str] = set()
    for phase, trainer_class in PHASE_TRAINERS.items():
        base = memory_mb()["anonymous"] - start
        with peak_memory() as peak:
            model.phase = phase
            model.start_experts(trained)
            trainer = trainer_class(settings, model, RunFolder(folder / "run"), phase)
            trainer.fit(batches, None)
        peaks[phase] = base + peak["mb"]
        tables[phase] = megabytes(*model.parameters(), *optimizer_tensors(trainer.optimizer))
        trained |= {part.removeprefix("experts.") for part in model.phase_modules()}
        del trainer
    return {"tables": tables, "peaks": peaks, "file_backed": memory_mb()["file"]}


def main() -> None:
    """Run the variants and print the table and its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS)[:1], choices=list(VARIANTS))
    parser.add_argument("--folder", help="of one variant, in this process")
    arguments = parser.parse_args()
    if arguments.folder:
        sys.argv = sys.argv[:1]  # RecBole reads the command line
        torch.set_num_threads(1)
        os.chdir(arguments.folder)
        sizes = arguments.items, arguments.width, arguments.steps
        print(json.dumps(measure(arguments.variants[0], Path(arguments.folder), *sizes)))
        return
    rows = []
    for name in arguments.variants:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--folder", folder, "--variants", name]
            command += [f"--{key}={getattr(arguments, key)}" for key in ("items", "width", "steps")]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        print(f"{name}: {result}", file=sys.stderr)
        most, peak = max(result["tables"].values()), max(result["peaks"].values())
        rows.append(
            row(
                f"memory, {arguments.items:,} items x {arguments.width} text values, d 64, {name}",
                "the tables themselves (parameters and optimizer state)",
                f"at most {TARGET} times",
                f"{peak / most:.2f} times ({peak:.0f} against {most:.0f} MB)",
                peak <= TARGET * most,
                text_vectors_mb=arguments.items * arguments.width * 4 / 1e6,
                **result,
            )
        )
    finish(rows)


if __name__ == "__main__":
    main()
