"""The files that a run reads, by what they hold: a result of other data, vectors, code or weights is another result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from recbole_pad.backbone_classes import own_files
from recbole_pad.config import joined
from recbole_pad.data.text_table import OWN_FILE
from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.dataset_prep.text_encoders import encoder_parts


def input_digests(folder: Path, dataset: str, values: Callable[[str], Iterable[Any]]) -> dict[str, str | None]:
    """sha256 of a dataset's files, of the user's own text vectors and backbones, and of an initial checkpoint.

    Args:
        folder: where `<dataset>.inter` and `<dataset>.item` lie.
        dataset: its name.
        values: the values that a config key has, or may take in a search; None where it is not set.

    Returns:
        the digests, by what a file is; None for one that is not there.
    """
    files = {kind: folder / f"{dataset}.{kind}" for kind in ("inter", "item")}
    encoders = [encoder_parts(joined(value)) for value in values("text_encoder") if value]
    for part in (part for parts in encoders for part in parts if part.startswith(OWN_FILE)):
        vectors = Path(part.removeprefix(OWN_FILE)).expanduser()
        files |= {f"text_encoder {part}": vectors, f"the .json beside {part}": vectors.with_suffix(".json")}
    own = [file for value in values("backbone") if value for file in own_files(str(value))]
    files |= {f"backbone {number} ({file.name})": file for number, file in enumerate(own, start=1)}
    files |= {f"init_checkpoint {value}": Path(str(value)) for value in values("init_checkpoint") if value}
    return {name: _digest_of(file) for name, file in files.items()}


def _digest_of(file: Path) -> str | None:
    if not file.is_file():
        return None
    stat = file.stat()
    return _digest_as_of(file, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_as_of(file: Path, size: int, modified: int) -> str:
    return file_sha256(file)
