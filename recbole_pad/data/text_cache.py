"""Transformed text vectors on disk: made once, block by block, then read through a memory map.

Beside the vectors, ``<name>.<transform>.<key>.npy`` holds the transformed rows in RecBole's item order, row 0 zero, and
a `.json` of the same name its size and sha256. The key names everything that the rows are made of, so a cache is never
stale; one that is damaged is made again. The files may be deleted at any time.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.dataset_prep.files import write_whole
from recbole_pad.errors import InputError
from recbole_pad.nn.text_transforms import Joint, Vectors, transformed_blocks

log = logging.getLogger(__name__)

CACHE_FORMAT = 1


class MappedVectors:
    """A float32 table in a `.npy` file, of which only the rows that are asked for are read.

    Copies (deepcopy, pickle) share the file; an open map is not copied.

    Args:
        path: the file.
        shape: (V, D), which the file must have.
    """

    def __init__(self, path: Path, shape: tuple[int, int]) -> None:
        self.path = Path(path)
        self.shape = shape
        self._map: Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, item_ids: Tensor | None) -> Tensor:
        """Rows of the items, or the map of all, shape (n, D), on the CPU; `item_ids` may be on any device.

        Raises:
            InputError: if the file is gone or of another shape.
        """
        if self._map is None:
            self._map = self._open()
        return self._map if item_ids is None else self._map.index_select(0, item_ids.cpu())

    def _open(self) -> Tensor:
        try:
            # copy on write: nothing ever writes, but torch wants writable memory; pages stay those of the file
            table = np.load(self.path, mmap_mode="c", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(
                f"{self.path}: the transformed text vectors cannot be read ({error}); run again"
            ) from error
        if table.shape != self.shape or table.dtype != np.float32:
            raise InputError(
                f"{self.path}: has shape {table.shape} and type {table.dtype}, expected {self.shape} and float32; "
                "delete the file and run again"
            )
        return torch.from_numpy(table)

    def __deepcopy__(self, memo: dict[int, Any]) -> MappedVectors:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def cache_file(vectors_file: Path, spec: str, key: str) -> Path:
    """Where the transformed rows of a file of vectors are kept; `key` is a hex digest of what they are made of."""
    return vectors_file.with_name(f"{vectors_file.stem}.{spec.replace(':', '_')}.{key[:16]}.npy")


def transformed_on_disk(vectors: Vectors | Joint, spec: str, path: Path, key: str) -> MappedVectors:
    """The transformed rows of `vectors`, from `path` if they are there and whole, else made.

    Args:
        vectors: shape (V, D), row 0 padding; read in slices.
        spec: see `transform_text`.
        path: see `cache_file`.
        key: digest of what the rows are made of; a file of another key is not used.

    Raises:
        InputError: as `transform_text`, and if the folder cannot be written.
    """
    found = _found(path, key, len(vectors))
    if found is not None:
        return found
    log.info("writing the transformed text vectors of %d items to %s", len(vectors) - 1, path)
    return _make(vectors, spec, path, key)


def _found(path: Path, key: str, n_items: int) -> MappedVectors | None:
    """The cache, if it is there and every byte is as it was written."""
    manifest_file = path.with_suffix(".json")
    if not path.is_file() or not manifest_file.is_file():
        return None
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        fits = manifest["format"] == CACHE_FORMAT and manifest["key"] == key and manifest["n_items"] == n_items
        shape = (n_items, int(manifest["width"]))
        is_whole = fits and file_sha256(path) == manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        log.warning("%s is damaged or not what it should be; it is made again", path)
        return None
    return MappedVectors(path, shape)


def _make(vectors: Vectors | Joint, spec: str, path: Path, key: str) -> MappedVectors:
    width, blocks = transformed_blocks(vectors, spec)
    shape = (len(vectors), width)
    manifest = {"format": CACHE_FORMAT, "key": key, "text_transform": spec, "n_items": shape[0], "width": width}

    def write_rows(temporary: Path) -> None:
        out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        for start, block in blocks:  # the file starts as zeros, and so does row 0 remain
            out[start : start + len(block)] = block.numpy()
        out.flush()
        del out
        manifest["sha256"] = file_sha256(temporary)

    def write_manifest(temporary: Path) -> None:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")

    try:
        write_whole(path, write_rows)
        write_whole(path.with_suffix(".json"), write_manifest)
    except (OSError, InputError) as error:  # no room, or no folder
        raise InputError(
            f"{path}: the transformed text vectors cannot be written ({error}); make the folder writable, or raise "
            f"text_memory_mb above {shape[0] * width * 4 / 1e6:.0f} to keep them in memory"
        ) from error
    return MappedVectors(path, shape)
