"""Each release's own schema, with its quirks, to interactions and items: values worked out by hand."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from recbole_pad.dataset_prep.command import main
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.raw import expand
from recbole_pad.dataset_prep.recipe import PRESETS
from recbole_pad.dataset_prep.sources import SOURCES
from recbole_pad.dataset_prep.sources.amazon import price_of
from recbole_pad.dataset_prep.sources.source import Columns, Layout, table_reader, with_columns

SECOND = 1000

# Small files in the published schema of each release: name -> text.


def json_lines(*records: Mapping[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


REVIEW_2014 = {
    "reviewerID": "A2SUAM1J3GNN3B", "asin": "0000013714", "reviewerName": "J. McDonald", "helpful": [2, 3],
    "reviewText": "I bought this for my husband.", "overall": 5.0, "summary": "Heavenly Highway Hymns",
    "unixReviewTime": 1252800000, "reviewTime": "09 13, 2009",
}  # fmt: skip
AMAZON_2014 = {
    "reviews_Music_5.json.gz": json_lines(
        REVIEW_2014, REVIEW_2014, {**REVIEW_2014, "asin": "B00000JBAT", "overall": 2.0}
    ),
    "meta_Music.json.gz": (
        "{'asin': '0000013714', 'salesRank': {'Books': 1}, 'imUrl': 'http://x/y.jpg', 'categories': [['Books'], "
        "['Books', 'Music', 'Hymns']], 'title': 'Heavenly Highway &amp; Hymns', 'price': 7.99}\n"
        "{'asin': 'B00000JBAT', 'categories': [['Toys']], 'related': {'also_bought': ['B1']}}\n"
    ),
}
REVIEW_2018 = {
    "overall": 5.0, "vote": "2", "verified": True, "reviewTime": "01 1, 2014", "reviewerID": "A1D4G1SNUZWQOT",
    "asin": "B00000JBAT", "style": {"Size:": " 5 oz"}, "reviewerName": "Tracey", "reviewText": "good", "summary": "ok",
    "unixReviewTime": 1388534400, "image": ["https://x/y.jpg"],
}  # fmt: skip
META_2018 = {
    "category": ["Grocery & Gourmet Food", "Candy", "</span></span></span>"], "tech1": "", "description": ["Sweet."],
    "fit": "", "title": "HERSHEY&#39;S Milk Duds, 5\" bag", "also_buy": [], "tech2": "", "brand": "Hershey",
    "feature": [], "rank": [], "also_view": [], "main_cat": "Grocery", "similar_item": "", "date": "",
    "price": "$12.99", "asin": "B00000JBAT", "imageURL": [], "imageURLHighRes": [],
}  # fmt: skip
AMAZON_2018 = {
    "Prime_Pantry.json.zst": json_lines(
        REVIEW_2018, REVIEW_2018, {**REVIEW_2018, "asin": "B0000DIWNI", "overall": 3.0}
    ),
    "meta_Prime_Pantry.json.zst": json_lines(
        META_2018,
        {**META_2018, "asin": "B0000DIWNI", "title": ["Saran", "Premium Wrap"], "price": ".a-box-inner{color:#fff}"},
        {**META_2018, "asin": "B0000DIWNZ", "title": "var aPageStart = (new Date()).getTime();"},
    ),
}
REVIEW_2023 = {
    "rating": 5.0, "title": "Such a lovely scent", "text": "Not too strong.", "images": [], "asin": "B00YQ6X8E1",
    "parent_asin": "B00YQ6X8EO", "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ", "timestamp": 1588687728923,
    "helpful_vote": 0, "verified_purchase": True,
}  # fmt: skip
AMAZON_2023 = {
    "All_Beauty.jsonl": json_lines(REVIEW_2023, {**REVIEW_2023, "timestamp": 1588687728924, "asin": "B00YQ6X8E2"}),
    "meta_All_Beauty.jsonl": json_lines(
        {
            "main_category": "All Beauty", "title": "Howard LC0008 Leather Conditioner",
            "average_rating": 4.8, "rating_number": 10, "features": [], "description": [], "price": None,
            "images": [{"thumb": "x"}], "videos": [], "store": "Howard Products", "categories": [],
            "details": {"UPC": "617390882781"}, "parent_asin": "B00YQ6X8EO", "bought_together": None,
        }
    ),
}  # fmt: skip
FLAGS = {"Adventure": 2, "Sci-Fi": 15}
MOVIELENS_100K = {
    "u.data": "196\t007\t3\t881250949\n186\t267\t3\t891717742\n",
    "u.item": "007|Cité des enfants perdus, La (1995)|01-Jan-1995||http://us.imdb.com/M/x|"
    + "|".join("1" if n in FLAGS.values() else "0" for n in range(19))
    + "\n267|unknown||||"
    + "|".join("1" if n == 0 else "0" for n in range(19))
    + "\n",
}
MOVIELENS_1M = {
    "ratings.dat": "1::1193::5::978300760\n1::661::3::978302109\n",
    "movies.dat": '1193::One "Flew" Over (1975)::Drama|War\n661::James and the Peach (1996)::Animation\n',
}
MOVIELENS = {
    "ratings.csv": "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,11,0.5,964981247\n2,171749,5.0,1445714835\n",
    "movies.csv": (
        'movieId,title,genres\n1,Toy Story (1995),Adventure|Animation\n11,"American President, The (1995)",Comedy\n'
        "171749,Death Note (2006\u20132007),(no genres listed)\n"
    ),
}
MIND = {
    "train/behaviors.tsv": (
        "1\tU13740\t11/15/2019 9:55:12 AM\tN1 N2\tN3-0 N4-1\n2\tU2\t11/15/2019 9:55:13 AM\t\tN1-1 N2-0\n"
    ),
    "dev/behaviors.tsv": (
        "1\tU13740\t11/16/2019 9:55:12 AM\tN1 N2 N4\tN5-1 N3-0\n2\tU3\t11/16/2019 9:55:13 AM\tN1\tN3 N4\n"
    ),
    "train/news.tsv": (
        "N1\tnews\tworld\tThe title &amp; more\tAn abstract\thttps://x\t[]\t[]\n"
        'N2\tsports\tgolf\t"Open quotes and the rest\tText "quoted" here\thttps://x\t[]\t[]\n'
        "N4\tlifestyle\tpets\tCats\t\thttps://x\t[]\t[]\n"
        "N3\tnews\tworld\tOthers\tText\thttps://x\t[]\t[]\n"
    ),
    "dev/news.tsv": "N4\tlifestyle\tpets\tCats\t\thttps://x\t[]\t[]\nN5\tnews\tus\tFive\tText\thttps://x\t[]\t[]\n",
}
STEAM = {
    "steam_reviews.json": (
        "{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0, "
        "u'date': u'2017-12-17', u'text': u'This would not be acceptable.', u'early_access': False, u'page': 1}\n"
        "{u'username': u'Chaos Syren', u'product_id': u'643980', u'date': u'2017-12-19', u'text': u'No title.'}\n"
        "{u'username': u'Chaos Syren', u'product_id': u'761140', u'date': u'2017-12-18', u'text': u'Early.'}\n"
        "{u'username': u'Chaos Syren', u'product_id': u'761140', u'date': u'2017-12-18', u'text': u'Twice.'}\n"
    ),
    "steam_games.json": (
        "{u'publisher': u'Kotoshiro', u'genres': [u'Action', u'Casual'], u'app_name': u'Lost Summoner Kitty', "
        "u'title': u'Lost Summoner Kitty', u'tags': [u'Strategy'], u'price': 4.99, u'id': u'761140'}\n"
        "{u'url': u'http://x', u'price': u'Free To Play', u'id': u'643980'}\n"
    ),
}
GOODREADS = {
    "goodreads_reviews_children.json": json_lines(
        {
            "user_id": "8842281e1d1347389f2ab93d60773d4d", "book_id": "24375664", "review_id": "5cd41", "rating": 5,
            "review_text": "Mind blowingly cool.", "date_added": "Fri Aug 25 13:55:02 -0700 2017", "n_votes": 16,
        }
    ),
    "goodreads_books_children.json": json_lines(
        {"book_id": "24375664", "isbn": "", "title": "Le Petit Prince &amp; co", "authors": [{"author_id": "1"}],
         "publisher": "", "description": "A prince."}
    ),
}  # fmt: skip

PAD_CSV = {
    "Prime_Pantry_cleaned_history.csv": ",user,history\n0,A2,\"['B2', 'B1', 'B2']\"\n1,A10,\"['B1']\"\n",
    "metadata_Prime_Pantry.csv": 'asin,title\nB9,Never bought\nB2,"Soup &amp; more, hot"\nB1,Salt\n',
}
RATINGS_2014 = {
    "ratings_Music.csv": "A2SUAM1J3GNN3B,0000013714,5.0,1252800000\nA1,B00000JBAT,2.0,1252886400\n",
    "meta_Music.json.gz": AMAZON_2014["meta_Music.json.gz"],
}
RATINGS_2018 = {
    "Prime_Pantry.csv": "B00000JBAT,A1D4G1SNUZWQOT,5.0,1388534400\nB0000DIWNI,A1,3.0,1388534400\n",
    "meta_Prime_Pantry.json.zst": AMAZON_2018["meta_Prime_Pantry.json.zst"],
}
RATINGS_2023 = {
    "All_Beauty.csv.gz": "user_id,parent_asin,rating,timestamp\nAG,B00YQ6X8EO,5.0,1588687728923\n",
    "meta_All_Beauty.jsonl": AMAZON_2023["meta_All_Beauty.jsonl"],
}


def raw_files(files: Mapping[str, str], folder: Path) -> tuple[list[Path], list[Path]]:
    """Write the files of a dump; those of metadata are told by their names."""
    roles: tuple[list[Path], list[Path]] = [], []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = text.encode("latin-1" if name in ("u.item", "movies.dat") else "utf-8")
        if path.suffix == ".gz":
            data = gzip.compress(data)
        if path.suffix == ".zst":
            data = pytest.importorskip("zstandard").compress(data)
        path.write_bytes(data)
        is_metadata = path.name.startswith(("meta", "u.item", "movies", "news", "steam_games", "goodreads_books"))
        roles[is_metadata].append(path)
    return roles


def read(name: str, files: Mapping[str, str], folder: Path) -> tuple[list[tuple[Any, ...]], dict[str, dict[str, Any]]]:
    interactions, items = raw_files(files, folder)
    source = SOURCES[name]
    return [tuple(row) for row in source.read_interactions(interactions)], {
        str(item["item"]): {key: value for key, value in item.items() if key != "item"}
        for item in source.read_items(items)
    }


def test_amazon_2014(tmp_path: Path):
    rows, items = read("amazon-2014", AMAZON_2014, tmp_path)
    assert rows[0] == ("A2SUAM1J3GNN3B", "0000013714", 1252800000 * SECOND, 5.0)
    assert rows[1] == rows[0]  # a review that is there twice
    assert items["0000013714"] == {
        "title": "Heavenly Highway &amp; Hymns",
        "brand": None,
        "categories": "Books > Music > Hymns",  # the longest of two paths
        "price": "7.99",
    }
    assert items["B00000JBAT"]["title"] is None


def test_amazon_2014_ratings_have_the_user_first_and_2018_the_item(tmp_path: Path):
    (tmp_path / "r.csv").write_text("A1,0000013714,4.0,1252800000\n")
    (row,) = SOURCES["amazon-2014"].read_interactions([tmp_path / "r.csv"])
    assert row == ("A1", "0000013714", 1252800000 * SECOND, 4.0)
    (tmp_path / "r.csv").write_text("0000013714,A1,4.0,1252800000\n")
    (row,) = SOURCES["amazon-2018"].read_interactions([tmp_path / "r.csv"])
    assert row == ("A1", "0000013714", 1252800000 * SECOND, 4.0)


def test_amazon_2018(tmp_path: Path):
    rows, items = read("amazon-2018", AMAZON_2018, tmp_path)
    assert rows[0] == ("A1D4G1SNUZWQOT", "B00000JBAT", 1388534400 * SECOND, 5.0)
    assert items["B00000JBAT"] == {
        "title": 'HERSHEY&#39;S Milk Duds, 5" bag',
        "brand": "Hershey",
        "categories": "Grocery & Gourmet Food > Candy",
        "price": "12.99",
    }
    assert items["B0000DIWNI"]["title"] == ["Saran", "Premium Wrap"]
    assert items["B0000DIWNI"]["price"] == ""  # a piece of a web page
    assert items["B0000DIWNZ"]["title"] == ""  # a script in the place of the title


def test_amazon_2023_takes_the_parent_product_and_milliseconds(tmp_path: Path):
    rows, items = read("amazon-2023", AMAZON_2023, tmp_path)
    assert rows[0] == ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8EO", 1588687728923, 5.0)
    assert items["B00YQ6X8EO"] == {
        "title": "Howard LC0008 Leather Conditioner",
        "brand": "Howard Products",
        "categories": "",
        "price": "",
    }
    (tmp_path / "Beauty.csv").write_text("user_id,parent_asin,rating,timestamp\nAG,B0,5.0,1588687728923\n")
    (row,) = SOURCES["amazon-2023"].read_interactions([tmp_path / "Beauty.csv"])
    assert row == ("AG", "B0", 1588687728923, 5.0)


@pytest.mark.parametrize(
    ("raw", "price"),
    [
        ("$12.99", "12.99"), (9.99, "9.99"), ("1,299.00", "1299.00"), ("$ 5", "5"), (None, ""), ("", ""),
        ("\u2014", ""), ("$10.00 - $20.00", ""), ("from 9.99", ""), (".a-box-inner{color:#fff}", ""), (12, "12"),
    ],
)  # fmt: skip
def test_prices_are_numbers_or_nothing(raw: object, price: str):
    assert price_of(raw) == price


def test_movielens_100k_with_zero_padded_ids_latin_letters_and_flags(tmp_path: Path):
    rows, items = read("movielens-100k", MOVIELENS_100K, tmp_path)
    assert rows[0] == ("196", "007", 881250949 * SECOND, 3.0)
    assert items["007"] == {
        "title": "Cité des enfants perdus, La",
        "year": "1995",
        "genres": ["Adventure", "Sci-Fi"],
        "full_title": "Cité des enfants perdus, La (1995)",
    }
    assert items["267"] == {"title": "unknown", "year": "", "genres": ["unknown"], "full_title": "unknown"}


def test_movielens_1m(tmp_path: Path):
    rows, items = read("movielens-1m", MOVIELENS_1M, tmp_path)
    assert rows[0] == ("1", "1193", 978300760 * SECOND, 5.0)
    assert items["1193"]["title"] == 'One "Flew" Over'
    assert items["1193"]["genres"] == ["Drama", "War"]


def test_movielens_latest(tmp_path: Path):
    rows, items = read("movielens", MOVIELENS, tmp_path)
    assert rows[0] == ("1", "1", 964982703 * SECOND, 4.0)
    assert items["11"]["title"] == "American President, The"
    assert items["171749"] == {
        "title": "Death Note",
        "year": "2006",
        "genres": [],
        "full_title": "Death Note (2006\u20132007)",
    }


def test_mind_history_comes_before_the_first_impression_and_only_clicks_count(tmp_path: Path):
    rows, items = read("mind", MIND, tmp_path)
    first = 1573811712  # 2019-11-15 09:55:12 UTC
    by_user: dict[str, list[tuple[int, str]]] = {}
    for user, news, time, rating in rows:
        assert rating is None
        by_user.setdefault(user, []).append((time // SECOND, news))
    # the history of dev is the longer one; N4 was clicked in the impression of train and is in it
    assert sorted(by_user["U13740"]) == [
        (first - 3, "N1"), (first - 2, "N2"), (first - 1, "N4"), (first, "N4"), (first + 86_400, "N5")
    ]  # fmt: skip
    assert by_user["U2"] == [(first + 1, "N1")]  # an empty history
    assert by_user["U3"] == [(first + 86_400, "N1")]  # the history alone: impressions of the test part have no labels
    assert items["N2"]["title"] == '"Open quotes and the rest'
    assert items["N4"]["abstract"] == ""


def test_steam_and_goodreads(tmp_path: Path):
    rows, items = read("steam", STEAM, tmp_path)
    assert rows[0] == ("Chaos Syren", "725280", 1513468800 * SECOND, None)
    assert items["761140"]["title"] == "Lost Summoner Kitty"
    assert items["643980"]["title"] is None
    rows, items = read("goodreads", GOODREADS, tmp_path)
    assert rows[0] == ("8842281e1d1347389f2ab93d60773d4d", "24375664", 1503694502 * SECOND, 5.0)
    assert items["24375664"]["title"] == "Le Petit Prince &amp; co"


def test_any_table_with_columns_named_by_the_user(tmp_path: Path):
    (tmp_path / "log.tsv").write_text("who\twhat\twhen\n7\t01\t2020-01-02 00:00:00\n")
    (tmp_path / "shop.csv").write_text("id;label\n01;Äpfel\n")
    columns = Columns("who", "what", "when", time_unit="iso")
    source = with_columns(SOURCES["table"], columns, {"item": "id", "title": "label"}, None, None)
    assert [tuple(row) for row in source.read_interactions([tmp_path / "log.tsv"])] == [
        ("7", "01", 1577923200 * SECOND, None)
    ]
    assert (source.timed, source.rated, dict(source.item_columns)) == (True, False, {"title": "token_seq"})
    source = with_columns(SOURCES["table"], columns, {"item": "id", "title": "label"}, ";", None)
    assert list(source.read_items([tmp_path / "shop.csv"])) == [{"item": "01", "title": "Äpfel"}]


@pytest.mark.parametrize("name", ["row", "item_id", "a:b", "a b", 'a"b', ""])
def test_names_that_cannot_be_a_column_of_the_item_file_are_refused(name: str):
    """`row` and `item_id` are there already; the others break the header of an atomic file."""
    with pytest.raises(InputError, match=r"cannot be a column of the \.item file"):
        with_columns(SOURCES["table"], Columns("u", "i"), {"item": "id", name: "label"}, None, None)


def test_files_of_items_without_names_of_their_columns_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "log.csv").write_text("u,i\n1,a\n1,b\n")
    (tmp_path / "shop.csv").write_text("id,label\na,A\nb,B\n")
    files = ["--interactions", str(tmp_path / "log.csv"), "--items", str(tmp_path / "shop.csv")]
    place = ["--name", "x", "--data_path", str(tmp_path / "data"), "--preset", "all"]
    assert main(["prepare", "table", *place, "--columns", "user=u", "item=i", *files]) == 2
    assert "item_columns: name the columns of the files of items, as in item=asin title=name" in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".csv"]


def test_an_object_of_json_lines_may_lack_what_a_table_must_have(tmp_path: Path):
    source = with_columns(SOURCES["table"], Columns("u", "i", None, "stars"), {"item": "id", "title": "t"}, None, None)
    (tmp_path / "log.jsonl").write_text(json_lines({"u": "1", "i": "a"}, {"u": "1", "i": "b", "stars": 4}))
    (tmp_path / "shop.jsonl").write_text(json_lines({"id": "a"}, {"id": "b", "t": "B"}))
    assert [row.rating for row in source.read_interactions([tmp_path / "log.jsonl"])] == [None, 4.0]
    assert [item["title"] for item in source.read_items([tmp_path / "shop.jsonl"])] == [None, "B"]
    (tmp_path / "log.csv").write_text("u,i,star\n1,a,4\n")
    (tmp_path / "shop.csv").write_text("id,name\na,A\n")
    with pytest.raises(InputError, match=r"log\.csv: no column 'stars'; the first record has u, i, star"):
        list(source.read_interactions([tmp_path / "log.csv"]))
    with pytest.raises(InputError, match=r"shop\.csv: no column 't'; the first record has id, name"):
        list(source.read_items([tmp_path / "shop.csv"]))


def test_parquet_of_another_engine(tmp_path: Path):
    pytest.importorskip("pyarrow")
    import pandas as pd

    frame = pd.DataFrame(
        {"u": [1, 2], "i": [10.0, 11.0], "t": pd.to_datetime(["2020-01-01", "2020-01-02"]), "text": "x"}
    )
    frame.to_parquet(tmp_path / "part-0.parquet")
    source = with_columns(SOURCES["table"], Columns("u", "i", "t", time_unit="iso"), {}, None, None)
    rows = [tuple(row) for row in source.read_interactions(expand([tmp_path]))]
    assert rows == [("1", "10", 1577836800 * SECOND, None), ("2", "11", 1577923200 * SECOND, None)]


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path):
    (tmp_path / "r.json").write_text(json.dumps({"user_id": "A", "asin": "B"}) + "\n")
    with pytest.raises(InputError, match=r"r\.json: no column 'reviewerID'; the first record has user_id, asin"):
        list(SOURCES["amazon-2018"].read_interactions([tmp_path / "r.json"]))
    with pytest.raises(InputError, match="table: name the columns"):
        SOURCES["table"].read_interactions([tmp_path / "r.json"])
    with pytest.raises(InputError, match=r"no\.csv: csv is not a format of this source; it has json"):
        list(table_reader({"json": Layout(Columns("u", "i"))})([tmp_path / "no.csv"]))


def test_every_source_has_a_preset_a_licence_and_complete_addresses():
    for name, source in SOURCES.items():
        assert name == source.name
        assert source.preset in PRESETS
        assert source.licence
        assert set(source.downloads) in ({"interactions", "items"}, {"archive"}, set())
        assert len(source.members) == (2 if "archive" in source.downloads else 0)
        for address in (address for addresses in source.downloads.values() for address in addresses):
            assert address.startswith("http")
