"""The commands `prepare` and `check` on every source, and what RecBole makes of their files."""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from recbole_pad.__main__ import main
from recbole_pad.dataset_prep import command
from recbole_pad.dataset_prep.check import check
from recbole_pad.dataset_prep.sources import SOURCES
from tests.unit import test_prepare_sources as dumps
from tests.unit.test_prepare_sources import raw_files

ENGINES = ["pandas", "duckdb"]


@pytest.fixture
def prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """``prepared_folder(source, files, *flags)``: the folder that the command makes of a dump, which `check` passes."""

    def run(source: str, files: Mapping[str, str], *flags: str, name: str = "made") -> Path:
        interactions, items = raw_files(files, tmp_path / "raw")
        words = ["prepare", source, "--name", name, "--interactions", *map(str, interactions)]
        words += ["--items", *map(str, items)] if items else []
        assert main([*words, *flags]) == 0, capsys.readouterr().err
        assert main(["check", name]) == 0, capsys.readouterr().err
        return tmp_path / "dataset" / name

    return run


def text(folder: Path, ending: str) -> str:
    return (folder / f"{folder.name}.{ending}").read_text(encoding="utf-8")


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads(text(folder, "manifest.json"))


EVERYTHING = ["--preset", "all"]
RELEASES = {
    "amazon-2014": (
        dumps.AMAZON_2014,
        "A2SUAM1J3GNN3B\t0000013714\t1252800000\t5.0\nA2SUAM1J3GNN3B\tB00000JBAT\t1252800000\t2.0\n",
        "0000013714\tHeavenly Highway & Hymns\t\tBooks > Music > Hymns\t7.99\nB00000JBAT\t\t\tToys\t\n",
    ),
    "amazon-2018": (
        dumps.AMAZON_2018,
        "A1D4G1SNUZWQOT\tB00000JBAT\t1388534400\t5.0\nA1D4G1SNUZWQOT\tB0000DIWNI\t1388534400\t3.0\n",
        "B00000JBAT\tHERSHEY'S Milk Duds, 5' bag\tHershey\tGrocery & Gourmet Food > Candy\t12.99\n"
        "B0000DIWNI\tSaran Premium Wrap\tHershey\tGrocery & Gourmet Food > Candy\t\n",
    ),
    "amazon-2023": (  # two variants of one product, 1 ms apart: 128 s on the grid of float32
        dumps.AMAZON_2023,
        "AGKHLEW2SOWHNMFQIJGBECAF7INQ\tB00YQ6X8EO\t1588687616\t5.0\n"
        "AGKHLEW2SOWHNMFQIJGBECAF7INQ\tB00YQ6X8EO\t1588687744\t5.0\n",
        "B00YQ6X8EO\tHoward LC0008 Leather Conditioner\tHoward Products\t\t\n",
    ),
    "movielens-100k": (
        dumps.MOVIELENS_100K,
        "186\t267\t891717760\t3.0\n196\t007\t881250944\t3.0\n",
        "007\tCité des enfants perdus, La\t1995\tAdventure Sci-Fi\tCité des enfants perdus, La (1995)\n"
        "267\tunknown\t\tunknown\tunknown\n",
    ),
    "movielens-1m": (
        dumps.MOVIELENS_1M,
        "1\t1193\t978300736\t5.0\n1\t661\t978302080\t3.0\n",
        "1193\tOne 'Flew' Over\t1975\tDrama War\tOne 'Flew' Over (1975)\n"
        "661\tJames and the Peach\t1996\tAnimation\tJames and the Peach (1996)\n",
    ),
    "movielens": (
        dumps.MOVIELENS,
        "1\t11\t964981248\t0.5\n1\t1\t964982720\t4.0\n2\t171749\t1445714816\t5.0\n",
        "1\tToy Story\t1995\tAdventure Animation\tToy Story (1995)\n"
        "11\tAmerican President, The\t1995\tComedy\tAmerican President, The (1995)\n"
        "171749\tDeath Note\t2006\t\tDeath Note (2006\u20132007)\n",
    ),
    "mind": (
        dumps.MIND,
        "U13740\tN1\t1573811584\nU13740\tN2\t1573811712\nU13740\tN4\t1573811840\nU13740\tN5\t1573898112\n"
        "U2\tN1\t1573811712\nU3\tN1\t1573898112\n",
        "N1\tThe title & more\tnews\tworld\tAn abstract\n"
        "N2\t'Open quotes and the rest\tsports\tgolf\tText 'quoted' here\n"
        "N4\tCats\tlifestyle\tpets\t\nN5\tFive\tnews\tus\tText\n",
    ),
    "goodreads": (
        dumps.GOODREADS,
        "8842281e1d1347389f2ab93d60773d4d\t24375664\t1503694464\t5.0\n",
        "24375664\tLe Petit Prince & co\t\tA prince.\n",
    ),
    "steam": (  # 725280 has no metadata, 643980 no title, and one review is there twice
        dumps.STEAM,
        "Chaos Syren\t761140\t1513555200\nChaos Syren\t643980\t1513641600\n",
        "761140\tLost Summoner Kitty\tKotoshiro\tAction Casual\tStrategy\n643980\t\t\t\t\n",
    ),
    "pad-csv": (  # a purchase that comes again is no duplicate: each has a place of its own
        dumps.PAD_CSV,
        "A10\tB1\t0\nA2\tB2\t0\nA2\tB1\t1\nA2\tB2\t2\n",
        "B2\tSoup & more, hot\nB1\tSalt\n",
    ),
    "amazon-2014 ratings": (
        dumps.RATINGS_2014,
        "A1\tB00000JBAT\t1252886400\t2.0\nA2SUAM1J3GNN3B\t0000013714\t1252800000\t5.0\n",
        "0000013714\tHeavenly Highway & Hymns\t\tBooks > Music > Hymns\t7.99\nB00000JBAT\t\t\tToys\t\n",
    ),
    "amazon-2018 ratings": (
        dumps.RATINGS_2018,
        "A1\tB0000DIWNI\t1388534400\t3.0\nA1D4G1SNUZWQOT\tB00000JBAT\t1388534400\t5.0\n",
        "B00000JBAT\tHERSHEY'S Milk Duds, 5' bag\tHershey\tGrocery & Gourmet Food > Candy\t12.99\n"
        "B0000DIWNI\tSaran Premium Wrap\tHershey\tGrocery & Gourmet Food > Candy\t\n",
    ),
    "amazon-2023 ratings": (
        dumps.RATINGS_2023,
        "AG\tB00YQ6X8EO\t1588687744\t5.0\n",
        "B00YQ6X8EO\tHoward LC0008 Leather Conditioner\tHoward Products\t\t\n",
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("release", RELEASES)
def test_each_release_becomes_the_files_that_are_written_here(
    release: str, engine: str, prepared_folder: Callable[..., Path]
):
    if engine == "duckdb":
        pytest.importorskip("duckdb")
    files, inter, item = RELEASES[release]
    source = release.partition(" ")[0]
    flags = ["--preset", "all", "--duplicates", "pair" if source == "mind" else "exact", "--engine", engine]
    folder = prepared_folder(source, files, *flags)
    assert text(folder, "inter").partition("\n")[2] == inter
    assert text(folder, "item").partition("\n")[2] == item
    assert manifest_of(folder)["source"] == source


SHOP = [  # user, item, time, stars: u2 has two actions at one time
    ("u2", "01", "2020-01-02 00:00:00", 5.0),
    ("u 1", "007", "2020-01-01 12:00:00", None),
    ("u2", "007", "2020-01-02 00:00:00", 2.5),
    ("u2", "a&amp;b", "2019-12-31 00:00:00", 4.0),
]
GOODS = [("01", "Salt &amp; <b>Pepper</b>", "Äcker"), ("007", "Oil\t1 l", None), ("a&amp;b", 'The "Box"', "")]


def write_shop(kind: str, folder: Path) -> tuple[Path, Path]:
    """The tables `SHOP` and `GOODS` as files, or (as Spark writes them) folders, of one kind."""
    import pandas as pd

    log = pd.DataFrame(SHOP, columns=["who", "what", "when", "stars"])
    goods = pd.DataFrame(GOODS, columns=["sku", "name", "maker"])
    if kind == "parts":
        for number in range(2):  # files are read in the order of their names
            (folder / "log" / f"k={number}").mkdir(parents=True)
            part = log.iloc[2 * number : 2 * number + 2].assign(when=lambda rows: pd.to_datetime(rows["when"]))
            part.to_parquet(folder / "log" / f"k={number}" / f"part-{number:05d}.snappy.parquet")
        (folder / "goods").mkdir()
        goods.to_parquet(folder / "goods" / "part-00000.snappy.parquet")
        return folder / "log", folder / "goods"
    paths = folder / f"log.{kind}", folder / f"goods.{kind}"
    for frame, path in zip((log, goods), paths, strict=True):
        if kind == "parquet":
            frame.to_parquet(path)
        elif kind == "jsonl":
            frame.to_json(path, orient="records", lines=True, force_ascii=False)
        else:
            frame.to_csv(path, index=False, sep="\t" if kind == "tsv.gz" else ",")
    return paths


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["csv", "tsv.gz", "jsonl", "parquet", "parts"])
def test_a_table_of_any_kind_becomes_the_same_files(
    kind: str, engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if engine == "duckdb":
        pytest.importorskip("duckdb")
    if kind.startswith("par"):
        pytest.importorskip("pyarrow")
    log, goods = write_shop(kind, tmp_path)
    words = ["prepare", "table", "--name", "shop", "--preset", "all", "--engine", engine, "--time_unit", "iso"]
    words += ["--interactions", str(log), "--columns", "user=who", "item=what", "time=when", "rating=stars"]
    words += ["--items", str(goods), "--item_columns", "item=sku", "title=name", "brand=maker"]
    assert main(words) == 0, capsys.readouterr().err
    assert main(["check", "shop"]) == 0, capsys.readouterr().err
    folder = tmp_path / "dataset" / "shop"
    assert text(folder, "inter").splitlines()[1:] == [
        "u 1\t007\t1577880064\t",  # 1577880000 on the grid of 128 s
        "u2\ta&amp;b\t1577750400\t4.0",
        "u2\t01\t1577923200\t5.0",
        "u2\t007\t1577923200\t2.5",
    ]
    assert text(folder, "item").splitlines()[1:] == [
        "01\tSalt & <b>Pepper</b>\tÄcker",
        "007\tOil 1 l\t",
        "a&amp;b\tThe 'Box'\t",
    ]


def test_every_row_that_goes_is_in_the_manifest_and_on_the_screen(
    prepared_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The paper's rules on 5 + 4 + 24 reviews of three users: one with too few good ones, one with too many."""
    review = dumps.REVIEW_2018
    lines = [("u1", n, 5.0) for n in range(5)] + [("u2", n, 4.0 if n < 4 else 3.0) for n in range(5)]
    lines += [("u3", n, 4.0) for n in range(24)] + [("u3", 99, 5.0)]  # item 99 has no metadata
    files = {
        "r.json": dumps.json_lines(
            *(
                {**review, "reviewerID": u, "asin": f"B{n:02d}", "overall": r, "unixReviewTime": n * 86400}
                for u, n, r in lines
            ),
            {**review, "reviewerID": None},
        ),
        "meta_r.json": dumps.json_lines(*({**dumps.META_2018, "asin": f"B{n:02d}"} for n in range(30))),
    }
    folder = prepared_folder("amazon-2018", files, "--preset", "paper")
    removed = {step["filter"]: step["removed"] for step in manifest_of(folder)["filters"]}
    assert removed == {
        "rows without user, item or readable time": 1,
        "lines of items without an id": 0,
        "lines of an item but the last": 0,
        "items without metadata": 1,
        "rating below 4, or none": 1,
        "users with fewer than 5 rows, items with fewer than 1": 4,
        "histories longer than 23: all but the last 22": 2,
        "items without interactions": 6,
    }
    rows = [line.split("\t")[:2] for line in text(folder, "inter").splitlines()[1:]]
    assert rows == [["u1", f"B{n:02d}"] for n in range(5)] + [["u3", f"B{n:02d}"] for n in range(2, 24)]
    counts = manifest_of(folder)["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (2, 24, 27)
    assert counts["history_length"] == {"min": 5, "median": 13.5, "mean": 13.5, "max": 22}
    manifest = manifest_of(folder)
    for role, name in (("interactions", "r.json"), ("items", "meta_r.json")):
        raw = (tmp_path / "raw" / name).read_bytes()
        digest = {"file": name, "bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        assert manifest["raw_files"][role] == [digest]
    assert "without a formal licence" in manifest["licence"]
    # u1 is tested on B04 and u3 on B23, which no other row has; all items but B22 and B23 are in train
    groups = {group.pop("train_frequency"): group for group in manifest["by_train_frequency"]}
    assert groups["0"] == {"items": 2, "valid": 1, "test": 1}
    assert groups["1-5"] == {"items": 22, "valid": 1, "test": 1}
    assert {sum(group.values()) for group in list(groups.values())[2:]} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_prime_pantry_of_the_published_csv_files_is_the_shared_one(
    engine: str, real_data: Path, tmp_path: Path, prepared_folder: Callable[..., Path]
):
    """Users, items, titles and order: the same bytes, once with the entities of the source kept."""
    if engine == "duckdb":
        pytest.importorskip("duckdb")
    shared = real_data / "prime_pantry"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there")
    histories: dict[str, list[str]] = {}
    for line in text(shared, "inter").splitlines()[1:]:
        user, item, _ = line.split("\t")
        histories.setdefault(user, []).append(item)
    titles = [line.split("\t") for line in text(shared, "item").splitlines()[1:]]
    names = "Prime_Pantry_cleaned_history.csv", "metadata_Prime_Pantry.csv"
    with (tmp_path / names[0]).open("w", newline="") as file:
        csv.writer(file).writerows(
            [["", "user", "history"], *([n, u, str(h)] for n, (u, h) in enumerate(histories.items()))]
        )
    with (tmp_path / names[1]).open("w", newline="") as file:
        csv.writer(file).writerows([["asin", "title"], *titles])
    files = {name: (tmp_path / name).read_text() for name in ("Prime_Pantry_cleaned_history.csv",)}
    files |= {"meta_data.csv": (tmp_path / names[1]).read_text()}
    folder = prepared_folder("pad-csv", files, "--entities", "keep", "--engine", engine, name="prime_pantry")
    for ending in ("inter", "item"):
        assert text(folder, ending) == text(shared, ending)
    folder = prepared_folder("pad-csv", files, "--engine", engine, name="prime_pantry")
    assert text(folder, "inter") == text(shared, "inter")
    assert [line.split("\t") for line in text(folder, "item").splitlines()[1:]] == [
        [item, " ".join(html.unescape(title).replace('"', "'").split())] for item, title in titles
    ]


@pytest.mark.slow
def test_movielens_of_the_original_titles_is_the_shared_one(
    real_data: Path, tmp_path: Path, prepared_folder: Callable[..., Path]
):
    shared = real_data / "ml_latest_small"
    if not shared.is_dir():
        pytest.skip(f"{shared} is not there")
    rows = [line.split("\t") for line in text(shared, "inter").splitlines()[1:]]
    rows.sort(key=lambda row: (int(row[0]), int(row[1])))  # ratings.csv is ordered by user and film
    items = [line.split("\t") for line in text(shared, "item").splitlines()[1:]]
    for name, lines in (
        ("ratings.csv", [["userId", "movieId", "rating", "timestamp"], *([u, i, r, t] for u, i, t, r in rows)]),
        ("movies.csv", [["movieId", "title", "genres"], *([i[0], i[4], i[3].replace(" ", "|")] for i in items)]),
    ):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(lines)
    files = {name: (tmp_path / name).read_text(encoding="utf-8") for name in ("ratings.csv", "movies.csv")}
    folder = prepared_folder("movielens", files, *EVERYTHING, name="ml_latest_small")
    written = [line.split("\t") for line in text(folder, "inter").splitlines()[1:]]
    expected = [line.split("\t") for line in text(shared, "inter").splitlines()[1:]]
    expected.sort(key=lambda row: row[0])  # stable: users in the order of texts, times and ties as they are
    assert [(u, i, r) for u, i, _, r in written] == [(u, i, r) for u, i, _, r in expected]
    shifts = [abs(float(new[2]) - float(old[2])) for new, old in zip(written, expected, strict=True)]
    assert manifest_of(folder)["time"]["largest_shift"] == max(shifts) < 86_400
    assert text(folder, "item") == text(shared, "item")

    tied = "tied neighbours in ascending order of item ids (50 % by chance)"
    assert check(folder, folder.name).probes[tied] == "100.0% of 15,790"  # ties as in the file, which is sorted by film
    folder = prepared_folder("movielens", files, *EVERYTHING, "--ties", "shuffle", name="shuffled")
    share, number = check(folder, folder.name).probes[tied].split("% of ")
    assert abs(float(share) - 50) < 2  # 5 standard deviations: 100 * 5 * 0.5 / sqrt(15790)
    assert number == "15,790"


def test_recbole_reads_the_histories_in_the_exact_order(
    prepared_folder: Callable[..., Path], prepared: Callable[..., Any], tmp_path: Path
):
    """Three films within a minute, rated in another order than that of their ids, and awkward ids and titles."""
    films = ["c", "NA", 'b"', "a"]
    rows = [(user, film, 1_600_000_000 + 7 * n) for user in ("u", "null") for n, film in enumerate(films)]
    rows += [(user, film, 1_700_000_000) for user in ("u", "null") for film in ("x", "y")]
    files = {
        "log.json": dumps.json_lines(*({"who": u, "what": i, "when": t} for u, i, t in reversed(rows))),
        "meta_films.json": dumps.json_lines(*({"id": f, "name": f'The "{f[0]}" film\n2'} for f in [*films, "x", "y"])),
    }
    columns = ["--columns", "user=who", "item=what", "time=when", "--item_columns", "item=id", "title=name"]
    folder = prepared_folder("table", files, *columns, *EVERYTHING, name="awkward")
    assert "b%22\tThe 'b' film 2" in text(folder, "item")
    _, whole, _, _, test = prepared("SASRec", "awkward", data_path=str(folder.parent), train_neg_sample_args=None)
    assert whole.user_num == 3  # with padding
    assert histories_of(whole, test) == [["c", "%4EA", "b%22", "a", "y", "x"]] * 2  # ties as in the source


def histories_of(whole: Any, test: Any) -> list[list[str]]:
    """The histories with their test targets, as RecBole has them."""
    tokens, rows = whole.field2id_token["item_id"], test.dataset.inter_feat
    columns = (rows[name].tolist() for name in ("item_id_list", "item_length", "item_id"))
    return [[tokens[i] for i in (*items[:length], target)] for items, length, target in zip(*columns, strict=True)]


@pytest.mark.parametrize("lines", ["in order", "reversed"])
def test_check_says_whether_recbole_gets_the_order_of_time(
    lines: str, prepared: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Five actions 7 s apart, which float32 makes equal: the order of the lines is then that of the history."""
    rows = [f"u\t{item}\t{1_600_000_000 + 7 * n}\n" for n, item in enumerate("badce")]
    folder = tmp_path / "dataset" / "burst"
    folder.mkdir(parents=True)
    body = "".join(rows if lines == "in order" else rows[::-1])
    (folder / "burst.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n" + body)
    (folder / "burst.item").write_text("item_id:token\ttitle:token_seq\n" + "".join(f"{i}\tT\n" for i in "abcde"))
    settings = {"data_path": str(folder.parent), "train_neg_sample_args": None}
    _, whole, _, _, test = prepared("SASRec", "burst", **settings)
    assert histories_of(whole, test) == [list("badce")]  # exact_times
    _, whole, _, _, test = prepared("SASRec", "burst", **settings, exact_times=False)
    is_exact = histories_of(whole, test) == [list("badce")]
    assert is_exact == (lines == "in order")
    assert main(["check", "burst"]) == 0
    assert ("1 users get another order" in capsys.readouterr().out) == (not is_exact)


def test_check_finds_the_dataset_inside_recbole(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "ml-100k"]) == 0
    assert "943 / 1,682 / 100,000" in capsys.readouterr().out


KILLED = """
import os, signal, sys
from pathlib import Path
from recbole_pad.dataset_prep import command, prepare
where, words = sys.argv[1], sys.argv[2:]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "while writing":
    inner = prepare.write_inter
    def half(path, *args):
        inner(path, *args)
        path.write_text(path.read_text()[:20])
        die()
    prepare.write_inter = half
else:
    moves, inner_replace = [], Path.replace
    def replace(self, target):
        moves.append(target)
        if len(moves) > int(where):
            die()
        return inner_replace(self, target)
    Path.replace = replace
sys.exit(command.main(words))
"""


@pytest.mark.parametrize(
    ("where", "engine"), [("while writing", "pandas"), ("while writing", "duckdb"), *((n, "pandas") for n in "012")]
)
def test_a_kill_leaves_no_half_file_and_the_next_run_gives_the_same_bytes(where: str, engine: str, tmp_path: Path):
    if engine == "duckdb":
        pytest.importorskip("duckdb")
    interactions, items = raw_files(dumps.MOVIELENS, tmp_path)
    words = [
        "prepare",
        "movielens",
        "--name",
        "ml",
        "--data_path",
        str(tmp_path / "data"),
        *EVERYTHING,
        "--engine",
        engine,
    ]
    words += ["--interactions", *map(str, interactions), "--items", *map(str, items)]
    whole = subprocess.run([sys.executable, "-m", "dataset_prep", *words], cwd=ROOT, capture_output=True, check=True)
    folder = tmp_path / "data" / "ml"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {"ml.inter", "ml.item", "ml.manifest.json"}, whole.stderr

    for kept in (True, False):  # over the old files, and into an empty folder
        for path in folder.iterdir():
            if path.is_file() and not kept:
                path.unlink()
        done = subprocess.run([sys.executable, "-c", KILLED, where, *words], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        assert left.items() <= before.items()
        assert ("ml.manifest.json" in left) == (kept and where == "while writing")
    again = subprocess.run([sys.executable, "-m", "dataset_prep", *words], cwd=ROOT, capture_output=True, check=True)
    assert b"left by another run" in again.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_need_neither_torch_nor_recbole(tmp_path: Path):
    code = (
        "import sys; from dataset_prep.command import main; main(['check', 'x', '--data_path', '.']);"
        "print(sorted({'torch', 'recbole', 'duckdb', 'zstandard', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def anchor_of(heading: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_source_has_a_page_and_its_links_commands_and_addresses_are_right():
    overview = ROOT / "docs" / "datasets.md"
    pages = {page: page.read_text(encoding="utf-8") for page in (overview, *overview.with_suffix("").glob("*.md"))}
    for page, content in pages.items():
        for target, anchor in re.findall(r"\]\(([^)#:]+)#?([^)]*)\)", content):
            linked = (page.parent / target).read_text(encoding="utf-8")
            assert anchor in ("", *map(anchor_of, re.findall(r"^#+ (.*)$", linked, re.MULTILINE))), (
                f"{page.name}: {anchor}"
            )
    everything = "\n".join(pages.values())
    parser = argparse.ArgumentParser()
    command.add_prepare(parser)
    shown = set()
    for line in re.findall(r"^recbole-pad prepare ((?:.*\\\n)*.*)$", everything, re.MULTILINE):
        known = parser.parse_args(shlex.split(line.replace("\\\n", " "), comments=True))
        command._recipe(known, command._source(known))
        shown.add(known.source)
    assert shown == set(SOURCES)
    for source in SOURCES.values():
        for url in (urlsplit(address.format(key="KEY")) for part in source.downloads.values() for address in part):
            assert url.netloc in everything
            assert url.path.rpartition("/")[2] in everything


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["amazon-2016", "--name", "x"], ["source: 'amazon-2016' is not known", "did you mean 'amazon-2018'", "mind"]),
        (["mind", "--name", "x"], ["interactions: no raw file is named"]),
        (["mind", "--name", "x", "--interactions", "no.tsv"], ["no.tsv does not exist"]),
        (["mind", "--name", "x", "--preset", "papers"], ["preset: 'papers'", "did you mean 'paper'"]),
        (["mind", "--name", "x", "--columns", "user=a"], ["columns: mind knows its files"]),
        (["table", "--name", "x", "--columns", "user=a"], ["write user=..., item=..."]),
        (["table", "--name", "x", "--columns", "user"], ["'user' is not of the form name=column"]),
        (["table", "--name", "x", "--columns", "user=a", "item=b", "--item_columns", "title=t"], ["column of the ids"]),
        (
            ["table", "--name", "x", "--columns", "user=a", "item=b", "--item_columns", "item=c", "title=t"],
            ["item_columns: are columns of the files of items; name them in --items"],
        ),
        (
            ["table", "--name", "x", "--columns", "user=a", "item=b", "--time_unit", "iso"],
            ["time_unit: 'iso' is of a column of times; add time=... to columns"],
        ),
        (["mind", "--name", "x", "--time_unit", "ms"], ["time_unit: mind knows its files"]),
        (["mind", "--name", "x/y"], ["name: 'x/y'"]),
        (["mind", "--name", "x", "--interactions", "a", "--download", "small"], ["either the files, or what to fetch"]),
        (["table", "--name", "x"], ["write user=..., item=..."]),
        (["mind", "--name", "x", "--epochs=3"], ["prepare does not know --epochs=3"]),
    ],
)  # fmt: skip
def test_a_wrong_word_is_named_with_what_would_be_right(
    words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert main(["prepare", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == []
