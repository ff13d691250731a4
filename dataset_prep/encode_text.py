"""From an `.item` file to item text vectors: one `.npy` and the manifest that vouches for it.

Row r of the `.npy` belongs to ``manifest["items"][r]``; there is no padding row. Rows are in the order of the
sorted item tokens, so the order of lines in the `.item` file does not matter. The manifest binds the vectors
by their sha256 and the texts by `text_digest`; without a manifest the vectors count as absent.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from .digest import file_sha256
from .errors import InputError
from .files import left_over, make_folder, write_whole
from .item_texts import ItemFile, read_item_texts, text_columns, text_digest
from .shares import BATCHES_PER_SHARD, Alone, Shards, Team, encode_shared
from .text_encoders import PerTextEncoder, TextEncoder, fill_zero_rows, package_version
from .text_encoders import text_encoder as load_text_encoder

__all__ = [
    "MANIFEST_FORMAT",
    "check_vectors",
    "encode_items",
    "encoding_alone",
    "vector_files",
]

log = logging.getLogger(__name__)

MANIFEST_FORMAT = 1
STORED_AS = ("float32", "float16")
_LONGEST, _LONGEST_WORD = 100, 80  # letters of all fields, and of each word, in the name of a file
FOUND_OUT = ("width", "n_cut", "created")  # what a manifest says beyond texts, encoder and settings


def vector_files(folder: Path, dataset: str, text_encoder: str, text_fields: Sequence[str]) -> tuple[Path, Path]:
    """Return the paths of the vectors (`.npy`) and of their manifest (`.json`) in `folder`.

    The name is ``<dataset>-<text encoder>-<fields joined by +>``, each word with characters other than
    ``A-Za-z0-9._-`` replaced, and cut where it is long; a hash tells apart what that made equal.
    """
    fields = "+".join(map(_slug, text_fields))
    words = [_slug(dataset), _slug(text_encoder), fields if len(fields) <= _LONGEST else _slug(fields)]
    stem = Path(folder) / "-".join(words)
    return stem.with_name(stem.name + ".npy"), stem.with_name(stem.name + ".json")


def encode_items(
    item_file: ItemFile,
    folder: Path,
    dataset: str,
    *,
    text_encoder: str = "minilm",
    text_fields: Sequence[str] = ("title",),
    batch_size: int = 64,
    show_progress: bool = True,
    nproc: int = 1,
    team: Team | None = None,
    stored_as: str = "float32",
) -> Path:
    """Encode the text of every item of `item_file` and write vectors and manifest into `folder`.

    Both files are written under temporary names and moved into place, the manifest last. A run that breaks
    off leaves either the old pair, or no manifest; the next one continues with what was encoded (`Shards`). A pair of
    the same texts, encoder, settings and versions stays as it is, without a `team`; such a run waits for another one
    that makes the same files (`encoding_alone`). The same input gives the same bytes
    in the `.npy`; with other numbers of processes and threads values may differ by rounding.

    Args:
        item_file: the file.
        folder: where the two files go; made if absent.
        dataset: name of the data set, the first word of the file names.
        text_encoder: as of `text_encoders.text_encoder`.
        text_fields: columns that make the text, or one template, or ``["auto"]`` (`item_texts.text_columns`).
        batch_size: texts per forward pass.
        show_progress: draw a progress bar.
        nproc: processes that encode, this one among them; see `encode_shared`.
        team: processes that all make this call, instead of `nproc`; the first one writes.
        stored_as: number type of the file, a word of `STORED_AS`; float16 halves it.

    Returns:
        Path of the `.npy`: shape (items in the file, D), rows in the order of the sorted tokens.

    Raises:
        InputError: if the file cannot be read (`read_item_texts`), the text encoder does not load, it gives
            NaN, infinite or all-zero rows, or `folder` cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, not {batch_size}")
    if nproc < 1:
        raise InputError(f"nproc must be at least 1, not {nproc}")
    if stored_as not in STORED_AS:
        raise InputError(f"stored_as: {stored_as!r} must be one of {', '.join(STORED_AS)}")
    text_fields = text_columns(item_file, text_fields)
    texts = read_item_texts(item_file, text_fields)
    npy, manifest_file = vector_files(folder, dataset, text_encoder, text_fields)
    make_folder(npy.parent, str(npy))  # before the encoding, which may take hours

    model = load_text_encoder(text_encoder)
    items = sorted(texts)
    in_order = [texts[item] for item in items]
    manifest = {
        "format": MANIFEST_FORMAT,
        "dataset": dataset,
        "n_items": len(items),
        "width": 0,
        "dtype": stored_as,
        "text_encoder": text_encoder,
        "revision": model.revision,
        "pooling": model.pooling,
        "prompt": model.prompt,
        **model.details,
        "n_cut": 0,
        "text_fields": list(text_fields),
        "text_digest": text_digest(texts),
        "created": "",
        "versions": {package: package_version(package) for package in ("numpy", *model.packages)},
    }
    expected = {key: value for key, value in manifest.items() if key not in FOUND_OUT} | {"items": items}
    with nullcontext() if team else encoding_alone(npy):
        if team is None and _is_made(npy, manifest_file, expected):
            log.info("%s is there, of the same texts, encoder and settings: nothing to encode", npy)
            return npy
        if isinstance(model, PerTextEncoder) and (team is None or team.rank == 0):
            manifest["n_cut"] = n_cut = model.n_cut(in_order)
            if n_cut:
                log.warning(
                    "%s reads the beginnings of %d of %d texts only: they are too long", model.name, n_cut, len(items)
                )
        encoded = _encoded(model, text_encoder, npy, in_order, batch_size, show_progress, nproc, team)
        if encoded is None:  # the first process of the team has the vectors, and writes them
            return npy
        _write(npy, manifest | {"width": encoded.width}, encoded, items, in_order)
        encoded.remove()
        return npy


def _write(npy: Path, manifest: dict[str, Any], encoded: _Encoded, items: list[str], texts: list[str]) -> None:
    """Write the vectors of the items, whose texts are `texts`, and then the manifest."""
    manifest["created"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stored_as, shape = manifest["dtype"], (len(items), manifest["width"])

    def write_vectors(path: Path) -> None:
        out = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(stored_as), shape=shape)
        encoded.fill(out, texts)
        out[[not text for text in texts]] = 0  # whatever the encoder says of an empty text: the mean, like any zero row
        fill_zero_rows(out, texts)
        remedy = f"use {'' if stored_as == 'float32' else 'stored_as float32, or '}another text encoder"
        check_vectors(out, items, f"text_encoder {manifest['text_encoder']!r}", remedy)
        out.flush()
        manifest["vectors_sha256"] = file_sha256(path)
        manifest["items"] = items  # last: the rest stays readable at the top of the file
        manifest_file.unlink(missing_ok=True)  # from here until the end there is no valid pair

    def write_manifest(path: Path) -> None:
        path.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

    manifest_file = npy.with_suffix(".json")
    for path, write in ((npy, write_vectors), (manifest_file, write_manifest)):
        if left := left_over(path):
            log.warning("left by another run, delete it if that was killed: %s", ", ".join(map(str, left)))
        write_whole(path, write)


@contextmanager
def encoding_alone(npy: Path) -> Iterator[None]:
    """Hold the right to make these vectors; wait, and say so, while another process of this machine has it.

    Runs that are started together and miss the same vectors would delete each other's shards. A killed process loses
    the right; like one that fails, it leaves the empty lock file, hidden beside the vectors.

    Raises:
        InputError: if the folder cannot be made or written.
    """
    make_folder(npy.parent, str(npy))
    file = npy.with_name(f".{npy.stem}.lock")
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s is being made by another process: waiting for it", npy)
        lock.acquire()
    try:
        yield
        file.unlink(missing_ok=True)  # the vectors are there: whoever waits for this file has nothing left to do
    finally:
        lock.release()


def _is_made(npy: Path, manifest_file: Path, expected: Mapping[str, Any]) -> bool:
    """Whether both files are there and whole, and the manifest says what is expected."""
    if not (npy.is_file() and manifest_file.is_file()):
        return False
    try:
        found = json.loads(manifest_file.read_text(encoding="utf-8"))
        vectors = np.load(npy, mmap_mode="r", allow_pickle=False)
        is_same = all(found.get(key) == value for key, value in json.loads(json.dumps(expected)).items())
        is_whole = [found["n_items"], found["width"], found["dtype"]] == [*vectors.shape, vectors.dtype.name]
        return is_same and is_whole and bool(file_sha256(npy) == found["vectors_sha256"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, EOFError):  # damaged: to be made again
        return False


class _Encoded(Protocol):
    """Vectors that are ready to be written."""

    @property
    def width(self) -> int: ...

    def fill(self, out: NDArray[Any], texts: Sequence[str]) -> None:
        """Write the vector of each text into its row of `out`."""

    def remove(self) -> None:
        """Delete what was kept to make them."""


class _InMemory:
    """Vectors of all texts, in their order, shape (n, D)."""

    def __init__(self, vectors: NDArray[Any]) -> None:
        self._vectors = vectors
        self.width = int(vectors.shape[1])

    def fill(self, out: NDArray[Any], texts: Sequence[str]) -> None:
        with np.errstate(over="ignore"):  # beyond float16: infinite, and refused
            out[:] = self._vectors

    def remove(self) -> None:
        """Nothing was kept."""


def _encoded(
    model: TextEncoder,
    name: str,
    npy: Path,
    texts: list[str],
    batch_size: int,
    show_progress: bool,
    nproc: int,
    team: Team | None,
) -> _Encoded | None:
    """The vectors of all texts in the first process of a team, None in the others."""
    if isinstance(model, PerTextEncoder):
        shards = Shards(npy.with_suffix(""), model, texts, BATCHES_PER_SHARD * batch_size)
        return shards if encode_shared(model, name, shards, batch_size, show_progress, nproc, team) else None
    return _InMemory(model.encode(texts)) if (team or Alone()).rank == 0 else None


def check_vectors(
    vectors: NDArray[Any],
    tokens: Sequence[str],
    source: str,
    remedy: str,
    rows: NDArray[np.int64] | None = None,
    block_rows: int = 16_384,
) -> None:
    """Refuse NaN, infinite and all-zero rows, as float32 sees them; reads block by block.

    Args:
        vectors: shape (n, D), an array or a memory map of any float type.
        tokens: item token of each checked row.
        source: what is checked, the first words of the message.
        remedy: what to do, the last words of the message.
        rows: rows to check, `tokens[i]` is the item of row `rows[i]`; default all n.
        block_rows: rows held in memory at a time.

    Raises:
        InputError: with the count and up to 3 of the items, if there is such a row.
    """
    n_rows = len(vectors) if rows is None else len(rows)
    for what, bad in _bad_rows(vectors, rows, n_rows, block_rows).items():
        if bad:
            examples = ", ".join(repr(str(tokens[i])) for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
            raise InputError(f"{source}: {len(bad)} of {n_rows} items have {what}: {examples}; {remedy}")


def _bad_rows(
    vectors: NDArray[Any], rows: NDArray[np.int64] | None, n_rows: int, block_rows: int
) -> dict[str, list[int]]:
    not_finite: list[int] = []
    zero: list[int] = []
    for start in range(0, n_rows, block_rows):
        stop = min(start + block_rows, n_rows)
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes inf and is reported
            block = np.asarray(vectors[start:stop] if rows is None else vectors[rows[start:stop]], np.float32)
        not_finite += (start + np.flatnonzero(~np.isfinite(block).all(axis=1))).tolist()
        zero += (start + np.flatnonzero(~block.any(axis=1))).tolist()
    return {"a NaN or infinite value": not_finite, "an all-zero vector": zero}


def _slug(word: str) -> str:
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", word)
    if slug == word and len(word) <= _LONGEST_WORD:
        return word
    return f"{slug[-_LONGEST_WORD:]}-{hashlib.sha256(word.encode()).hexdigest()[:8]}"
