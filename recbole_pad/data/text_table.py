"""Item text vectors in RecBole's item order, read from a memory map after every check has passed.

A pair of files, `.npy` and `.json` manifest, is either made by `encode_items` or brought by the user
(``text_encoder: file:PATH.npy``). Row r of the `.npy` is item ``manifest["items"][r]``. Joint vectors
(``text_encoder: minilm+tfidf``) are several such pairs, one for each part.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from recbole_pad.data.text_cache import MappedVectors, cache_file, transformed_on_disk
from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.dataset_prep.encode_text import (
    MANIFEST_FORMAT,
    check_vectors,
    encode_items,
    encoding_alone,
    vector_files,
)
from recbole_pad.dataset_prep.item_texts import ItemFile, items_without_line, read_item_texts, text_columns, text_digest
from recbole_pad.dataset_prep.text_encoders import encoder_parts
from recbole_pad.distributed import ALONE, Processes
from recbole_pad.errors import InputError
from recbole_pad.nn.text_transforms import Joint, Rows, parse_spec, specs_of_parts, transform_text

__all__ = ["JointTextTable", "TextTable", "find_text_table", "open_text_table"]

log = logging.getLogger(__name__)

OWN_FILE = "file:"
_MANY_UNUSED = 2  # times the items of the dataset: so many lines of the `.item` file are worth a word
DTYPES = ("float16", "float32", "float64")
OWN_MANIFEST = (
    "beside {npy} there must be {json} that names the item of each row; two lines of Python write it:\n"
    "  import json\n"
    '  json.dump({{"items": item_tokens}}, open("{json}", "w"))  # item_tokens[r]: a str, the item of row r'
)


@dataclass(frozen=True, eq=False)
class TextTable:
    """Where the text vector of each item is. Holds no open file, so it can be pickled.

    Attributes:
        path: the `.npy` file.
        rows: row of each item id of RecBole, shape (V,), int64; -1 for padding, item 0, and for items of which the
            `.item` file says nothing: they get the mean of all rows, like an empty text.
        width: D, numbers per vector.
        fingerprint: sha256 (hex) of the file.
        manifest: the manifest without its list of items.
        stat: size and time stamp of the file when it was checked; a changed file is hashed again.
    """

    path: Path
    rows: NDArray[np.int64]
    width: int
    fingerprint: str
    manifest: Mapping[str, Any]
    stat: tuple[int, int]

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Read the vectors of all items.

        Returns:
            Text vectors, shape (V, D), on the CPU; row 0, padding, is zero.

        Raises:
            InputError: if the file is no longer the one that was checked.
        """
        vectors = self.in_item_order()
        table = torch.zeros(vectors.shape, dtype=dtype)
        block = 16_384
        for start in range(1, len(self.rows), block):
            table[start : start + block] = torch.from_numpy(vectors[start : start + block]).to(dtype)
        return table

    def transformed(self, spec: str, memory_mb: float) -> Tensor | MappedVectors:
        """The transformed vectors of all items, in memory if they fit, else in a file that is read row by row.

        Args:
            spec: config key `text_transform`, see `transform_text`.
            memory_mb: the size in MB (float32, width D or K) up to which they are kept in memory.

        Returns:
            float32, shape (V, D'), row 0 zero: a tensor, or vectors on disk (see `recbole_pad.data.text_cache`), which
            are made on the first call and checked on every later one.

        Raises:
            InputError: if the file is no longer the one that was checked, or as `transformed_on_disk`.
        """
        return _transformed(self, self.in_item_order(np.float32), spec, memory_mb)

    def stays_on_disk(self, spec: str, memory_mb: float) -> bool:
        """Whether `transformed` gives vectors on disk; arguments as there."""
        return _bytes(self, spec) > memory_mb * 1e6

    def in_item_order(self, dtype: DTypeLike | None = None) -> Rows:
        """The file's rows in the order of RecBole's items, shape (V, D), without row 0; read in slices.

        Raises:
            InputError: if the file is no longer the one that was checked.
        """
        if not self.path.is_file():
            raise InputError(f"text vectors {self.path} are gone; make them again or restore the file")
        if _stat(self.path) != self.stat and file_sha256(self.path) != self.fingerprint:
            raise InputError(
                f"text vectors {self.path} have changed since they were checked (sha256 expected "
                f"{self.fingerprint[:16]}...); restore the file, or load the dataset again"
            )
        vectors = _memory_map(self.path, f"restore {self.path}")
        return _Reordered(vectors, self.rows, vectors.dtype.newbyteorder("=") if dtype is None else dtype)


