"""Texts and ids as RecBole's reader gets them back."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_pad.dataset_prep.clean import READ_AS_MISSING, atomic_id, path_of, text_cleaner, token_of
from recbole_pad.dataset_prep.errors import InputError


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("C&amp;H Sugar, 16 Oz", "C&H Sugar, 16 Oz"),
        ("Mrs. Meyer&rsquo;s &quot;Clean&quot; Day", "Mrs. Meyer\u2019s 'Clean' Day"),
        ('15" Monitor\t\r\n  black', "15' Monitor black"),
        ("a\u2028b\x00c\xa0d\x85e", "a b c d e"),
        (["Soup", None, "  of the day "], "Soup of the day"),
        (None, ""),
        (float("nan"), ""),
        ("   ", ""),
        ("half \ud83d of a smile", "half \\ud83d of a smile"),
        (7, "7"),
    ],
)
def test_texts_are_one_line_without_entities_and_double_quotes(raw: object, text: str):
    assert text_cleaner()(raw) == text


def test_entities_are_kept_where_asked():
    assert text_cleaner("keep")("Shells &amp;  Cheese") == "Shells &amp; Cheese"
    with pytest.raises(InputError, match="entities: 'drop'"):
        text_cleaner("drop")


def as_recbole_reads(tokens: list[str]) -> list[object]:
    """`Dataset._load_feat` of RecBole 1.2.1: pandas' python engine, texts."""
    file = io.StringIO("\n".join(["user_id:token\tx:token", *(f"{token}\tend" for token in tokens)]) + "\n")
    frame = pd.read_csv(file, delimiter="\t", usecols=["user_id:token", "x:token"], dtype=str, engine="python")
    assert (frame["x:token"] == "end").all()
    return frame["user_id:token"].tolist()


awkward = st.one_of(
    st.sampled_from(
        [*sorted(READ_AS_MISSING), 'say "hi"', '"quoted"', "a\tb", "%22", "100%", "%4EA", "007", "a b", "\u2028"]
    ),
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).map(str.strip).filter(bool),
)


@given(st.lists(awkward, min_size=2, max_size=6, unique=True))
def test_ids_are_read_back_as_written_and_stay_different(ids: list[str]):
    written = [atomic_id(token) for token in ids]
    assert as_recbole_reads(written) == written
    assert len(set(written)) == len(ids)


@pytest.mark.parametrize("token", ["B00005BPJO", "0439893577", "A1YJEY40YUW4SE", "user with blanks", "50% off"])
def test_usual_ids_are_left_alone(token: str):
    assert atomic_id(token) == token


def test_the_words_that_are_read_as_missing_are_those_of_pandas():
    file = io.StringIO("a\n" + "\n".join(sorted(READ_AS_MISSING)) + "\n")
    assert pd.read_csv(file, dtype=str, engine="python")["a"].isna().all()
    from pandas._libs.parsers import STR_NA_VALUES

    assert STR_NA_VALUES - {""} == READ_AS_MISSING


@pytest.mark.parametrize(
    ("raw", "token"), [(7, "7"), (7.0, "7"), ("007", "007"), (" x ", "x"), (None, ""), (float("nan"), "")]
)
def test_ids_of_any_type_are_texts(raw: object, token: str):
    assert token_of(raw) == token


def test_category_paths_leave_scraps_of_web_pages_out():
    assert path_of(["Grocery", "</span></span>", "", "Soup"]) == "Grocery > Soup"
