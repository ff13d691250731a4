"""The files that a run reads, by what they hold: a result of other data, vectors or code is another result."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from recbole_pad.backbone_classes import own_files
from recbole_pad.checkpoint import file_digest
from recbole_pad.data.text_table import OWN_FILE
from recbole_pad.dataset_prep.text_encoders import encoder_parts


def input_digests(folder: Path, dataset: str, text_encoder: Any, backbone: Any) -> dict[str, str | None]:
    """sha256 of a dataset's files, and of the user's own text vectors and backbone; None for a file not there.

    Args:
        folder: where `<dataset>.inter` and `<dataset>.item` lie.
        dataset: its name.
        text_encoder: the config key, or a list of its values; files are those named ``file:PATH``.
        backbone: the config key; files are those of an own class.

    Returns:
        the digests, by what the file is in the config.
    """
    files = {kind: folder / f"{dataset}.{kind}" for kind in ("inter", "item")}
    named = text_encoder if isinstance(text_encoder, list) else [text_encoder or ""]
    for part in (part for name in named if name for part in encoder_parts(str(name))):
        if part.startswith(OWN_FILE):
            files[f"text_encoder {part}"] = Path(part.removeprefix(OWN_FILE)).expanduser()
    for file in own_files(str(backbone or "")):
        files[f"backbone {file.name}"] = file
    return {name: _digest_of(file) for name, file in files.items()}


def _digest_of(file: Path) -> str | None:
    if not file.is_file():
        return None
    stat = file.stat()
    return _digest_as_of(file, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_as_of(file: Path, size: int, modified: int) -> str:
    return file_digest(file)
