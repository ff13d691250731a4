"""Made-up data of any size for the benchmarks of PAD: what the model reads of a dataset, without files of interactions.

Items are drawn Zipf-like from the whole catalogue, ids in no order of popularity; every item counts as seen in
training, so that negatives come from the whole catalogue, too. Text vectors are random numbers in a real `TextTable`.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.interaction import Interaction

import recbole_pad  # noqa: F401 - registers PAD
from recbole_pad.data.frequency import equal_mass_bins
from recbole_pad.data.histories import Histories
from recbole_pad.data.text_table import TextTable
from recbole_pad.preflight import settled_config

N_BINS = 10


def config(folder: Path, **settings: Any) -> Any:
    """PAD's default settings (those of ml-100k, of which no data is read) with changes."""
    quiet = {"state": "ERROR", "show_progress": False, "checkpoint_dir": str(folder / "saved")}
    return settled_config(
        "PAD", "ml-100k", None, {**quiet, "hidden_size": 64, "inner_size": 256, "n_layers": 2, **settings}
    )


class SyntheticDataset:
    """The attributes of a training split that `PAD` reads.

    Args:
        n_items: items, without padding.
        n_users: users, each with `length` interactions.
        length: interactions of a user.
        text: text vectors, or None.
        seed: of the sequences.
    """

    train_rows = "sequences"

    def __init__(self, n_items: int, n_users: int, length: int, text: TextTable | None, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.item_num, self.user_num = n_items + 1, n_users + 1
        chance = 1 / (np.arange(n_items) + 10.0)
        rank = np.searchsorted(np.cumsum(chance / chance.sum()), rng.random(n_users * length)).clip(max=n_items - 1)
        items = (rng.permutation(n_items) + 1)[rank]
        self.sequences = items.reshape(n_users, length)
        users = np.repeat(np.arange(1, self.user_num), length)
        self.train_histories = Histories.from_sorted(users, items, self.user_num)
        self.train_counts = np.bincount(items, minlength=self.item_num) + 1
        self.train_counts[0] = 0
        self.bins = equal_mass_bins(self.train_counts, N_BINS)
        self.text_table = text

    def num(self, field: str) -> int:
        """Number of ids of a field, padding included."""
        return {"item_id": self.item_num, "user_id": self.user_num}[field]

    def batch(self, users: np.ndarray) -> Interaction:
        """Training rows of these users (from 0): the sequence without its last item, which is the target."""
        rows = torch.from_numpy(self.sequences[users])
        length = rows.size(1) - 1
        return Interaction(
            {
                "user_id": torch.from_numpy(users + 1),
                "item_id_list": rows[:, :-1].contiguous(),
                "item_length": torch.full((len(users),), length),
                "item_id": rows[:, -1].contiguous(),
            }
        )

    def batches(self, n_batches: int, n_users: int, seed: int = 0) -> list[Interaction]:
        """Batches of distinct users each."""
        rng = np.random.default_rng(seed)
        return [self.batch(rng.choice(self.user_num - 1, n_users, replace=False)) for _ in range(n_batches)]


def random_text_table(folder: Path, n_items: int, width: int) -> TextTable:
    """Random float32 vectors of `n_items` items in a file, written in blocks, in another order than the items'."""
    path = folder / f"text-{n_items}x{width}.npy"
    rng = np.random.default_rng(n_items)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n_items, width))
    for start in range(0, n_items, 8192):
        block = out[start : start + 8192]
        block[:] = rng.standard_normal(block.shape, dtype=np.float32)
    out.flush()
    del out
    rows = np.concatenate([[-1], rng.permutation(n_items)])
    stat = path.stat()
    # a name instead of the file's digest: nothing here changes the file
    name = hashlib.sha256(json.dumps([n_items, width]).encode()).hexdigest()
    return TextTable(path, rows, width, name, {}, (stat.st_size, stat.st_mtime_ns))


def megabytes(*tensors: torch.Tensor) -> float:
    """Size of tensors in MB."""
    return sum(math.prod(tensor.shape) * tensor.element_size() for tensor in tensors) / 1e6
