"""Files that are written whole or not at all."""

from __future__ import annotations

import glob
import os
import uuid
from collections.abc import Callable
from pathlib import Path

from .errors import InputError

__all__ = ["left_over", "make_folder", "write_text", "write_whole"]

_TEMPORARY = ".{}.{}.tmp"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is whole or not there.

    Raises:
        InputError: if the folder cannot be made or written into.
    """
    make_folder(path.parent, str(path))
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is no file; name one")
    temporary = path.with_name(_TEMPORARY.format(path.name, uuid.uuid4().hex))  # not mkstemp: its files are private
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def left_over(path: Path) -> list[Path]:
    """Temporary files of `write_whole` beside `path`: of a run that was killed, or of one that is writing now."""
    return sorted(path.parent.glob(_TEMPORARY.format(glob.escape(path.name), "*")))


def make_folder(folder: Path, what: str) -> None:
    """Make a folder, and those above it, if they are not there.

    Args:
        folder: the folder.
        what: what it is for, in the error: a file or a config key.

    Raises:
        InputError: if it cannot be made or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{what}: the folder {folder} cannot be made ({error.strerror}); name another one") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{what}: the folder {folder} cannot be written into; name another one")


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
