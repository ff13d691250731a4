"""Downloads from a server of this process that cuts connections, ignores ranges or changes the file."""

from __future__ import annotations

import hashlib
import http.server
import io
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from recbole_pad.dataset_prep import download as download_module
from recbole_pad.dataset_prep.command import main
from recbole_pad.dataset_prep.download import Known, download, fetch
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.sources import SOURCES
from tests.unit.test_prepare_sources import MOVIELENS

DATA = np.random.default_rng(0).bytes(100_000)


@dataclass
class Server:
    """One file behind every path; the knobs say how badly it is served."""

    data: bytes = DATA
    cuts: list[int] = field(default_factory=list)  # bytes after which the next connections end
    ranges: bool = True
    said: str = ""  # a Content-Range that is not that of the part
    tag: str = '"v1"'
    status: int = 200
    url: str = ""
    asked: list[str | None] = field(default_factory=list)  # Range of each request
    paths: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            state.paths.append(self.path)
            if state.status != 200:
                self.send_error(state.status)
                return
            start = 0
            if wanted and state.ranges and self.headers.get("If-Range") == state.tag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.send_response(206)
                said = state.said or f"bytes {start}-{len(state.data) - 1}/{len(state.data)}"
                self.send_header("Content-Range", said)
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(state.data) - start))
            if state.tag:
                self.send_header("ETag", state.tag)
            self.end_headers()
            end = start + state.cuts.pop(0) if state.cuts else len(state.data)
            self.wfile.write(state.data[start:end])

        def log_message(self, *words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever, daemon=True)
        thread.start()
        state.url = f"http://127.0.0.1:{serving.server_port}/dump.json.gz"
        yield state
        serving.shutdown()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_download_goes_on_after_each_cut(server: Server, tmp_path: Path):
    server.cuts = [30_000, 0, 20_000]
    path = download(server.url, tmp_path / "dump.json.gz", Known(len(DATA), hashlib.md5(DATA).hexdigest()), wait=0.001)
    assert path.read_bytes() == DATA
    assert server.asked == [None, "bytes=30000-", "bytes=30000-", "bytes=50000-"]
    assert names(tmp_path) == ["dump.json.gz"]
    assert download(server.url, path) == path
    assert len(server.asked) == 4  # what is there is not fetched again


def test_a_later_run_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path):
    server.cuts = [40_000] + [0] * download_module.ATTEMPTS
    with pytest.raises(InputError, match=r"40,000 bytes are kept in .*dump\.part, the same command goes on"):
        download(server.url, tmp_path / "dump", wait=0.001)
    assert names(tmp_path) == ["dump.part", "dump.part.stamp"]
    server.asked.clear()
    assert download(server.url, tmp_path / "dump", wait=0.001).read_bytes() == DATA
    assert server.asked == ["bytes=40000-"]


def test_a_file_that_has_changed_is_fetched_from_the_start(server: Server, tmp_path: Path):
    server.cuts = [40_000] + [0] * download_module.ATTEMPTS
    with pytest.raises(InputError):
        download(server.url, tmp_path / "dump", wait=0.001)
    server.data, server.tag = DATA[::-1], '"v2"'
    assert download(server.url, tmp_path / "dump", wait=0.001).read_bytes() == DATA[::-1]


@pytest.mark.parametrize("changes", [{"ranges": False}, {"tag": ""}])
def test_a_server_without_ranges_or_tags_starts_again(changes: dict[str, object], server: Server, tmp_path: Path):
    for name, value in changes.items():
        setattr(server, name, value)
    server.cuts = [30_000]
    assert download(server.url, tmp_path / "dump", wait=0.001).read_bytes() == DATA


@pytest.mark.parametrize("said", ["bytes 5-9/*", "bytes 30001-99999/100000", "items 1-2/3"])
def test_a_part_that_is_not_the_rest_is_not_taken_for_the_file(said: str, server: Server, tmp_path: Path):
    """The next attempt asks for the whole file."""
    server.cuts, server.said = [30_000], said
    assert download(server.url, tmp_path / "dump", wait=0.001).read_bytes() == DATA
    assert server.asked == [None, "bytes=30000-", None]
    assert names(tmp_path) == ["dump"]


@pytest.mark.parametrize("known", [Known(size=99), Known(md5="0" * 32)])
def test_a_wrong_size_or_hash_is_refused_and_nothing_is_left(known: Known, server: Server, tmp_path: Path):
    with pytest.raises(InputError, match="instead of"):
        download(server.url, tmp_path / "dump", known)
    assert names(tmp_path) == []
    (tmp_path / "dump").write_bytes(b"another file")
    with pytest.raises(InputError, match="delete it"):
        download(server.url, tmp_path / "dump", known)


def test_a_refusal_of_the_server_ends_it_at_once(server: Server, tmp_path: Path):
    server.status = 404
    with pytest.raises(InputError, match="the server says 404"):
        download(server.url, tmp_path / "dump")
    assert len(server.asked) == 1


def test_a_server_in_trouble_is_asked_again(server: Server, tmp_path: Path):
    server.status = 503
    with pytest.raises(InputError, match="503"):
        download(server.url, tmp_path / "dump", wait=0.001)
    assert len(server.asked) == download_module.ATTEMPTS


def test_no_server_at_all(tmp_path: Path):
    with pytest.raises(InputError, match="refused"):
        download("http://127.0.0.1:9/dump", tmp_path / "dump", wait=0.001)


def test_the_files_of_a_source_are_fetched_and_archives_unpacked(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    host = server.url.rpartition("/")[0]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("ml-x/ratings.csv", MOVIELENS["ratings.csv"])
        opened.writestr("ml-x/movies.csv", MOVIELENS["movies.csv"])
        opened.writestr("ml-x/README.txt", "words")
    server.data = archive.getvalue()
    source = SOURCES["movielens"]
    monkeypatch.setitem(source.downloads, "archive", [f"{host}/{{key}}.zip"])  # type: ignore[arg-type]
    interactions, items = fetch(source, "ml-x", tmp_path)
    assert [path.read_text(encoding="utf-8") for path in (*interactions, *items)] == list(MOVIELENS.values())
    assert server.paths == ["/ml-x.zip"]
    assert fetch(source, "ml-x", tmp_path) == (interactions, items)
    assert main(["prepare", "movielens", "--name=ml", "--preset=all", "--download=ml-x", f"--raw={tmp_path}"]) == 0
    assert main(["check", "ml"]) == 0
    assert len(server.paths) == 1  # of both calls

    source = SOURCES["amazon-2018"]
    monkeypatch.setitem(source.downloads, "interactions", [f"{host}/{{key}}.json.gz"])  # type: ignore[arg-type]
    monkeypatch.setitem(source.downloads, "items", [f"{host}/meta_{{key}}.json.gz"])  # type: ignore[arg-type]
    assert fetch(source, "Toys", tmp_path) == (
        [tmp_path / "amazon-2018" / "Toys.json.gz"],
        [tmp_path / "amazon-2018" / "meta_Toys.json.gz"],
    )


def test_keys_and_sources_that_cannot_be_fetched_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="is not a name as it stands in the address"):
        fetch(SOURCES["amazon-2018"], "../Toys", tmp_path)
    with pytest.raises(InputError, match="pad-csv has no addresses"):
        fetch(SOURCES["pad-csv"], "Pantry", tmp_path)
