"""The processes of a distributed run as one of them sees it, and a loss whose gradient is that of the whole step.

A run in one process is a run of one process: every function here then does nothing, and needs no process group.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from recbole_pad.keys import PROCESS_KEYS

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """The processes of a run. All methods but `is_first` wait for the other processes: call them in each.

    Attributes:
        rank: number of this process, from 0, over all machines.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def of(cls, config: Any) -> Processes:
        """Those that RecBole's config speaks of."""
        if config["single_spec"]:
            return cls()
        return cls(int(config["local_rank"]) + int(config["offset"]), int(config["world_size"]))

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files of the run."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make` returns; it is called in the first process only, for all of them."""
        if self.alone:
            return make()
        made: list[Any] = [make() if self.is_first else None]
        distributed.broadcast_object_list(made)
        result: T = made[0]
        return result

    def wait(self) -> None:
        """Wait until every process is here: what the first one has written is there then."""
        if not self.alone:
            distributed.barrier()

    def objects(self, value: T) -> list[T]:
        """The values of all processes, in the order of their ranks."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.world
        distributed.all_gather_object(values, value)
        return values

    def objects_at_first(self, value: T) -> list[T] | None:
        """As `objects` in the first process, None in the others: for large values."""
        if self.alone:
            return [value]
        values: list[Any] | None = [None] * self.world if self.is_first else None
        distributed.gather_object(value, values)
        return values

    def concatenated(self, values: Tensor) -> Tensor:
        """The values of all processes one after the other; shape (n, ...), n may differ between them."""
        if self.alone:
            return values
        length = torch.tensor([len(values)], device=values.device)
        lengths = [torch.zeros_like(length) for _ in range(self.world)]
        distributed.all_gather(lengths, length)
        sizes = [int(size) for size in lengths]
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    def means(self, values: Sequence[float]) -> tuple[float, ...]:
        """The mean over the processes of each number; all give equally many."""
        return tuple(sum(column) / self.world for column in zip(*self.objects(tuple(values)), strict=True))

    def weight_of_mean(self, count: int, device: torch.device) -> Tensor | float:
        """What a mean over `count` own values has to be multiplied with.

        The mean over the processes of (their weight times their mean) is the mean over the values of all processes.

        Args:
            count: 0 for a process whose value must not count.
            device: where the counts are added.

        Returns:
            count * world / (sum of the counts): a number, on `device` if there are several processes.
        """
        if self.alone:
            return 1.0
        total = torch.tensor(float(count), device=device)
        distributed.all_reduce(total)
        return count * self.world / total

    def same_values(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite the tensors by those of the first process."""
        if self.alone:
            return
        for tensor in tensors:
            distributed.broadcast(tensor.detach(), 0)


ALONE = Processes()


def single(config: Any) -> Any:
    """A copy of RecBole's config for one process: loaders made with it hold all rows, files made with it load alone."""
    view = copy.copy(config)
    view.final_config_dict = {key: value for key, value in config.final_config_dict.items() if key not in PROCESS_KEYS}
    view.final_config_dict.update(single_spec=True, local_rank=0)
    if not config["single_spec"] and config["device"].type == "cuda":
        view.final_config_dict["device"] = torch.device("cuda")
    return view


@contextmanager
def shared_loss(
    loss: Callable[[Any], Any], dense: Sequence[nn.Parameter], tables: Sequence[nn.Parameter], processes: Processes
) -> Iterator[Callable[[Any], Any]]:
    """A loss whose backward leaves the mean gradient of all processes in each of them; for one process, `loss`.

    Dense gradients are averaged by PyTorch's DistributedDataParallel, which sends them in buckets while the backward
    still runs. It is given the parameters that are trained and no others, so frozen experts and the model's buffers
    (text vectors) are never sent. A table with a sparse gradient is left out of it: DDP would want that gradient dense
    on NCCL. The rows of such a table that a step has touched are gathered instead, as indices and values.

    Args:
        loss: of a batch; its parameters are those of `dense` and `tables`, used alike in every step.
        dense: parameters with dense gradients; start values become those of the first process.
        tables: parameters with sparse gradients, likewise.
        processes: of the run.
    """
    if processes.alone or not (dense or tables):
        yield loss
        return
    processes.same_values(tables)
    shared = DistributedDataParallel(_Loss(loss, dense), static_graph=True) if dense else loss
    hooks = [table.register_post_accumulate_grad_hook(_RowsOfAll(processes)) for table in tables]
    try:
        yield shared
    finally:
        for hook in hooks:
            hook.remove()


class _Loss(nn.Module):
    """A loss as DDP wants it: a module whose parameters are the trained ones, and nothing else of the model."""

    def __init__(self, loss: Callable[[Any], Any], parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._loss = loss

    def forward(self, interaction: Any) -> Any:
        """The loss of a batch."""
        return self._loss(interaction)


class _RowsOfAll:
    """Replaces the sparse gradient of a table by the mean over the processes: the rows of each, with repeats."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def __call__(self, table: Tensor) -> None:
        assert table.grad is not None, "called once a gradient is there"
        own = table.grad.coalesce()
        rows = self._processes.concatenated(own.indices()[0])
        values = self._processes.concatenated(own.values()) / self._processes.world
        table.grad = torch.sparse_coo_tensor(rows[None], values, table.shape).coalesce()
