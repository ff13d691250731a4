"""Texts of items: which columns make them, and how the file is read."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest
import recbole
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.dataset_prep import item_texts
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts, text_columns, text_digest
from tests.unit.test_encode_text import item_file


def test_text_joins_the_fields_that_are_not_empty(tmp_path):
    path = item_file(
        tmp_path,
        [
            "a\tMilk &amp; honey\t4.5\tNestl&eacute;",
            "b\t\t1\tAcme",
            "c\t  two \u00a0 blanks \t2",
            "d\tNA\t3\tnull",
        ],
        header="item_id:token\ttitle:token_seq\tprice:float\tbrand:token",
    )
    assert read_item_texts(ItemFile(path), ["title", "brand"]) == {
        "a": "Milk & honey. Nestlé",
        "b": "Acme",
        "c": "two blanks",
        "d": "NA. null",
    }
    assert read_item_texts(ItemFile(path), ["brand"])["a"] == "Nestlé"


def test_reading_sees_the_same_items_as_the_parser_of_recbole(tmp_path):
    import pandas as pd

    path = item_file(tmp_path, ['a\t24" screen', 'b\t"quoted ""word"" here"', "", 'c\t"one\ttab"', "07\tlast"])
    column = "item_id:token"
    frame = pd.read_csv(path, delimiter="\t", dtype=str, encoding="utf-8", engine="python")  # as _load_feat
    texts = read_item_texts(ItemFile(path), ["title"])
    assert list(texts) == list(frame[column])
    assert list(texts.values()) == [" ".join(title.split()) for title in frame["title:token_seq"]]
    assert texts["a"] == '24" screen'


def test_a_quote_that_recbole_refuses_is_read_where_it_is_clear(tmp_path):
    path = item_file(tmp_path, ['a\t"A" is for Alibi', 'b\tB "is" for "Burglar"', 'c\t"C'])
    assert read_item_texts(ItemFile(path), ["title"]) == {"a": "A is for Alibi", "b": 'B "is" for "Burglar"', "c": "C"}


def test_items_without_text_are_kept_and_counted(tmp_path, caplog):
    path = item_file(tmp_path, ["a\t", "b\tsoap", "c\t   "])
    with caplog.at_level(logging.WARNING):
        assert read_item_texts(ItemFile(path), ["title"]) == {"a": "", "b": "soap", "c": ""}
    assert "2 of 3 items have no text in title, for example a, c" in caplog.text


@pytest.mark.parametrize(
    ("lines", "fields", "words"),
    [
        (["a\tx", "b\ty", "a\tz"], ["title"], ["line 4", "'a'", "line 2", "keep one line per item"]),
        (["a\tx"], ["titel"], ["no column 'titel'", "did you mean 'title'", "item_id, title", "text_fields"]),
        (["a\tx"], [], ["text_fields", "non-empty list"]),
        (["a\tx"], "title", ["text_fields", "'title'"]),
        (["a\tx", "\ty"], ["title"], ["line 3", "item id is empty"]),
        (["a\tx\ty"], ["title"], ["line 2", "3 columns", "header has 2"]),
        (
            ["a\tx", 'b\t"open quote', "c\ty", "d\tz"],
            ["title"],
            ["line 3", "double quote", "up to 5", "remove"],
        ),
        ([], ["title"], ["no items"]),
    ],
)
def test_a_bad_item_file_is_named_with_line_and_remedy(tmp_path, lines, fields, words):
    path = item_file(tmp_path, lines)
    with pytest.raises(InputError) as error:
        read_item_texts(ItemFile(path), fields)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_a_missing_item_file_or_item_column_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.item does not exist"):
        read_item_texts(ItemFile(tmp_path / "nothing.item"), ["title"])
    with pytest.raises(InputError, match=r"no column 'asin'.*item_id, title"):
        read_item_texts(ItemFile(item_file(tmp_path, ["a\tx"]), "asin"), ["title"])


def test_columns_stand_between_one_character_of_any_kind(tmp_path):
    path = item_file(tmp_path, ["a,red kite", "b,"], "item_id:token,title:token_seq")
    assert read_item_texts(ItemFile(path, separator=","), ["title"]) == {"a": "red kite", "b": ""}
    with pytest.raises(InputError, match="field_separator: '::' has 2 characters"):
        read_item_texts(ItemFile(path, separator="::"), ["title"])


def test_a_file_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "latin.item"
    path.write_bytes("item_id:token\ttitle:token_seq\na\tcafé\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.item.*not UTF-8"):
        read_item_texts(ItemFile(path), ["title"])


def test_a_text_longer_than_the_parser_allows_is_an_error_that_names_the_line(tmp_path):
    path = item_file(tmp_path, ["a\tx", "b\t" + "y" * 140_000])
    with pytest.raises(InputError, match=r"line 3: field larger than field limit"):
        read_item_texts(ItemFile(path), ["title"])


@given(st.dictionaries(st.text("ab7é", min_size=1), st.text("xy .é")), st.randoms())
def test_digest_ignores_the_order_of_items_only(texts, random):
    items = list(texts.items())
    random.shuffle(items)
    assert text_digest(dict(items)) == text_digest(texts)
    if texts:
        token = items[0][0]
        assert text_digest({**texts, token: texts[token] + "!"}) != text_digest(texts)


def test_digest_is_the_documented_formula():
    expected = hashlib.sha256("a\0é\nb\0\n".encode()).hexdigest()
    assert text_digest({"b": "", "a": "é"}) == expected


# Columns found by `auto`

SHOP = "sku:token\tasin:token\tname:token_seq\tbrand:token\tpath:token_seq\tprice:float\tlink:token\tabout:token_seq"
SHOP_LINES = [
    f"{n}\tB{n:04}\t{brand} {name}\t{brand}\tToys > {path}\t{n}.5\thttps://x.org/{n}\t{'many words ' * 40}{n}"
    for n, (brand, name, path) in enumerate(
        [
            ("Big Duck", "kite", "Outdoor"),
            ("Big Duck", "yo-yo", "Games"),
            ("Acme Inc", "ball", "Outdoor"),
            ("Acme Inc", "dice", "Games"),
        ]
    )
]


def auto(path, item_field="item_id"):
    return text_columns(ItemFile(path, item_field), ["auto"])


def test_auto_takes_columns_of_a_few_words_and_says_what_it_leaves(tmp_path, caplog):
    path = item_file(tmp_path, SHOP_LINES, SHOP)
    with caplog.at_level(logging.INFO):
        assert auto(path, "sku") == ["name", "path"]  # the brand stands in the name
        assert auto(path, "sku") == ["name", "path"]
    left = "not asin (0.0 words), brand (2.0 words), link (0.0 words), about (80.0 words)"
    assert caplog.text.count(f"text_fields: auto takes name, path; {left}") == 1, "said once"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("title_id", "B{n:04}"),
        ("Unnamed: 0", "{n}"),
        ("image_name", "IMG_{n}.jpg"),
        ("also_buy", "B00{n}XY B01{n}AB B02{n}CD"),  # bought together: maybe in the test period
        ("images", "https://x.org/{n}.jpg https://x.org/{n}b.jpg"),
        ("release_date", "Jan 1{n}, 1995"),
        ("updated", "1995-01-1{n} 00:00:00"),
        ("genre_ids", "12 18 3{n}"),
        ("rank", "#{n}"),
    ],
)
def test_auto_takes_no_identifiers_links_dates_or_numbers(tmp_path, column, value):
    lines = [f"{n}\t{value.format(n=n)}\tred {name}" for n, name in enumerate(["kite", "ball", "dice"])]
    assert auto(item_file(tmp_path, lines, f"item_id:token\t{column}:token_seq\tlabel:token")) == ["label"]


@pytest.mark.parametrize(
    ("text", "n_words"),
    [
        ("HERSHEY'S Milk Duds, 5 Ounce(Halloween Candy)", 4),
        ("Mother\u2019s rock-and-roll A&P.", 3),
        ("Amélie (le film)", 3),
        ("and/or 3D x2", 0),
        ("東京物語 の", 3),
        ("苹果手机壳iPhone12防摔", 4),
        ("लाल पतंग", 2),
        ("Cafe\u0301 Mu\u0308ller", 2),
        ("- > 42", 0),
        ("a" + "." * 5000 + "1", 0),  # not in exponential time
    ],
)
def test_words_are_made_of_letters(text, n_words):
    assert item_texts._n_words(text) == n_words


def test_auto_takes_a_description_where_there_is_nothing_else(tmp_path):
    lines = [f"{item}\t{'many words ' * 40}\t199{item}" for item in "123"]
    header = "item_id:token\tdescription:token_seq\tyear:token"
    assert auto(item_file(tmp_path, lines, header)) == ["description"]
    lines = [f"{n}\t{genre}\tid{n}" for n, genre in enumerate(["rock", "pop"])]
    assert auto(item_file(tmp_path, lines, "item_id:token\tgenre:token\tlink:token")) == ["genre"]


def test_auto_takes_no_column_that_is_mostly_empty(tmp_path):
    lines = [f"{n}\tred kite\t{'a rare note' if n == 0 else ''}" for n in range(11)]
    assert auto(item_file(tmp_path, lines, "item_id:token\tlabel:token_seq\tnote:token_seq")) == ["label"]


def test_auto_takes_a_brand_that_the_name_does_not_hold(tmp_path):
    lines = [line.replace("\tBig Duck kite\t", "\tkite\t") for line in SHOP_LINES]
    assert auto(item_file(tmp_path, lines, SHOP), "sku") == ["name", "brand", "path"]


def test_auto_takes_a_title_of_one_word_or_many(tmp_path):
    lines = ["a\t映画\tx", "b\t東京物語\tx"]
    assert auto(item_file(tmp_path, lines, "item_id:token\tmovie_title:token\tkind:token")) == ["movie_title"]
    lines = [f"{item}\t{'word ' * 50}{item}" for item in "ab"]
    assert auto(item_file(tmp_path, lines, "item_id:token\ttitle:token_seq")) == ["title"]


@pytest.mark.parametrize(
    "values",
    [
        ["Intel i7-9700K 3.6GHz LGA1151 95W CPU", "AMD R5-3600 4.2GHz AM4 65W CPU"],
        ["苹果手机壳iPhone12防摔", "三星手机壳S20防摔"],
        ["लाल पतंग", "नीली गेंद"],
    ],
)
def test_auto_takes_titles_with_numbers_and_of_any_script(tmp_path, values):
    lines = [f"{n}\t{value}\tBig Duck" for n, value in enumerate(values)]
    header = "item_id:token\tproduct_title:token_seq\tbrand:token"
    assert auto(item_file(tmp_path, lines, header)) == ["product_title", "brand"]


def test_auto_takes_no_json_objects(tmp_path):
    lines = [f"{n}\tred {name}\t[{{Label: Prince Philip, Type: Person}}]" for n, name in enumerate(["kite", "ball"])]
    assert auto(item_file(tmp_path, lines, "item_id:token\ttitle:token_seq\ttitle_entities:token_seq")) == ["title"]


@pytest.mark.parametrize("columns", [["title", "full_title"], ["full_title", "title"], ["title", "again"]])
def test_auto_takes_no_text_twice(tmp_path, columns):
    values = {"title": "Toy Story", "full_title": "Toy Story (1995)", "again": "Toy Story"}
    header = "\t".join(["item_id:token", *(f"{column}:token_seq" for column in columns)])
    line = "\t".join(["a", *(values[column] for column in columns)])
    assert auto(item_file(tmp_path, [line], header)) == ["title" if "again" in columns else "full_title"]


def test_auto_looks_at_values_that_are_there(tmp_path):
    header = "item_id:token\tlabel:token_seq\tempty:token_seq"
    assert auto(item_file(tmp_path, ["a\t\t", "b", "c\ttwo words\t"], header)) == ["label"]


def test_auto_without_a_column_of_words_asks_for_one(tmp_path):
    path = item_file(tmp_path, ["a\t1990\t2.5", "b\t1991\t3"], "item_id:token\tyear:token\tprice:float")
    with pytest.raises(InputError) as error:
        auto(path)
    for word in (str(path), "auto finds no column of words", "item_id, year, price", "text_fields"):
        assert word in str(error.value)


@given(st.lists(st.text("abc{} ", min_size=1), min_size=1).filter(lambda fields: fields != ["auto"]))
def test_named_columns_stay_as_they_are(fields):
    assert text_columns(ItemFile(Path("not there")), fields) == fields


@pytest.mark.parametrize(
    ("dataset", "columns"),
    [
        ("prime_pantry", ["title"]),
        ("amazon_beauty", ["title", "categories"]),
        ("amazon_toys", ["title", "categories"]),
        ("ml_latest_small", ["genres", "full_title"]),
    ],
)
def test_auto_finds_the_texts_of_real_datasets(dataset, columns):
    if "RECBOLE_PAD_DATA" not in os.environ:
        pytest.skip("RECBOLE_PAD_DATA does not name the folder of the datasets")
    assert auto(Path(os.environ["RECBOLE_PAD_DATA"]) / dataset / f"{dataset}.item") == columns


def test_auto_finds_the_titles_that_recbole_brings():
    folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    assert auto(folder / "ml-100k.item") == ["movie_title", "class"]