@dataclass(frozen=True, eq=False)
class JointTextTable:
    """Several tables of the same items side by side; as `TextTable`, which see for what is said here in short.

    Attributes:
        parts: the tables, in the order of config key `text_encoder`.
    """

    parts: tuple[TextTable, ...]

    @property
    def path(self) -> Path:
        """The file of the first part; transformed joint vectors are kept beside it."""
        return self.parts[0].path

    @property
    def width(self) -> int:
        """Numbers per vector, of all parts."""
        return sum(part.width for part in self.parts)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Row of each item in the file of each part, shape (V, P); -1 for padding."""
        return np.stack([part.rows for part in self.parts], axis=1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) of the fingerprints of the parts, in their order."""
        return hashlib.sha256(" ".join(part.fingerprint for part in self.parts).encode()).hexdigest()

    @property
    def manifest(self) -> Mapping[str, Any]:
        """The manifests of the parts."""
        return {"parts": [part.manifest for part in self.parts]}

    def read(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The vectors of all items, not transformed, but all parts of the mean squared length of the first one.

        Returns:
            Text vectors, shape (V, D), on the CPU; row 0, padding, is zero.

        Raises:
            InputError: if a file is no longer the one that was checked.
        """
        return transform_text(self._side_by_side(), "none").to(dtype)

    def transformed(self, spec: str, memory_mb: float) -> Tensor | MappedVectors:
        """The transformed vectors of all items; `spec`: one for all parts, or one per part ("whiten+unit")."""
        return _transformed(self, self._side_by_side(), spec, memory_mb)

    def stays_on_disk(self, spec: str, memory_mb: float) -> bool:
        """Whether `transformed` gives vectors on disk; arguments as there."""
        specs = specs_of_parts(spec, len(self.parts))
        return sum(_bytes(part, own) for part, own in zip(self.parts, specs, strict=True)) > memory_mb * 1e6

    def _side_by_side(self) -> Joint:
        return Joint([part.in_item_order(np.float32) for part in self.parts])


def _transformed(
    table: TextTable | JointTextTable, vectors: Rows | Joint, spec: str, memory_mb: float
) -> Tensor | MappedVectors:
    if not table.stays_on_disk(spec, memory_mb):
        return transform_text(vectors, spec)
    digest = hashlib.sha256(np.ascontiguousarray(table.rows).tobytes())
    digest.update(f"{table.fingerprint} {spec}".encode())
    key = digest.hexdigest()
    return transformed_on_disk(vectors, spec, cache_file(table.path, spec, key), key)


def _bytes(table: TextTable, spec: str) -> int:
    """Of the transformed vectors, at most, in float32."""
    (own,) = specs_of_parts(spec, 1)
    _, k = parse_spec(own, table.width)
    return len(table.rows) * (k or table.width) * 4


class _Reordered:
    """Rows of a memory map in another order, read in slices; row -1 is the mean of all.

    Args:
        vectors: shape (n, D).
        rows: row of `vectors` for each row of this table, shape (V,).
        dtype: of the slices.
    """

    ndim = 2

    def __init__(self, vectors: NDArray[Any], rows: NDArray[np.int64], dtype: DTypeLike) -> None:
        self._vectors, self._rows, self._dtype = vectors, rows, dtype
        self.shape = (len(rows), vectors.shape[1])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        own = self._rows[rows]
        vectors = self._vectors[own].astype(self._dtype)
        if (own < 0).any():
            vectors[own < 0] = self._mean
        return vectors

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        block = 16_384
        sums = [self._vectors[n : n + block].sum(axis=0, dtype=np.float64) for n in range(0, len(self._vectors), block)]
        return np.sum(sums, axis=0) / max(len(self._vectors), 1)


def find_text_table(
    dataset_name: str,
    item_file: ItemFile,
    tokens: Sequence[str],
    *,
    text_encoder: str,
    text_fields: Sequence[str],
    folder: Path,
    show_progress: bool = False,
    processes: Processes = ALONE,
) -> TextTable | JointTextTable:
    """Open the text vectors of a dataset; make them first if there are none.

    Args:
        dataset_name: RecBole's name of the dataset.
        item_file: its `.item` file; not read for ``file:PATH``.
        tokens: V item tokens in RecBole's order, ``dataset.field2id_token[...]``; the first is "[PAD]".
        text_encoder: a word of `TEXT_ENCODERS`, a sentence-transformers name, a folder, ``file:PATH.npy``, or several
            of them, joined by "+": the parts of joint vectors.
        text_fields: columns of `item_file` that make the text, or ``["auto"]`` (`text_columns`).
        folder: where vectors are looked for and written.
        show_progress: draw a progress bar, if vectors are made.
        processes: of the run; each of them makes this call, encodes a share of the texts, and the first one writes.

    Raises:
        InputError: if most items have no line in `item_file`, or the files fail a check of `open_text_table`.
    """
    names = encoder_parts(text_encoder)
    encoders = [name for name in names if not name.startswith(OWN_FILE)]
    source = None
    if encoders:
        source = _Source.read(dataset_name, item_file, tokens, encoders, text_fields, Path(folder))

    def find(name: str) -> TextTable:
        if source is None or name.startswith(OWN_FILE):
            return _own_table(name, tokens)
        return _encoded_table(source, tokens, name, show_progress, processes)

    parts = [find(name) for name in names]
    return parts[0] if len(parts) == 1 else JointTextTable(tuple(parts))


@dataclass(frozen=True)
class _Source:
    """What vectors are made of, and where they are kept; fields as the arguments of `find_text_table`.

    Attributes:
        encoders: the parts of `text_encoder` that encode.
        texts: of all items of the file.
        without_text: items that have no line there.
    """

    dataset_name: str
    item_file: ItemFile
    encoders: Sequence[str]
    text_fields: Sequence[str]
    folder: Path
    texts: Mapping[str, str]
    without_text: Sequence[str]

    @classmethod
    def read(
        cls,
        dataset_name: str,
        item_file: ItemFile,
        tokens: Sequence[str],
        encoders: Sequence[str],
        text_fields: Sequence[str],
        folder: Path,
    ) -> _Source:
        """Find the columns and read the file."""
        columns = text_columns(item_file, text_fields)
        texts = read_item_texts(item_file, columns)
        absent = items_without_line(item_file, texts, [str(token) for token in tokens[1:]])
        return cls(dataset_name, item_file, encoders, columns, folder, texts, absent)

    @cached_property
    def digest(self) -> str:
        """`text_digest` of the texts, the same for all encoders."""
        return text_digest(self.texts)

    def encode_command(self) -> str:
        """The command that makes the files of all encoders again; it names what is not a default of `encode`."""
        encoder = "+".join(self.encoders)
        words = ["recbole-pad", "encode", f"--dataset={self.dataset_name}", f"--text_encoder={encoder}"]
        key = "text_template" if "{" in self.text_fields[0] else "text_fields"
        words.append(f"--{key}={','.join(self.text_fields)}")  # the default of `encode` is the dataset's own
        optional = {
            "data_path": (str(self.item_file.path.parent.parent), "dataset"),
            "text_vectors_dir": (str(self.folder), "text_vectors"),
            "item_field": (self.item_file.item_field, "item_id"),
            "field_separator": (self.item_file.separator, "\t"),
        }
        words += [f"--{key}={value}" for key, (value, default) in optional.items() if value != default]
        return shlex.join(words)


def _own_table(name: str, tokens: Sequence[str]) -> TextTable:
    npy = Path(name.removeprefix(OWN_FILE)).expanduser()
    remedy = OWN_MANIFEST.format(npy=npy, json=npy.with_suffix(".json"))
    return open_text_table(npy, tokens, expected_digest=None, rebuild=remedy)


def _encoded_table(
    source: _Source,
    tokens: Sequence[str],
    text_encoder: str,
    show_progress: bool,
    processes: Processes,
) -> TextTable:
    npy, manifest_file = vector_files(source.folder, source.dataset_name, text_encoder, source.text_fields)

    def are_absent() -> bool:
        return processes.from_first(lambda: not manifest_file.is_file())

    if are_absent():
        with encoding_alone(npy) if processes.is_first else nullcontext():
            if are_absent():  # still, after another run of this machine has had its turn
                log.info("no text vectors in %s: encoding %d items with %s", npy, len(source.texts), text_encoder)
                if len(source.texts) > _MANY_UNUSED * len(tokens):
                    log.warning(
                        "%s: all %d items are encoded, %d of them are in the dataset; without the other lines it takes "
                        "less time",
                        source.item_file,
                        len(source.texts),
                        len(tokens) - 1,
                    )
                encode_items(
                    source.item_file,
                    source.folder,
                    source.dataset_name,
                    text_encoder=text_encoder,
                    text_fields=source.text_fields,
                    show_progress=show_progress,
                    team=processes,
                )
    processes.wait()
    return open_text_table(
        npy,
        tokens,
        expected_digest=source.digest,
        expected_encoder=text_encoder,
        expected_fields=source.text_fields,
        without_text=source.without_text,
        rebuild=source.encode_command(),
    )


def open_text_table(
    npy: Path,
    tokens: Sequence[str],
    *,
    expected_digest: str | None,
    expected_encoder: str | None = None,
    expected_fields: Sequence[str] | None = None,
    without_text: Collection[str] = (),
    rebuild: str,
) -> TextTable:
    """Check a pair of vectors and manifest, and map RecBole's items to rows.

    Args:
        npy: the vectors, shape (n, D); the manifest is beside them, suffix `.json`.
        tokens: V item tokens in RecBole's order; the first is padding.
        expected_digest: `text_digest` of ALL items of the `.item` file as it is now; None for files that the
            user brought, whose manifest needs nothing but ``items``.
        expected_encoder: `text_encoder` the manifest must name; None for any.
        expected_fields: `text_fields` the manifest must name; None for any.
        without_text: items that need no row: they get the mean of all.
        rebuild: the command, or advice, that ends every message.

    Returns:
        The table; items of the file that `tokens` lacks are left out, an info message counts them.

    Raises:
        ValueError: if the first token is not "[PAD]".
        InputError: if a file is missing or unreadable, an item has no row, a row is NaN, infinite or zero, or
            file, manifest and expectation disagree.
    """
    if len(tokens) == 0 or str(tokens[0]) != "[PAD]":
        raise ValueError("tokens must be in RecBole's order, tokens[0] == '[PAD]'")
    npy = Path(npy)
    manifest_file = npy.with_suffix(".json")
    remedy = f"make the vectors again: {rebuild}" if expected_digest is not None else rebuild
    manifest = _read_manifest(npy, manifest_file, remedy)
    if expected_digest is not None:
        expected: dict[str, Any] = {"format": MANIFEST_FORMAT, "text_encoder": expected_encoder}
        expected["text_fields"] = None if expected_fields is None else list(expected_fields)
        for key, value in expected.items():
            if value is not None and manifest.get(key) != value:
                _disagree(manifest_file, key, manifest.get(key), value, remedy)
        if manifest.get("text_digest") != expected_digest:
            raise InputError(
                f"the texts of the items have changed since {npy} was made (text_digest "
                f"{str(manifest.get('text_digest'))[:16]}, now {expected_digest[:16]}); {remedy}"
            )

    stat = _stat(npy)
    vectors = _memory_map(npy, remedy)
    items: list[str] = manifest.pop("items")
    n_rows, width = vectors.shape
    if len(items) != n_rows:
        raise InputError(f"{npy} has {n_rows} rows, but {manifest_file} names {len(items)} items; {remedy}")
    found = {
        "n_items": n_rows,
        "width": width,
        "dtype": str(vectors.dtype),
        "vectors_sha256": file_sha256(npy),
    }
    for key, value in found.items():
        if (expected_digest is not None or key in manifest) and manifest.get(key) != value:
            _disagree(npy, key, value, manifest.get(key), remedy)

    rows = _rows_of(tokens, items, without_text, npy, manifest_file, remedy)
    order = np.argsort(rows, kind="stable")  # read the file front to back
    order = order[rows[order] >= 0]
    check_vectors(vectors, [str(tokens[i]) for i in order], str(npy), remedy, rows=rows[order])
    n_extra = n_rows - len(order)
    if n_extra:
        log.info("%s: %d of %d items are not in the dataset and are left out", npy, n_extra, n_rows)
    return TextTable(npy, rows, width, found["vectors_sha256"], manifest, stat)


def _rows_of(
    tokens: Sequence[str],
    items: list[str],
    without_text: Collection[str],
    npy: Path,
    manifest_file: Path,
    remedy: str,
) -> NDArray[np.int64]:
    row = {item: r for r, item in enumerate(items)}
    if len(row) < len(items):
        twice = sorted({item for r, item in enumerate(items) if row[item] != r})
        raise InputError(f"{manifest_file}: {_count(twice, len(row))} are named more than once; {remedy}")
    row |= dict.fromkeys(without_text, -1)
    absent = [str(token) for token in tokens[1:] if str(token) not in row]
    if absent:
        raise InputError(f"{npy}: {_count(absent, len(tokens) - 1)} have no vector; {remedy}")
    return np.array([-1, *(row[str(token)] for token in tokens[1:])], dtype=np.int64)


def _read_manifest(npy: Path, manifest_file: Path, remedy: str) -> dict[str, Any]:
    if npy.suffix != ".npy":
        raise InputError(f"text vectors {npy}: the file must be a .npy, shape (items, width); {remedy}")
    for path, what in ((npy, "text vectors"), (manifest_file, "manifest of the text vectors")):
        if not path.is_file():
            raise InputError(f"{what}: {path} does not exist; {remedy}")
    try:
        manifest: Any = json.loads(manifest_file.read_text(encoding="utf-8"))
    except ValueError as error:  # bad JSON, or not UTF-8
        raise InputError(f"{manifest_file} is not JSON: {error}; {remedy}") from error
    items = manifest.get("items") if isinstance(manifest, dict) else None
    if (
        not isinstance(manifest, dict)
        or not isinstance(items, list)
        or not all(type(item) in (str, int) for item in items)
    ):
        raise InputError(f'{manifest_file} must be an object with "items", a list of item tokens; {remedy}')
    manifest["items"] = [str(item) for item in items]
    return manifest


def _memory_map(npy: Path, remedy: str) -> np.memmap[Any, Any]:
    try:
        vectors = np.load(npy, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:  # truncated, not a .npy, or holding Python objects
        raise InputError(f"{npy} is not a whole .npy file of numbers: {error}; {remedy}") from error
    if not isinstance(vectors, np.memmap) or vectors.ndim != 2 or vectors.dtype.newbyteorder("=").name not in DTYPES:
        shape, dtype = getattr(vectors, "shape", None), getattr(vectors, "dtype", None)
        raise InputError(
            f"{npy} has shape {shape} and type {dtype}; expected (items, width) "
            f"and one of {', '.join(DTYPES)}; {remedy}"
        )
    return vectors


def _disagree(path: Path, key: str, came: object, expected: object, remedy: str) -> None:
    raise InputError(f"{path}: {key} is {came!r}, expected {expected!r}; {remedy}")


def _count(tokens: list[str], total: int) -> str:
    examples = ", ".join(map(repr, tokens[:3])) + (", ..." if len(tokens) > 3 else "")
    return f"{len(tokens)} of {total} items ({examples})"


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
