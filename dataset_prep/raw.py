"""Raw files as a stream of records: JSON lines, CSV and its relatives, Parquet; plain, .gz or .zst.

Memory does not grow with the file. Nothing is skipped: a line that cannot be read ends the reading with its number.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from .errors import InputError
from .pick import pick

__all__ = ["CSV", "FORMATS", "Dialect", "Record", "expand", "extra", "format_of", "open_text", "records"]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Dialect:
    """How the lines of a text table are cut; JSON lines and Parquet need none of it but the encoding.

    Attributes:
        separator: between columns; of more than one character as in MovieLens 1M (``::``), there are no quotes then.
        names: of the columns, where the file has no header.
        quotes: whether a column may be wrapped in double quotes (CSV), or a double quote is a letter like any other.
        encoding: of the file.
    """

    separator: str = ","
    names: tuple[str, ...] | None = None
    quotes: bool = True
    encoding: str = "utf-8"


CSV = Dialect()
READ_BYTES = 1 << 17


def expand(paths: Sequence[Path]) -> list[Path]:
    """Files themselves, and in place of a folder (as Spark writes it) its Parquet files in the order of their names.

    Raises:
        InputError: if a path does not exist, or a folder holds no Parquet file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            parts = sorted(path.rglob("*.parquet"))
            if not parts:
                raise InputError(f"{path}: a folder without *.parquet files; name the files themselves")
            files += parts
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist; name a raw file, or fetch it with --download")
    return files


def format_of(path: Path) -> str:
    """The word of `FORMATS` for a file, from its name without .gz or .zst; anything unknown is a text table."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in _OPENERS]
    ending = suffixes[-1] if suffixes else ""
    return {".json": "json", ".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}.get(ending, "csv")


def records(
    path: Path, dialect: Dialect = CSV, format_: str | None = None, wanted: Sequence[str] | None = None
) -> Iterator[Record]:
    """The records of a file, in order; a column that a record does not have is not in its mapping.

    Args:
        path: the file.
        dialect: how its lines are cut.
        format_: a word of `FORMATS`; default: from the file's name.
        wanted: columns that will be used; a Parquet file is read no further than these.

    Raises:
        InputError: with file and line, if a record cannot be read, or a compressed file is cut short.
    """
    yield from pick(FORMATS, format_ or format_of(path), "format")(path, dialect, wanted)


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """A text file, decompressed on the way; newlines inside quotes stay as they are.

    Raises:
        InputError: on a broken or shortened compressed file, or on bytes that are not of this encoding.
    """
    opener = _OPENERS.get(path.suffix.lower(), _open_plain)
    try:
        with opener(path) as binary, io.TextIOWrapper(binary, encoding=encoding, newline="") as text:
            yield text
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {encoding}: {error}; convert the file") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: the compressed file is broken or cut short ({error}); fetch it again") from error


def extra(module: str) -> Any:
    """An optional package of the extra `prepare`.

    Raises:
        InputError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise InputError(f'{package} is not installed; pip install -e ".[prepare]" in the clone') from error


def _open_plain(path: Path) -> IO[bytes]:
    return path.open("rb")


def _open_gzip(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb"))


def _open_zstandard(path: Path) -> IO[bytes]:
    return cast(IO[bytes], io.BufferedReader(_ZstandardFrames(path, extra("zstandard")), READ_BYTES))


class _ZstandardFrames(io.RawIOBase):
    """All frames of a file; the library's own reader says nothing of a last frame that is cut short."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        super().__init__()
        self.file, self.zstandard = path.open("rb"), zstandard
        self.frame: Any = None
        self.left, self.ready = b"", b""  # compressed bytes of the next frame, and decompressed ones

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            compressed = self.left or self.file.read(READ_BYTES)
            self.left = b""
            if not compressed:
                if self.frame is not None:
                    raise EOFError("the last frame does not end")
                return 0
            self.frame = self.frame or self.zstandard.ZstdDecompressor().decompressobj()
            try:
                self.ready = self.frame.decompress(compressed)
            except self.zstandard.ZstdError as error:
                raise EOFError(str(error)) from error
            if self.frame.eof:
                self.left, self.frame = self.frame.unused_data, None
        block, self.ready = self.ready[: len(buffer)], self.ready[len(buffer) :]
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        self.file.close()
        super().close()


_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {".gz": _open_gzip, ".zst": _open_zstandard}


def _json_lines(path: Path, dialect: Dialect, wanted: Sequence[str] | None) -> Iterator[Record]:
    """One object a line; in Amazon's metadata of 2014 and in the Steam dump a Python literal, with single quotes."""
    with open_text(path, dialect.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = ast.literal_eval(line) if line.startswith(_LITERAL) else _decode(line)
            except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
                what = f"{path}, line {number}: neither a JSON object nor a Python literal ({error})"
                raise InputError(f"{what}; repair the line, or fetch the file again if it is the last one") from error
            if not isinstance(record, dict):
                raise InputError(f"{path}, line {number}: {type(record).__name__} instead of an object")
            yield record


_decode = json.JSONDecoder().decode  # json.loads without its checks of the arguments
_LITERAL = ("{'", "{u'", '{u"')


def _table(path: Path, dialect: Dialect, wanted: Sequence[str] | None) -> Iterator[Record]:
    with open_text(path, dialect.encoding) as file:
        lines = _split_lines(file, dialect) if len(dialect.separator) > 1 else _csv_lines(path, file, dialect)
        names = list(dialect.names) if dialect.names else None
        for number, row in lines:
            if names is None:
                names = [name.removeprefix("\ufeff").strip() for name in row]
                continue
            if len(row) != len(names):
                raise InputError(
                    f"{path}, line {number}: {len(row)} columns instead of {len(names)} ({', '.join(names)}); "
                    "repair the line, or name the right --separator"
                )
            yield dict(zip(names, row, strict=True))


def _csv_lines(path: Path, file: IO[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    quoted: Any = csv.QUOTE_MINIMAL if dialect.quotes else csv.QUOTE_NONE
    reader = csv.reader(file, delimiter=dialect.separator, quoting=quoted, strict=dialect.quotes)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: {error}; repair it") from error


def _split_lines(file: IO[str], dialect: Dialect) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, start=1):
        if line := line.rstrip("\r\n"):
            yield number, line.split(dialect.separator)


def _parquet(path: Path, dialect: Dialect, wanted: Sequence[str] | None) -> Iterator[Record]:
    parquet = extra("pyarrow.parquet")
    pyarrow = extra("pyarrow")
    try:
        file = parquet.ParquetFile(path)
        columns = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
        for batch in file.iter_batches(batch_size=20_000, columns=columns):
            yield from batch.to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a Parquet file that can be read ({error})") from error


FORMATS: dict[str, Callable[[Path, Dialect, Sequence[str] | None], Iterator[Record]]] = {
    "json": _json_lines,
    "csv": _table,
    "parquet": _parquet,
}
