"""What tests run in processes of their own, in a module that a new process imports in a moment."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import torch

from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.item_texts import ItemFile
from recbole_pad.distributed import Processes
from recbole_pad.errors import InputError

ERRORS = {"refusal": InputError("loss: 'bec' is unknown"), "failure": ZeroDivisionError("on purpose")}


def rank_1_raises(local_rank: int, error: str) -> None:
    """Raise one of `ERRORS` in the second process; the first one waits for it as in a collective."""
    if local_rank == 1:
        raise ERRORS[error]
    signal.pause()


def collect(local_rank: int, port: str, item_file: Path, folder: Path, encoder: str, mailbox: Any) -> None:
    """Call what waits for the other process, and encode a share of the texts; leave what this process has got."""
    torch.distributed.init_process_group("gloo", f"tcp://localhost:{port}", rank=local_rank, world_size=2)
    processes = Processes(local_rank, 2)
    own = torch.arange(3 * local_rank, 3 * local_rank + local_rank + 1)  # [0] and [3, 4]
    table = torch.full((2,), float(local_rank))
    processes.same_values([table])
    found = {
        "from_first": processes.from_first(lambda: f"made by {local_rank}"),
        "objects": processes.objects(local_rank),
        "objects_at_first": processes.objects_at_first(local_rank),
        "concatenated": processes.concatenated(own).tolist(),
        "of nothing": processes.concatenated(own[:0] if local_rank else own).tolist(),
        "means": processes.means([local_rank, 1.0]),
        "weight": float(processes.weight_of_mean(len(own), own.device)),
        "same_values": table.tolist(),
    }
    encode_items(
        ItemFile(item_file), folder, "toy", text_encoder=encoder, batch_size=2, show_progress=False, team=processes
    )
    processes.wait()
    found["files"] = sorted(path.name for path in folder.iterdir())
    mailbox.leave(str(local_rank), found)
    torch.distributed.destroy_process_group()
