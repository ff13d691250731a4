"""CPU seconds of a training epoch in each phase: Prime Pantry, the published sizes, BCE, one core.

    RECBOLE_PAD_DATA=DIR python benchmarks/phase_epochs.py [--text_vectors_dir DIR] [--no_defaults] [--profile]

The row of each phase: d 128, 5 blocks, 2 heads, N 20, 128 users a step, one negative, text width 384, and the
published choices (`properties/settings/pad_published.yaml`). Whole epochs of the phase trainer's own loop: loader,
forward, backward, optimizer; no validation, no checkpoints. The last phase trains all its experts, as published. Our
own choices (linear adapter, five experts of which the last phase trains one, similar lengths in a batch) at the same
sizes stand in the details. Text vectors are random (time does not depend on their values) unless a folder of encoded
ones is given. The seconds of the published code were measured once, on the same core; this script does not run it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from common import cpu_and_wall, finish, row
from recbole.data import create_dataset, data_preparation

import recbole_pad  # noqa: F401 - registers PAD
from recbole_pad.model.pad import PAD
from recbole_pad.phase_trainers import PHASE_TRAINERS
from recbole_pad.preflight import settled_config

PUBLISHED = {"pretrain": 44.0, "align": 18_900.0, "finetune": 141.0}  # CPU s, the published code, the same core
TARGETS = {"pretrain": 10.0, "align": 20.0, "finetune": 30.0}
REPEATS = {"pretrain": 5, "align": 3, "finetune": 3}
TRAINED = {"pretrain": set(), "align": {"rec"}, "finetune": {"rec", "align"}}
TEXT_WIDTH = 384
CHOICES = Path(__file__).resolve().parents[1] / "properties" / "settings" / "pad_published.yaml"
SIZES = {"hidden_size": 128, "inner_size": 512, "n_layers": 5, "n_heads": 2, "MAX_ITEM_LIST_LENGTH": 20}
SIZES |= {"train_batch_size": 128, "loss": "bce", "n_negatives": 1}


def published_choices() -> dict[str, Any]:
    """The paper's choices, as a config dict."""
    choices: dict[str, Any] = yaml.safe_load(CHOICES.read_text(encoding="utf-8"))
    return choices


def random_vectors(data_path: Path, folder: Path) -> dict[str, Any]:
    """Write random text vectors of all items; the settings that read them."""
    lines = (data_path / "prime_pantry" / "prime_pantry.inter").read_text(encoding="utf-8").splitlines()
    column = [name.split(":")[0] for name in lines[0].split("\t")].index("item_id")
    items = sorted({line.split("\t")[column] for line in lines[1:]})
    vectors = np.random.default_rng(0).standard_normal((len(items), TEXT_WIDTH), dtype=np.float32)
    np.save(folder / "text.npy", vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    (folder / "text.json").write_text(json.dumps({"items": items}), encoding="utf-8")
    return {"text_encoder": f"file:{folder / 'text.npy'}"}


def build(settings: dict[str, Any]) -> tuple[Any, Any, PAD]:
    """(config, train loader, model)."""
    config = settled_config(
        "PAD", "prime_pantry", None, {**settings, "show_progress": False, "state": "ERROR", "seed": 1}
    )
    train_data = data_preparation(config, create_dataset(config))[0]
    return config, train_data, PAD(config, train_data._dataset)


def epoch_of(config: Any, train_data: Any, model: PAD, phase: str) -> Callable[[], object]:
    """One epoch of a phase, whole, as a call; the earlier phases count as trained."""
    model.phase = phase
    model.start_experts(TRAINED[phase])
    trainer = PHASE_TRAINERS[phase](config, model)
    epochs = iter(range(1_000))
    return lambda: trainer._train_epoch(train_data, next(epochs))


def measure(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Phase -> its median CPU and wall seconds per epoch, the epochs measured, and steps per epoch."""
    config, train_data, model = build(settings)
    measured = {}
    for phase, repeats in REPEATS.items():
        epoch = epoch_of(config, train_data, model, phase)
        times = [cpu_and_wall(epoch) for _ in range(repeats)]
        measured[phase] = {
            "cpu_seconds": statistics.median(cpu for cpu, _ in times),
            "wall_seconds": statistics.median(wall for _, wall in times),
            "all_cpu_seconds": [round(cpu, 2) for cpu, _ in times],
            "steps": len(train_data),
            "trained": list(model.learning_experts()),
        }
    return measured


def profile(settings: dict[str, Any], n_steps: int = 10, n_operations: int = 12) -> None:
    """Print where the time of a step goes: share of each operation's own CPU time (operations as torch names them)."""
    config, train_data, model = build(settings)
    steps = list(itertools.islice(train_data, n_steps))
    for phase in REPEATS:
        epoch = epoch_of(config, steps, model, phase)
        epoch()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
            epoch()
        spent = sorted(profiler.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
        total = sum(entry.self_cpu_time_total for entry in spent)
        print(f"\n{phase}: {n_steps} steps, {total / 1e6:.2f} s\n\n| operation | share, % |\n| --- | --- |")
        for entry in spent[:n_operations]:
            print(f"| `{entry.key}` | {100 * entry.self_cpu_time_total / total:.1f} |")


def main() -> None:
    """Measure the three phases and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_path", default=os.environ.get("RECBOLE_PAD_DATA"))
    parser.add_argument("--text_vectors_dir", help="folder of encoded MiniLM vectors; random ones without it")
    parser.add_argument("--no_defaults", action="store_true", help="the published choices only, not our defaults")
    parser.add_argument("--profile", action="store_true", help="print where the time goes instead")
    parser.add_argument("settings", nargs="*", help="further config keys, key=value")
    arguments = parser.parse_args()
    if not arguments.data_path:
        parser.error("set RECBOLE_PAD_DATA or give --data_path: the folder of prime_pantry/")
    sys.argv = sys.argv[:1]  # RecBole reads it
    torch.set_num_threads(1)
    data_path = Path(arguments.data_path).resolve()
    text: dict[str, Any] = {}
    if arguments.text_vectors_dir:
        text = {"text_encoder": "minilm", "text_vectors_dir": str(Path(arguments.text_vectors_dir).resolve())}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        common = {"data_path": str(data_path), **SIZES, **(text or random_vectors(data_path, Path(folder)))}
        common |= {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in arguments.settings)}
        if arguments.profile:
            profile({**published_choices(), **common})
            os.chdir("/")
            return
        published = measure({**published_choices(), **common})
        ours = {} if arguments.no_defaults else measure(common)
        os.chdir("/")
    rows = []
    for number, (phase, figures) in enumerate(published.items(), start=1):
        seconds, limit = figures["cpu_seconds"], TARGETS[phase]
        rows.append(
            row(
                f"phase {number} epoch, Prime Pantry, d 128, 5 blocks, N 20, 128 users a step, BCE, one core",
                f"the published code on the same core: {PUBLISHED[phase]:,.0f} CPU s",
                f"at most {limit:.0f} CPU s",
                f"{seconds:.1f} CPU s ({PUBLISHED[phase] / seconds:,.0f} times faster)",
                seconds <= limit,
                **figures,
                our_defaults=ours.get(phase, {}),
            )
        )
    finish(rows)


if __name__ == "__main__":
    main()
