"""Raw files from their official addresses: resumed where they broke off, and checked where size or hash are known."""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .errors import InputError
from .files import write_whole
from .sources.source import Source

__all__ = ["KNOWN", "Known", "download", "fetch"]

log = logging.getLogger(__name__)

BLOCK = 1 << 20
ATTEMPTS = 6  # in a row without a byte
TIMEOUT = 60  # seconds without a byte


@dataclass(frozen=True)
class Known:
    """What is known of a file beforehand."""

    size: int | None = None  # bytes
    md5: str | None = None


KNOWN: dict[str, Known] = {  # the md5 files beside the archives
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip": Known(4_924_029, "0e33842e24a9c977be4e0107933c0723"),
    "https://files.grouplens.org/datasets/movielens/ml-1m.zip": Known(None, "c4d9eecfca2ab87c1945afe126590906"),
    "https://files.grouplens.org/datasets/movielens/ml-20m.zip": Known(198_702_078, "cd245b17a1ae2cc31bb14903e1204af3"),
    "https://files.grouplens.org/datasets/movielens/ml-25m.zip": Known(261_978_986, "6b51fb2759a8657d3bfcbfc42b592ada"),
    "https://files.grouplens.org/datasets/movielens/ml-32m.zip": Known(238_950_008, "d472be332d4daa821edc399621853b57"),
}


def fetch(source: Source, key: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """Download the raw files of a source; what is there already is not fetched again.

    Args:
        source: the source.
        key: the word that stands for ``{key}`` in its addresses, such as a category of Amazon.
        folder: files go to a folder below it, named like the source.

    Returns:
        Files of interactions and of items, for `prepare`.

    Raises:
        InputError: if the source has no addresses, `key` is no plain word, or a file cannot be had.
    """
    if not source.downloads:
        raise InputError(f"download: {source.name} has no addresses; name the files with --interactions and --items")
    if not re.fullmatch(r"[\w&.-]+", key):
        raise InputError(f"download: {key!r} is not a name as it stands in the address, for example Prime_Pantry")
    place = folder / source.name
    found: dict[str, list[Path]] = {"interactions": [], "items": []}
    for role, addresses in source.downloads.items():
        for address in addresses:
            url = address.format(key=key)
            file = download(url, place / Path(urlsplit(url).path).name, KNOWN.get(url, Known()))
            if role == "archive":
                for part, member in zip(found, source.members, strict=True):
                    found[part].append(_unpacked(file, member))
            else:
                found[role].append(file)
    return found["interactions"], found["items"]


def download(url: str, path: Path, known: Known = Known(), wait: float = 1.0) -> Path:
    """Fetch one file; after a cut, and in the next run, it goes on where it was.

    The part that is there lies in ``<name>.part``, beside it the ETag or date of the file it is a part of: if the file
    has changed since, it is fetched from the start.

    Args:
        url: http or https.
        path: the file; if it exists it is only checked.
        known: size and md5 to check.
        wait: seconds before the second attempt; twice as long before each further one.

    Raises:
        InputError: if the server refuses, several attempts in a row bring nothing, or size or md5 are wrong.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        _verify(path, known, url)
        return path
    part = path.with_name(path.name + ".part")
    stamp = path.with_name(path.name + ".part.stamp")
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            if _transfer(url, part, stamp):
                break
            problem = "the connection was cut"
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 416, 429):
                raise InputError(f"{url}: the server says {error.code} {error.reason}; check the address") from error
            if error.code == 416:  # what is there is longer than the file
                part.unlink(missing_ok=True)
            problem = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error) or type(error).__name__
        n_bytes = part.stat().st_size if part.exists() else 0
        failures = failures + 1 if n_bytes <= before else 0
        if failures >= ATTEMPTS:
            raise InputError(f"{url}: {problem}; {n_bytes:,} bytes are kept in {part}, the same command goes on")
        log.warning("%s: %s after %s bytes; going on", url, problem, f"{n_bytes:,}")
        time.sleep(wait * 2**failures)
    try:
        _verify(part, known, url)
    except InputError:
        part.unlink()
        raise
    finally:
        stamp.unlink(missing_ok=True)
    return part.replace(path)


def _transfer(url: str, part: Path, stamp: Path) -> bool:
    """One connection; True if the file is whole."""
    offset = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "recbole-pad", "Accept-Encoding": "identity"})
    if offset and stamp.exists():
        request.add_header("Range", f"bytes={offset}-")
        request.add_header("If-Range", stamp.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        resumed = re.fullmatch(rf"bytes {offset}-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if response.status == 206 and not resumed:
            stamp.unlink(missing_ok=True)  # a part, but not known to be the rest: the next attempt takes the whole file
            return False
        if resumed:
            total: int | None = int(resumed[1])
        else:  # the whole file: a server without ranges, or the file has changed
            length = response.headers.get("Content-Length")
            total = int(length) if length else None
            offset = 0
            etag = response.headers.get("ETag", "")
            stamp.write_text(
                etag if etag.startswith('"') else response.headers.get("Last-Modified", ""), encoding="utf-8"
            )
            if not stamp.read_text(encoding="utf-8"):
                stamp.unlink()  # nothing to recognise the file by: it cannot be resumed
        with part.open("ab" if offset else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                offset += len(block)
    return total is None or offset == total


def _verify(file: Path, known: Known, url: str) -> None:
    size = file.stat().st_size
    if known.size is not None and size != known.size:
        raise InputError(f"{file}: {size:,} bytes instead of {known.size:,} of {url}; delete it and fetch it again")
    if known.md5 is not None:
        with file.open("rb") as opened:
            md5 = hashlib.file_digest(opened, "md5").hexdigest()
        if md5 != known.md5:
            raise InputError(f"{file}: md5 {md5} instead of {known.md5} of {url}; delete it and fetch it again")


def _unpacked(archive: Path, member: str) -> Path:
    """One file of a zip, in a folder named like the archive."""
    target = archive.with_suffix("") / member
    if target.exists():
        return target
    try:
        with zipfile.ZipFile(archive) as opened:
            inside = [name for name in opened.namelist() if name.rpartition("/")[2] == member]
            if not inside:
                raise InputError(f"{archive}: no {member} inside; is it the right archive?")

            def unpack(path: Path) -> None:
                with opened.open(min(inside, key=len)) as source, path.open("wb") as file:
                    shutil.copyfileobj(source, file)

            write_whole(target, unpack)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive}: not a zip file ({error}); delete it and fetch it again") from error
    return target
