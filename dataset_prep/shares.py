"""Texts shared out over several processes, for text encoders whose vector of a text depends on that text alone."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

import numpy as np

from .errors import InputError
from .text_encoders import PerTextEncoder, TextEncoder, Vectors, of_distinct, text_encoder

__all__ = ["Alone", "Team", "encode_shared", "threads_of_each"]

T = TypeVar("T")


class Team(Protocol):
    """Processes that call `encode_shared` together, each with the same texts."""

    rank: int
    world: int

    def objects_at_first(self, value: T) -> list[T] | None:
        """The values of all processes in the first one, None in the others."""
        ...


class Alone:
    """A team of one."""

    rank, world = 0, 1

    def objects_at_first(self, value: T) -> list[T] | None:
        """The value."""
        return [value]


def encode_shared(
    model: TextEncoder,
    name: str,
    texts: Sequence[str],
    batch_size: int,
    show_progress: bool,
    nproc: int = 1,
    team: Team | None = None,
) -> Vectors | None:
    """Encode texts with several processes; each distinct text is encoded once, by one of them.

    An encoder that learns from all texts (tfidf) encodes them in one process.

    Args:
        model: the encoder, loaded.
        name: its name, for `text_encoder`.
        texts: n texts, the same ones in every process of a team.
        batch_size: texts per forward pass.
        show_progress: draw a progress bar, of the first share.
        nproc: processes of this machine, this one among them; the others are started and load the encoder.
        team: processes that are there already; give either this or `nproc`.

    Returns:
        Vectors, shape (n, D), float32, in the order of `texts`; None in the other processes of a team. Other batches
        are made than by one process, so values may differ from its ones by rounding.

    Raises:
        InputError: if a process that was started dies, as in an encoder that does not fit into memory twice.
    """
    group = team or Alone()
    if not isinstance(model, PerTextEncoder):
        return model.encode(texts, batch_size, show_progress) if group.rank == 0 else None

    def encode_each(distinct: list[str]) -> Vectors | None:
        if nproc > 1:
            return _with_processes(model, name, distinct, batch_size, show_progress, nproc)
        own = model.encode_each(distinct[group.rank :: group.world], batch_size, show_progress)
        shares = group.objects_at_first(own)
        return None if shares is None else _interleaved(shares, len(distinct))

    return of_distinct(texts, encode_each)


def _interleaved(shares: Sequence[Vectors], n_texts: int) -> Vectors:
    """Row r of the result is row ``r // k`` of share ``r % k``, of k shares."""
    vectors: Vectors = np.empty((n_texts, shares[0].shape[1]), dtype=np.float32)
    for rank, share in enumerate(shares):
        if len(share):
            vectors[rank :: len(shares)] = share
    return vectors


def _with_processes(
    model: PerTextEncoder, name: str, distinct: list[str], batch_size: int, show_progress: bool, nproc: int
) -> Vectors:
    """This process encodes the first share with the model it has; the others load the model."""
    pool = ProcessPoolExecutor(
        nproc - 1, mp_context=multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(nproc,)
    )
    try:
        others = [pool.submit(_encode_share, name, distinct[r::nproc], batch_size, r) for r in range(1, nproc)]
        own = _with_few_threads(nproc, lambda: model.encode_each(distinct[::nproc], batch_size, show_progress))
        return _interleaved([own, *(other.result() for other in others)], len(distinct))
    except BrokenProcessPool as error:
        raise InputError(
            f"nproc: one of the {nproc} processes that encode was killed; often the text encoder {name!r} does not fit "
            "into memory so many times: set a smaller --nproc or --batch_size"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _set_up(nproc: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads_of_each(nproc))


def _with_few_threads(nproc: int, make: Callable[[], T]) -> T:
    import torch

    before = torch.get_num_threads()
    _set_up(nproc)
    try:
        return make()
    finally:
        torch.set_num_threads(before)


def _encode_share(name: str, texts: list[str], batch_size: int, number: int) -> Vectors:
    """In a process of its own, on a GPU of its own if there are enough."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    model: Any = text_encoder(name)
    vectors: Vectors = model.encode_each(texts, batch_size, False)
    return vectors


def threads_of_each(nproc: int) -> int:
    """Threads of each of `nproc` processes that share the cores this one may use; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // nproc)
