"""What every text encoder offers, and what several families share."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ..digest import file_sha256
from ..errors import InputError

__all__ = [
    "CorpusEncoder",
    "PerTextEncoder",
    "TextEncoder",
    "Vectors",
    "compute_type",
    "fill_zero_rows",
    "folder_revision",
    "package_version",
]

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
COMPUTE_TYPES = ("float32", "bfloat16", "float16")


class _Described(Protocol):
    """What every text encoder says of itself; it goes into the manifest."""

    name: str  # the config word, model name or folder
    revision: str  # changes whenever the weights or the settings change
    pooling: str  # how token states become one vector
    prompt: str  # put before each text; "" for none
    details: dict[str, Any]  # what else makes the vectors what they are, such as the token limit
    packages: tuple[str, ...]  # distributions whose versions the manifest records


class CorpusEncoder(_Described, Protocol):
    """A text encoder that learns from all texts together, so that they cannot be encoded apart."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return one row per text, in the order of `texts`, shape (n, D), float32."""
        ...


@runtime_checkable
class PerTextEncoder(_Described, Protocol):
    """A text encoder whose vector of a text depends on that text alone: shares of the texts may be encoded apart."""

    def encode_each(self, texts: Sequence[str], batch_size: int) -> Vectors:
        """Return one row per text as the model gives it, zero rows too, shape (n, D), float32."""
        ...

    def n_cut(self, texts: Sequence[str]) -> int:
        """How many of the texts are longer than the model's token limit, so that their ends are not read."""
        ...


TextEncoder = CorpusEncoder | PerTextEncoder


def fill_zero_rows(vectors: NDArray[Any], texts: Sequence[str], block_rows: int = 16_384) -> NDArray[Any]:
    """Replace all-zero rows by the mean of the others, in place; a warning counts them and shows up to 3 of the texts.

    Args:
        vectors: shape (n, D), an array or a memory map that can be written.
        texts: the n texts of the rows, for the warning.
        block_rows: rows held in memory at a time.

    Returns:
        `vectors`, without an all-zero row.

    Raises:
        InputError: if every row is zero.
    """
    blocks = [slice(start, start + block_rows) for start in range(0, len(vectors), block_rows)]
    is_zero = np.concatenate([~vectors[block].any(axis=1) for block in blocks])
    n_zero = int(is_zero.sum())
    if n_zero == 0:
        return vectors
    if n_zero == len(vectors):
        raise InputError(f"all {n_zero} texts gave an all-zero vector: they hold no word the text encoder knows")
    total = sum(vectors[block].sum(axis=0, dtype=np.float64) for block in blocks)
    vectors[is_zero] = total / (len(vectors) - n_zero)
    examples = ", ".join(repr(texts[row]) for row in np.flatnonzero(is_zero)[:3])
    log.warning(
        "%d of %d texts gave an all-zero vector and get the mean of the others: %s%s",
        n_zero,
        len(vectors),
        examples,
        ", ..." if n_zero > 3 else "",
    )
    return vectors


def compute_type(dtype: str | None) -> str:
    """The number type in which a model computes: as asked for, else bfloat16 on a GPU and float32 on a CPU."""
    if dtype is not None:
        return dtype
    import torch

    return "bfloat16" if torch.cuda.is_available() else "float32"


def folder_revision(*folders: Path) -> str:
    """Name the weights in folders: sha256[:16] of the contents of their weight files, in the order of their names."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in {".safetensors", ".bin", ".pt"}:
                digest.update(bytes.fromhex(file_sha256(path)))
    return digest.hexdigest()[:16]


def package_version(package: str) -> str:
    """Return the version of an installed distribution, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
