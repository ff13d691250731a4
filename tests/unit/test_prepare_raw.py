"""Raw files: compressed or not, cut short, with a broken line; JSON, Python literals, tables, Parquet."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.raw import Dialect, expand, format_of, records

RECORDS = [{"user": "u1", "item": "Äpfel"}, {"user": "u2", "item": 'a "b", c'}]
JSON = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def compressed(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    if path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".jsonl.zst", ".ndjson"])
def test_json_lines_plain_and_compressed(ending: str, tmp_path: Path):
    assert list(records(compressed(tmp_path / f"r{ending}", JSON + b"\n"))) == RECORDS


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".csv.zst"])
def test_csv_with_quotes_newlines_and_a_byte_order_mark(ending: str, tmp_path: Path):
    data = '\ufeffasin,title\r\nB1,"a ""b"", c"\r\nB2,"two\nlines"\r\n'.encode()
    found = list(records(compressed(tmp_path / f"m{ending}", data)))
    assert found == [{"asin": "B1", "title": 'a "b", c'}, {"asin": "B2", "title": "two\nlines"}]


def test_python_literals_of_the_releases_of_2014_and_of_steam(tmp_path: Path):
    file = tmp_path / "meta.json"
    file.write_text(
        """{'asin': '0001', 'title': "Bob's", 'price': 9.99}\n{u'id': u'35140', u'early_access': False}\n"""
    )
    assert list(records(file)) == [
        {"asin": "0001", "title": "Bob's", "price": 9.99},
        {"id": "35140", "early_access": False},
    ]


def test_tables_without_header_with_long_separators_and_other_letters(tmp_path: Path):
    file = tmp_path / "movies.dat"
    file.write_bytes('1::Amélie, "the" film::Comedy\n'.encode("latin-1"))
    dialect = Dialect("::", ("id", "title", "genres"), encoding="latin-1")
    assert list(records(file, dialect)) == [{"id": "1", "title": 'Amélie, "the" film', "genres": "Comedy"}]
    quoted = tmp_path / "news.tsv"
    quoted.write_text('N1\t"open\nN2\tplain\n')
    assert [r["title"] for r in records(quoted, Dialect("\t", ("id", "title"), quotes=False))] == ['"open', "plain"]


def test_parquet_files_and_the_folders_that_spark_writes(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    for number, part in enumerate(["day=1", "day=2"]):
        (tmp_path / "out" / part).mkdir(parents=True)
        pd.DataFrame([RECORDS[number]]).to_parquet(tmp_path / "out" / part / f"part-0000{number}.snappy.parquet")
    (tmp_path / "out" / "_SUCCESS").touch()
    files = expand([tmp_path / "out"])
    assert [record for file in files for record in records(file)] == RECORDS
    assert list(records(files[0], wanted=["item"])) == [{"item": "Äpfel"}]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("r.json", JSON + b'{"user": "u3"', "line 3: neither a JSON object nor a Python literal"),
        ("r.json", b"[1, 2]\n", "line 1: list instead of an object"),
        ("r.json", b"{'a': __import__('os')}\n", "line 1: neither"),
        ("r.csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 columns instead of 2"),
        ("r.csv", b'a,b\n1,"2\n', "line 2: unexpected end of data"),
        ("r.csv", b"a,b\n1,\xe9\n", "not utf-8"),
        ("r.json.gz", gzip.compress(JSON * 99, mtime=0)[:-20], "broken or cut short"),
        ("r.json.gz", b"no gzip", "broken or cut short"),
        ("r.json.zst", b"no zstandard at all", "broken or cut short"),
        ("r.parquet", b"no parquet", "not a Parquet file"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(name: str, data: bytes, words: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=words) as info:
        list(records(tmp_path / name))
    assert str(tmp_path / name) in str(info.value)


def test_zstandard_files_of_several_frames_are_read_whole_and_shortened_ones_refused(tmp_path: Path):
    zstandard = pytest.importorskip("zstandard")
    lines = "".join(f'{{"n": {number}}}\n' for number in np.random.default_rng(0).integers(0, 10**12, 30_000)).encode()
    frames = [zstandard.compress(part) for part in (lines, JSON, JSON)]
    file = tmp_path / "r.jsonl.zst"
    file.write_bytes(b"".join(frames))
    found = list(records(file))
    assert (len(found), found[-2:]) == (30_004, RECORDS)
    for cut in (len(frames[0]) // 2, len(frames[0]) + 5, len(frames[0]) + len(frames[1]) + len(frames[2]) - 1):
        file.write_bytes(b"".join(frames)[:cut])
        with pytest.raises(InputError, match="broken or cut short"):
            list(records(file))


def test_an_optional_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "r.json.zst").touch()
    with pytest.raises(InputError, match=r'zstandard is not installed; pip install -e "\.\[prepare\]"'):
        list(records(tmp_path / "r.json.zst"))


def test_formats_go_by_the_name_of_the_file():
    names = ["a.json", "b.JSONL.gz", "c.csv.zst", "u.data", "ratings.dat", "part.snappy.parquet", "behaviors.tsv"]
    assert [format_of(Path(name)) for name in names] == ["json", "json", "csv", "csv", "csv", "parquet", "csv"]


def test_paths_that_are_not_there_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="does not exist"):
        expand([tmp_path / "no.csv"])
    with pytest.raises(InputError, match="without"):
        expand([tmp_path])
