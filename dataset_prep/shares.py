"""Texts encoded in shards that are kept on disk, shared out over processes, for encoders that take each text by itself.

A run that is killed, at any moment, continues with the shards that it has finished.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .encoders.base import PerTextEncoder, Vectors, package_version
from .errors import InputError
from .files import write_whole
from .text_encoders import text_encoder

__all__ = ["BATCHES_PER_SHARD", "Alone", "Shards", "Team", "encode_shared", "threads_of_each"]

T = TypeVar("T")
BATCHES_PER_SHARD = 16  # what is lost when a run is killed, at most, for each process


class Team(Protocol):
    """Processes that call `encode_shared` together, each with the same texts and with the same folder in sight."""

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


class Shards:
    """The vectors of distinct texts, the longest texts first, in files of equally many texts.

    The folder's name holds a digest of the encoder, its settings and the texts: shards of anything else are not taken
    for their own.

    Args:
        stem: path of the folder without that digest.
        model: what makes the vectors.
        texts: n texts; each distinct one has its vector in one shard.
        size: distinct texts per shard, at least 1.
    """

    def __init__(self, stem: Path, model: PerTextEncoder, texts: Sequence[str], size: int) -> None:
        self._texts = sorted(dict.fromkeys(texts), key=lambda text: (-len(text), text))
        self._size = size
        what = [model.name, model.revision, model.pooling, model.prompt, dict(model.details), size]
        versions = [package_version(package) for package in model.packages]
        digest = hashlib.sha256(json.dumps([what, versions], sort_keys=True).encode())
        for text in self._texts:
            digest.update(f"{len(text)}:{text}".encode())
        self.folder = stem.with_name(f"{stem.name}.shards-{digest.hexdigest()[:16]}")

    def __len__(self) -> int:
        return -(-len(self._texts) // self._size)

    @property
    def distinct(self) -> list[str]:
        """All distinct texts, in the order of the shards."""
        return self._texts

    def texts(self, number: int) -> list[str]:
        """The texts of a shard."""
        return self._texts[number * self._size : (number + 1) * self._size]

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of the shards that are not there."""
        return [number for number in numbers if not self._file(number).is_file()]

    def write(self, number: int, vectors: Vectors) -> None:
        """Keep a shard, whole or not at all."""

        def save(path: Path) -> None:
            with path.open("wb") as file:
                np.save(file, np.asarray(vectors, dtype=np.float32), allow_pickle=False)

        write_whole(self._file(number), save)

    def read(self, number: int) -> Vectors:
        """A shard; shape (its texts, D).

        Raises:
            InputError: if it is not what was written.
        """
        try:
            vectors: Vectors = np.load(self._file(number), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{self._file(number)} is gone or damaged ({error}); delete the folder and encode again"
            ) from error
        if vectors.ndim != 2 or len(vectors) != len(self.texts(number)):
            raise InputError(f"{self._file(number)} has shape {vectors.shape}; delete the folder and encode again")
        return vectors

    @property
    def width(self) -> int:
        """D."""
        return int(self.read(0).shape[1])

    def fill(self, out: NDArray[Any], texts: Sequence[str]) -> None:
        """Write the vector of each text into its row; zero rows stay zero.

        Args:
            out: shape (n, D), an array or a memory map.
            texts: the n texts.
        """
        place = {text: at for at, text in enumerate(self._texts)}
        places = np.array([place[text] for text in texts], dtype=np.int64)
        rows = np.argsort(places, kind="stable")
        ends = np.searchsorted(places[rows], np.arange(len(self) + 1) * self._size)
        for number in range(len(self)):
            own = rows[ends[number] : ends[number + 1]]
            with np.errstate(over="ignore"):  # beyond float16: infinite, and refused
                out[own] = self.read(number)[places[own] - number * self._size]

    def remove(self) -> None:
        """Delete the folder, and those of the same name for other texts and settings."""
        stem = self.folder.name.rpartition("-")[0]
        for folder in self.folder.parent.glob("*.shards-*"):
            if folder.name.rpartition("-")[0] == stem:
                shutil.rmtree(folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.npy"


def encode_shared(
    model: PerTextEncoder,
    name: str,
    shards: Shards,
    batch_size: int,
    show_progress: bool,
    nproc: int = 1,
    team: Team | None = None,
) -> bool:
    """Encode the shards that are not there yet, with several processes.

    Args:
        model: the encoder, loaded.
        name: its name, for `text_encoder`.
        shards: of the texts, the same ones in every process of a team.
        batch_size: texts per forward pass.
        show_progress: draw a progress bar of this process's shards, with texts per second and the time left.
        nproc: processes of this machine, this one among them; the others are started and load the encoder.
        team: processes that are there already, on one machine or on several that share the folder; give either this or
            `nproc`.

    Returns:
        Whether this is the first process, in which all shards are there now.

    Raises:
        InputError: if a process that was started dies, as in an encoder that does not fit into memory twice, or if the
            first process of a team does not see the shards of the others.
    """
    group = team or Alone()
    todo = shards.missing(range(len(shards)))
    if nproc > 1 and len(todo) > 1:
        _with_processes(model, name, shards, todo, batch_size, show_progress, nproc)
    else:
        # which ones are there may change under the eyes of a slower process: shared out by number, not by what is left
        own = sorted(set(todo) & set(range(group.rank, len(shards), group.world)))
        _encode(model, shards, own, batch_size, show_progress and group.rank == 0)
    if group.objects_at_first(None) is None:  # and so the first one waits for the others
        return False
    if missing := shards.missing(range(len(shards))):
        raise InputError(
            f"{shards.folder}: {len(missing)} of {len(shards)} shards are not there, though every process has "
            "finished; text_vectors_dir must be a folder that all machines share"
        )
    return True


def _encode(
    model: PerTextEncoder, shards: Shards, numbers: Sequence[int], batch_size: int, show_progress: bool
) -> None:
    from tqdm import tqdm

    total = sum(len(shards.texts(number)) for number in numbers)
    with tqdm(total=total, unit=" texts", desc="encoding", disable=not show_progress) as bar:
        for number in numbers:
            texts = shards.texts(number)
            shards.write(number, model.encode_each(texts, batch_size))
            bar.update(len(texts))


def _with_processes(
    model: PerTextEncoder,
    name: str,
    shards: Shards,
    todo: Sequence[int],
    batch_size: int,
    show_progress: bool,
    nproc: int,
) -> None:
    """This process encodes the first share with the model it has; the others load the model."""
    pool = ProcessPoolExecutor(
        nproc - 1, mp_context=multiprocessing.get_context("spawn"), initializer=_set_up, initargs=(nproc,)
    )
    try:
        others = [pool.submit(_encode_share, name, shards, todo[r::nproc], batch_size, r) for r in range(1, nproc)]
        _with_few_threads(nproc, lambda: _encode(model, shards, todo[::nproc], batch_size, show_progress))
        for other in others:
            other.result()
    except BrokenProcessPool as error:
        raise InputError(
            f"nproc: one of the {nproc} processes that encode was killed; often the text encoder {name!r} does not fit "
            "into memory so many times: set a smaller --nproc or --batch_size; what is finished is kept"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _set_up(nproc: int) -> None:
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads_of_each(nproc))


def _with_few_threads(nproc: int, make: Callable[[], None]) -> None:
    import torch

    before = torch.get_num_threads()
    _set_up(nproc)
    try:
        make()
    finally:
        torch.set_num_threads(before)


def _encode_share(name: str, shards: Shards, numbers: Sequence[int], batch_size: int, process: int) -> None:
    """In a process of its own, on a GPU of its own if there are enough."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(process % torch.cuda.device_count())
    model: Any = text_encoder(name)
    _encode(model, shards, numbers, batch_size, False)


def threads_of_each(nproc: int) -> int:
    """Threads of each of `nproc` processes that share the cores this one may use; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // nproc)
