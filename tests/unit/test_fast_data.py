"""`fast_data`: files, filters, rows, splits and batches are RecBole's own, bit by bit."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import recbole.data.dataset.dataset as recbole_dataset
import torch
from hypothesis import HealthCheck, example, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.data.dataset import Dataset, SequentialDataset
from recbole.data.interaction import Interaction
from recbole.sampler import RepeatableSampler
from recbole.utils import FeatureSource

from recbole_pad.data import augmentation, filtering, reading, sampling, splitting
from recbole_pad.data.rows import LazyRows, windows
from tests.reference import rows_loops

# --- reading -------------------------------------------------------------------------------------------------------


class Keys(dict[str, Any]):
    """A config: a key that is not set is None."""

    def __missing__(self, key: str) -> None:
        return None


def bare(fast: bool, **keys: Any) -> Dataset:
    """A dataset that has loaded nothing."""
    dataset = object.__new__(Dataset)
    dataset.config = Keys({"field_separator": "\t", "seq_separator": " ", "fast_data": fast, **keys})
    dataset.logger = getLogger()
    dataset._get_preset()
    return dataset


def load(file: Path, fast: bool, **keys: Any) -> tuple[pd.DataFrame | None, list[dict[str, Any]]]:
    """What `Dataset._load_feat` gives for a file, and what it notes about the fields."""
    dataset = bare(fast, **keys)
    frame = dataset._load_feat(str(file), FeatureSource.INTERACTION)
    return frame, [dataset.field2type, dataset.field2source, dataset.field2seqlen, dataset.field2bucketnum]


def outcome(file: Path, fast: bool, **keys: Any) -> Any:
    """`load`, or the type of the error."""
    try:
        return load(file, fast, **keys)
    except Exception as error:
        return type(error)


def exactly(value: Any) -> Any:
    """A cell by type and bits: None is not NaN, and an array has a type and a shape."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, [exactly(entry) for entry in value.tolist()]
    return type(value), value.hex() if isinstance(value, float) else value


def assert_same_frame(got: pd.DataFrame | None, expected: pd.DataFrame | None) -> None:
    assert (got is None) == (expected is None)
    if expected is None:
        return
    assert list(got.columns) == list(expected.columns)
    assert got.dtypes.tolist() == expected.dtypes.tolist()
    assert type(got.index) is type(expected.index)
    assert got.index.equals(expected.index)
    for field in expected:
        assert [exactly(value) for value in got[field]] == [exactly(value) for value in expected[field]], field


def assert_reads_alike(file: Path, **keys: Any) -> None:
    expected, got = outcome(file, False, **keys), outcome(file, True, **keys)
    assert recbole_dataset.pd is pd, "RecBole's own reading is ours from here on"
    if isinstance(expected, type):
        assert got == expected
    else:
        assert not isinstance(got, type), got
        assert got[1] == expected[1]
        assert_same_frame(got[0], expected[0])


HEAD = "user_id:token\titem_id:token\ttags:token_seq\tscores:float_seq\ttimestamp:float\n"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines that read the files of a test, in order."""
    used: list[str] = []
    original = pd.read_csv

    def read_csv(*args: Any, engine: str, **kwargs: Any) -> pd.DataFrame:
        used.append(engine)
        return original(*args, engine=engine, **kwargs)

    monkeypatch.setattr(reading.pd, "read_csv", read_csv)
    return used


FILES: dict[str, tuple[str, list[str]]] = {  # content, engines that read it with fast_data
    "plain": ("u1\ti1\ta b\t1 2.5\t10\nu2\ti1\tc\t3\t11.5\n", ["c"]),
    "no newline at the end": ("u1\ti1\ta b\t1 2.5\t10\nu2\ti1\tc\t3\t11.5", ["c"]),
    "one line": ("u1\ti1\ta b\t1 2.5\t10\n", ["c"]),
    "no line": ("", ["c"]),
    "windows line ends": ("u1\ti1\ta b\t1 2.5\t10\r\nu2\ti1\tc\t3\t11.5\r\n", ["c"]),
    "missing values": ("\ti1\t\t\t10\nu2\tNA\tnull\tnan\t11\nnan\tN/A\t \t 1\t12\n", ["c"]),
    "numbers like tokens": ("007\t1.0\t1e5 0x1\t1e5\t1e5\n7\t1\t-0 +1\t-0 +1\t-.5\nTrue\tinf\tno\t1\t.5E-3\n", ["c"]),
    "blank lines": ("\nu1\ti1\ta\t1\t10\n\nu2\ti1\tc\t3\t11\n  \n\n \ti1\tc\t3\t11\n", ["c"]),
    "a line of separators": ("u1\ti1\ta\t1\t10\nu2\ti1\tc\t3\t11\n\t\t\t\t\nu3\ti1\tc\t3\t11\n", ["c", "python"]),
    "leading blanks": (" u1\ti1 \ta\t1\t 10\n  \ti1\tc\t3\t11 \n", ["c"]),
    "blanks inside": ("u 1\ti 1\t  a   b \t 1  2 \t10\nu1\ti1\t\t\t11\n", ["c"]),
    "long lines": ("u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t10\nu3\ti1\ta\t1\t10\tmore\tand more\nu4\ti1\ta\t1\t11\t\n", ["c"]),
    "first line long": ("u1\ti1\ta\t1\t10\tmore\nu2\ti1\ta\t1\t10\n", ["python"]),
    "a name for the index": ("u1\nu1\ti1\ta\t1\t10\t11\nu2\ti1\ta\t1\t10\t12\n", ["python"]),
    "short line": ("u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t12\nu2\nu3\ti1\ta\t1\t11\n", ["c", "python"]),
    "missing time": ("u1\ti1\ta\t1\t10\nu2\ti1\ta\t1\t\n", ["c", "python"]),
    "quotes": ('"u1"\t"i\t1"\ta\t1\t10\n"u""2"\ti"2\ta\t1\t"11"\n', ["python"]),
    "line end in quotes": ('"u\n1"\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\n', ["python"]),
    "malformed quotes": ('"u1"x\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\n', ["python"]),
    "open quotes": ('"u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\n', ["python"]),
    "a null byte": ("u\0001\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\n", ["python"]),
    "a lone carriage return": ("u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\ru3\ti3\ta\t1\t12\n", ["python"]),
    "letters": ("ü1\téß\té ß\t1\t10\nu\u30002\t東京\t\u00a0\t1\t11\n", ["c"]),
    "an odd blank line": ("u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t11\n\u3000\nu1\ti1\ta\t1\t10\n", ["c", "python"]),
    "not a number": ("u1\ti1\ta\t1\t10\nu2\ti2\ta\t1\t1_0\n", ["c", "python"]),
    "no number at all": ("u1\ti1\ta\t1\tten\nu2\ti2\ta\t1\t11\n", ["c", "python"]),
    "not a number in a list": ("u1\ti1\ta\t1 x\t10\n", ["c"]),
    "large whole numbers": ("u1\ti1\ta\t1\t1700000000123456789\nu2\ti2\ta\t1\t1700000000123456791\n", ["c", "python"]),
    "long fractions": ("u1\ti1\ta\t1\t0.12345678901234567\nu2\ti2\ta\t1\t5e-324\nu2\ti2\ta\t1\t1.7976931348\n", ["c"]),
    "infinity": ("u1\ti1\ta\t1\tinf\nu2\ti2\ta\t1\t-Infinity\n", ["c", "python"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_recbole_reads_them(name: str, tmp_path: Path, engines: list[str]):
    content, used = FILES[name]
    file = tmp_path / "x.inter"
    file.write_text(HEAD + content, encoding="utf-8", newline="")
    outcome(file, True)
    assert engines == used
    assert_reads_alike(file)


@pytest.mark.parametrize(
    ("keys", "used"),
    [
        ({"load_col": {"inter": ["item_id", "user_id", "timestamp"]}}, ["c"]),
        ({"load_col": {"inter": ["timestamp", "tags"]}}, ["c"]),
        ({"load_col": {"inter": "*"}}, ["c"]),
        ({"unload_col": {"inter": ["timestamp", "scores"]}}, ["c", "python"]),
        ({"load_col": {"inter": ["user_id"]}}, ["python"]),
        ({"load_col": {"inter": ["unknown"]}}, []),
        ({"load_col": {"item": ["item_id"]}}, []),
        ({"seq_len": {"tags": 1, "scores": 7}}, ["c"]),
        ({"encoding": "utf-8"}, ["c"]),
        ({"encoding": "latin-1"}, ["c"]),
        ({"encoding": "cp1251"}, ["c"]),
        ({"encoding": "utf-16"}, ["python"]),
        ({"encoding": "utf-8-sig"}, ["python"]),
        ({"seq_separator": ","}, ["c"]),
    ],
    ids=str,
)
def test_columns_lengths_and_encodings_are_recboles(keys, used, tmp_path: Path, engines: list[str]):
    letter = {"latin-1": "é", "cp1251": "я"}.get(keys.get("encoding", ""), "東")
    lines = f"u1\ti1\ta b,c d\t1\t10\nu2\t\tc,e\t3\t11.5\n{letter}\ti1\t\t\t12\n"
    file = tmp_path / "x.inter"
    file.write_text(HEAD + lines, encoding=keys.get("encoding", "utf-8"))
    outcome(file, True, **keys)
    assert engines == used
    assert_reads_alike(file, **keys)


@pytest.mark.parametrize(
    ("separator", "used"), [(",", "c"), (" ", "c"), ("|", "c"), ("::", "python"), ("||", "python")]
)
def test_separators_are_recboles(separator: str, used: str, tmp_path: Path, engines: list[str]):
    rows = [
        ["user_id:token", "item_id:token", "timestamp:float"],
        ["u1", "i1", "1"],
        ["", "i\t2", "2"],
        ["u3", "", "3"],
    ]
    file = tmp_path / "x.inter"
    file.write_text("\n".join(separator.join(row) for row in rows))
    outcome(file, True, field_separator=separator)
    assert engines == [used]
    assert_reads_alike(file, field_separator=separator)


def test_bytes_of_another_encoding_are_refused_as_by_recbole(tmp_path: Path):
    for n_lines in (1, 20_000):
        file = tmp_path / "x.inter"
        file.write_bytes(HEAD.encode() + b"u1\ti1\ta\t1\t10\n" * n_lines + b"u\xff\ti1\ta\t1\t10\n")
        assert outcome(file, True) is outcome(file, False) is UnicodeDecodeError


TEXTS = st.one_of(
    st.sampled_from(["", " ", "NA", "nan", "None", "1", "1.0", "007", "a b", "x"]),
    st.text(st.sampled_from("ab1. -_\u00e9\u3000\u2028\x0b\x1c"), max_size=3),
)
NUMBERS = st.one_of(
    st.floats(allow_infinity=False, min_value=-9e15, max_value=9e15).map(str),
    st.integers(-(10**15), 10**15).map(str),
    st.sampled_from(["", " 1", "1 ", "-1e-3", "+.5", "5.", "007", "nan", "N/A", "0.30000000000000004"]),
)
ODD = st.lists(st.one_of(TEXTS, NUMBERS, st.sampled_from(['"', '"a"', "inf", "1_0", "9007199254740993"])), max_size=7)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, str, list[str]]:
    """(content, separator, fields to load); most lines have the fields that the header asks for, some are odd."""
    separator = draw(st.sampled_from(["\t", ",", " ", ";"]))
    types = draw(st.lists(st.sampled_from(["token", "float", "token_seq"]), min_size=1, max_size=3))
    regular = st.tuples(*[NUMBERS if kind == "float" else TEXTS for kind in types]).map(list)
    lines = draw(st.lists(regular, max_size=6))
    if draw(st.integers(0, 3)) == 0:
        lines.insert(draw(st.integers(0, len(lines))), draw(ODD))
    end = draw(st.sampled_from(["\n", "\n", "\r\n", "\r"]))
    text = "".join(separator.join(cell.replace(separator, "_") for cell in cells) + end for cells in lines)
    fields = [f"f{number}" for number in range(len(types))]
    loaded = draw(st.lists(st.sampled_from(fields), min_size=len(fields) - 1, unique=True)) or fields
    return (
        separator.join(f"{field}:{kind}" for field, kind in zip(fields, types, strict=True)) + "\n" + text,
        separator,
        loaded,
    )


@examples(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=files())
def test_any_file_is_read_as_recbole_reads_it(file: tuple[str, str, list[str]], tmp_path: Path):
    content, separator, fields = file
    path = tmp_path / "x.inter"
    path.write_text(content, encoding="utf-8", newline="")
    assert_reads_alike(path, field_separator=separator, load_col={"inter": fields})


# --- filtering -----------------------------------------------------------------------------------------------------

INTERVALS = [
    "[0,inf)",
    "[1,inf)",
    "[2,inf)",
    "[3,inf)",
    "(1,3]",
    "[1,3]",
    "[1,2];[4,99]",
    "[4,9];[1,2]",
    "[3,1]",
    "nothing",
]


@examples(deadline=None, max_examples=150)
@example(  # RecBole drops a user below the first interval, if it has features, whatever the second one allows
    pairs=[*("ax", "ay", "bx"), *("cw", "cx", "cy", "cz")],
    features=({"a", "c"}, None),
    keys={"user_inter_num_interval": "[4,9];[1,2]", "item_inter_num_interval": None},
)
@example(pairs=["ax", "bx"], features=({"a", "b", "c"}, None), keys={"user_inter_num_interval": "[1,inf)"})
@example(pairs=["aw", "ax", "ay", "az", "bx"], features=(None, None), keys={"user_inter_num_interval": "[1,3]"})
@example(pairs=["aw", "ax", "ay", "az", "bx"], features=({"a", "b"}, None), keys={"user_inter_num_interval": "[0,3]"})
@given(
    pairs=st.lists(st.text("abcde", min_size=2, max_size=2), max_size=25),
    features=st.tuples(*[st.none() | st.sets(st.sampled_from("abcdefg"), min_size=1)] * 2),
    keys=st.fixed_dictionaries(
        {f"{side}_inter_num_interval": st.none() | st.sampled_from(INTERVALS) for side in ("user", "item")}
    ),
)
def test_rounds_of_filtering_drop_what_recbole_drops(pairs, features, keys):
    def filtered(fast: bool) -> list[pd.DataFrame | None]:
        dataset = bare(fast, **keys)
        dataset.uid_field, dataset.iid_field = "user_id", "item_id"
        rows = pd.DataFrame(
            [tuple(pair) for pair in pairs],
            columns=["user_id", "item_id"],
            dtype=object,
            index=range(0, 3 * len(pairs), 3),
        )
        dataset.inter_feat = rows
        dataset.user_feat, dataset.item_feat = (
            None if names is None else pd.DataFrame({field: sorted(names), "n": range(len(names))})
            for field, names in zip(("user_id", "item_id"), features, strict=True)
        )
        dataset._filter_by_inter_num()
        return [dataset.inter_feat, dataset.user_feat, dataset.item_feat]

    for got, expected in zip(filtered(True), filtered(False), strict=True):
        if expected is None:
            assert got is None
        else:
            pd.testing.assert_frame_equal(got, expected)


# --- rows ----------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=9), width=st.integers(1, 5), data=st.data())
def test_windows_are_the_values_before_their_ends(values: list[float], width: int, data: st.DataObject):
    ends = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=6))
    lengths = [data.draw(st.integers(0, min(end, width))) for end in ends]
    args = torch.tensor(ends, dtype=torch.long), torch.tensor(lengths, dtype=torch.long), width
    numbers = torch.tensor(values, dtype=torch.float64)
    expected = [rows_loops.padded_window(values, *row, width) for row in zip(ends, lengths, strict=True)]
    got = windows(numbers, *args)
    assert (got.dtype, got.shape) == (torch.float64, (len(ends), width))
    assert got.tolist() == expected
    pairs = windows(torch.stack([numbers, -numbers], dim=1), *args)
    assert torch.equal(pairs, torch.stack([got, -got], dim=2))


def test_long_columns_are_made_in_blocks(monkeypatch: pytest.MonkeyPatch):
    values, end = torch.arange(1, 40), torch.arange(39)
    length = end.clamp(max=4)
    whole = windows(values, end, length, 4)
    monkeypatch.setattr("recbole_pad.data.rows._BLOCK_ROWS", 5)
    assert torch.equal(windows(values, end, length, 4), whole)
    assert whole[6].tolist() == [3, 4, 5, 6]


# --- datasets, splits and batches ----------------------------------------------------------------------------------

BASE: dict[str, Any] = {"model": "SASRec", "train_neg_sample_args": None}
COLUMNS = ["user_id", "item_id", "timestamp", "rating", "tags"]


def split(ratios: dict[str, Any], group_by: str = "user", mode: str = "full") -> dict[str, Any]:
    return {
        "eval_args": {"split": ratios, "order": "TO", "group_by": group_by, "mode": mode},
        "mask_history": mode == "full" and "LS" in ratios,
    }


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "one step": {"MAX_ITEM_LIST_LENGTH": 1},
    "long": {"MAX_ITEM_LIST_LENGTH": 50},
    "valid_only": split({"LS": "valid_only"}),
    "test_only": split({"LS": "test_only"}),
    "ratio": split({"RS": [0.8, 0.1, 0.1]}),
    "uneven ratio": split({"RS": [3, 1, 1]}),
    "ratio over time": split({"RS": [0.8, 0.1, 0.1]}, "none"),
    "two parts by ratio": split({"RS": [0.7, 0, 0.3]}),
    "time": split({"TS": [0.6, 0.2, 0.2]}),
    "sampled ranking": split({"LS": "valid_and_test"}, mode="uni5"),
    "k-core": {"user_inter_num_interval": "[5,inf)", "item_inter_num_interval": "[4,inf)"},
    "numbers with a weight": {"numerical_features": ["timestamp"]},
    "unused columns": {"unused_col": {"inter": ["timestamp", "timestamp_list"]}},
    "negatives": {
        "loss_type": "BPR",
        "train_neg_sample_args": {
            "distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False, "candidate_num": 0,
        },
    },
    "masks": {"model": "BERT4Rec"},
}  # fmt: skip


@pytest.fixture
def messy(tmp_path: Path) -> dict[str, Any]:
    """Unsorted and tied times, repeated items, missing values, features of users and items, lists and numbers."""
    rng = np.random.default_rng(5)
    lines = ["\t".join(["user_id:token", "item_id:token", "tags:token_seq", "rating:float", "timestamp:float"])]
    for _ in range(260):
        tags = " ".join(f"t{tag}" for tag in rng.integers(0, 5, size=rng.integers(0, 4)))
        user, item = f"u{rng.integers(0, 25)}", "" if rng.random() < 0.03 else f"i{rng.integers(0, 12)}"
        rating = "" if rng.random() < 0.1 else str(rng.integers(1, 6))
        lines.append(f"{user}\t{item}\t{tags}\t{rating}\t{1_600_000_000 + rng.integers(0, 6) * 50}")
    lines.append("lonely\ti1\tt1\t3\t1600000000")
    users = ["user_id:token\tage:float", *(f"u{user}\t{20 + user}" for user in range(30))]
    items = ["item_id:token\tkind:token\twords:token_seq", *(f"i{item}\tk{item % 3}\tw w{item}" for item in range(14))]
    (tmp_path / "messy").mkdir()
    for suffix, content in (("inter", lines), ("user", users), ("item", items)):
        (tmp_path / "messy" / f"messy.{suffix}").write_text("\n".join(content) + "\n")
    columns = {"inter": COLUMNS, "user": ["user_id", "age"], "item": ["item_id", "kind", "words"]}
    return {"dataset": "messy", "data_path": str(tmp_path), "load_col": columns}


def assert_same_feat(got: Any, expected: Any) -> None:
    """Equal columns in equal order, by type and value."""
    assert list(got) == list(expected)
    assert len(got) == len(expected)
    for field in expected:
        assert got[field].dtype == expected[field].dtype, field
        assert torch.equal(got[field], expected[field]), field


def batches(loader: Any) -> list[tuple[Any, ...]]:
    """The batches of an epoch, with every source of chance as at the start of a process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    return [batch if isinstance(batch, tuple) else (batch,) for batch in loader]


def assert_same_batches(got: Any, expected: Any) -> None:
    pairs = list(zip(batches(got), batches(expected), strict=True))
    assert pairs
    for own, stock in pairs:
        assert type(own[0]) is Interaction
        assert sorted(own[0]) == sorted(stock[0])
        for field in stock[0]:
            assert own[0][field].dtype == stock[0][field].dtype, field
            assert torch.equal(own[0][field], stock[0][field]), field
        for one, other in zip(own[1:], stock[1:], strict=True):
            assert str(one) == str(other)


Prepared = Callable[..., Any]


def both(prepared: Prepared, **changes: Any) -> tuple[Any, Any]:
    """(config, whole dataset, three loaders) with `fast_data` and without."""
    fast, stock = (prepared(**{**BASE, **changes, "fast_data": key}) for key in (True, False))
    assert isinstance(fast[1].inter_feat, LazyRows)
    assert type(stock[1].inter_feat) is Interaction
    return fast, stock


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dataset", ["tiny", "messy"])
def test_splits_and_batches_of_a_stock_model_stay_the_same(
    name: str, dataset: str, prepared: Prepared, request: pytest.FixtureRequest
):
    data = request.getfixturevalue("messy") if dataset == "messy" else {"dataset": dataset}
    fast, stock = both(prepared, **data, **CASES[name])
    assert_same_feat(fast[1].inter_feat, stock[1].inter_feat)
    for feat in ("user_feat", "item_feat"):
        if getattr(stock[1], feat) is not None:
            assert_same_feat(getattr(fast[1], feat), getattr(stock[1], feat))
    assert fast[1].field2type == stock[1].field2type
    assert fast[1].field2seqlen == stock[1].field2seqlen
    assert fast[1].field2token_id == stock[1].field2token_id
    for got, expected in zip(fast[2:], stock[2:], strict=True):
        if len(expected._dataset):
            assert_same_batches(got, expected)
        assert_same_feat(got._dataset.inter_feat, expected._dataset.inter_feat)


@pytest.mark.slow
def test_ml_100k_stays_the_same(prepared: Prepared):
    """All columns of all three files; the titles hold quotes and letters beyond ASCII."""
    columns = {"load_col": None, "numerical_features": ["rating"], "eval_batch_size": 512, "train_batch_size": 4096}
    fast, stock = both(prepared, dataset="ml-100k", MAX_ITEM_LIST_LENGTH=10, **columns)
    for feat in ("inter_feat", "user_feat", "item_feat"):
        assert_same_feat(getattr(fast[1], feat), getattr(stock[1], feat))
    for got, expected in zip(fast[2:], stock[2:], strict=True):
        assert_same_feat(got._dataset.inter_feat, expected._dataset.inter_feat)
        assert_same_batches(got, expected)
    assert len(stock[2]._dataset) > 90_000


def test_a_dataset_class_with_an_augmentation_of_its_own_keeps_it(prepared: Prepared, messy: dict[str, Any]):
    changes = {**messy, "model": "DIEN", "threshold": {"rating": 4}, "train_neg_sample_args": None}
    changes["load_col"] = {"inter": COLUMNS[:4]}
    fast, stock = (prepared(**changes, fast_data=key)[1].inter_feat for key in (True, False))
    assert type(fast) is Interaction
    assert_same_feat(fast, stock)
    assert "neg_item_id_list" in stock


def test_lists_that_recbole_cannot_fill_are_left_to_it(config: Callable[..., Any], messy: dict[str, Any]):
    """It takes the length of a list column before filtering, and raises if filtering makes it shorter."""
    folder = Path(messy["data_path"]) / "messy"
    lines = (folder / "messy.inter").read_text().splitlines()
    (folder / "messy.inter").write_text("\n".join([*lines, "once\ti1\ta b c d e f\t3\t1600000000"]) + "\n")
    errors = []
    for key in (True, False):
        changes = {**BASE, **messy, "user_inter_num_interval": "[2,inf)", "fast_data": key}
        with pytest.raises(RuntimeError) as raised:
            create_dataset(config(**changes)).build()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def test_a_missing_time_column_is_refused_as_by_recbole(config: Callable[..., Any]):
    errors = []
    for key in (True, False):
        changes = {**BASE, "load_col": {"inter": ["user_id", "item_id"]}, "protocol": "recbole", "fast_data": key}
        settings = config(**changes)
        settings["load_col"] = {"inter": ["user_id", "item_id"]}
        with pytest.raises(ValueError, match="timestamp") as raised:
            create_dataset(settings).build()
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("dataset", ["tiny", "messy"])
def test_rows_are_chosen_as_from_an_eager_table(prepared: Prepared, dataset: str, request: pytest.FixtureRequest):
    data = request.getfixturevalue("messy") if dataset == "messy" else {"dataset": dataset}
    fast, stock = (entry[1] for entry in both(prepared, **data))
    n_rows = len(stock)
    mask = np.arange(n_rows) % 3 == 1
    for index in (
        3, -1, slice(n_rows, None), slice(2, 9), slice(None, None, 7), [], [4], [5, 2, 2], range(3, 8), np.array([-2]),
        np.array([]), mask, mask.tolist(), torch.from_numpy(mask), torch.tensor([9, 0]), np.int64(4), torch.tensor(6),
    ):  # fmt: skip
        assert_same_feat(fast.inter_feat[index], stock.inter_feat[index])
        assert_same_feat(fast[index], stock[index])
    for change in ("sort", "shuffle"):
        for whole in (fast, stock):
            torch.manual_seed(3)
            getattr(whole, change)(*(["item_id"] if change == "sort" else []))
        assert_same_feat(fast.inter_feat, stock.inter_feat)
        assert_same_feat(fast.inter_feat.take(np.array([3, 1])), stock.inter_feat[[3, 1]])


def test_the_table_behaves_as_an_eager_one(prepared: Prepared, messy: dict[str, Any]):
    fast, stock = (entry[1] for entry in both(prepared, **messy))
    got, expected = fast.inter_feat, stock.inter_feat
    assert got.columns == expected.columns
    assert ("item_id_list" in got, "nothing" in got) == (True, False)
    assert torch.equal(got.item_id_list, expected.item_id_list)
    assert_same_feat(got.repeat(2), expected.repeat(2))
    assert_same_feat(got.cpu(), expected.cpu())
    assert str(got) == str(expected)
    assert (fast.inter_matrix() != stock.inter_matrix()).nnz == 0
    assert fast.item_counter == stock.item_counter
    got["new"] = expected["new"] = torch.arange(len(expected))
    for feat in (got, expected):
        feat.drop("rating_list")
        del feat["tags"]
    assert_same_feat(got, expected)
    assert_same_feat(got[[1, 5]], expected[[1, 5]])
    with pytest.raises(KeyError):
        got["tags"]


def test_a_list_column_once_read_is_kept_with_what_is_written_into_it(prepared: Prepared):
    for whole in (entry[1] for entry in both(prepared)):
        whole.inter_feat["item_id_list"][2, 0] = 77
        assert whole.inter_feat["item_id_list"][2, 0] == whole[[2]]["item_id_list"][0, 0] == 77


@pytest.mark.parametrize("changes", [BASE, {"model": "PAD"}], ids=["SASRec", "PAD"])
def test_preparing_makes_no_lists(changes: dict[str, Any], prepared: Prepared):
    """A column of lists of 5,000 items would take 40 kB a row."""
    _, whole, *loaders = prepared(**changes, MAX_ITEM_LIST_LENGTH=5_000)
    assert sum(len(loader._dataset) for loader in loaders) > 100
    assert len(pickle.dumps([whole.inter_feat, *(loader._dataset.inter_feat for loader in loaders)])) < 400_000
    assert next(iter(loaders[2]))[0]["item_id_list"].shape[1] == 5_000


@pytest.mark.parametrize("changes", [BASE, {"model": "PAD"}], ids=["SASRec", "PAD"])
def test_saved_datasets_and_loaders_give_the_same_batches(changes: dict[str, Any], config: Callable[..., Any]):
    def loaders() -> Any:
        settings = config(**changes, save_dataset=True, save_dataloaders=True)
        return data_preparation(settings, create_dataset(settings))

    for saved, loaded in zip(loaders(), loaders(), strict=True):
        assert saved is not loaded
        saved.generator = saved.sampler.generator = torch.Generator()  # saving takes it away
        loaded.generator = loaded.sampler.generator = torch.Generator()
        assert_same_batches(loaded, saved)


def test_without_the_key_recboles_own_code_runs(
    settings: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    """As in a run of RecBole's own script: no `protocol`, no `fast_data`."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the key is not set")

    for module, name in (
        (reading, "load_feat"),
        (filtering, "filter_by_inter_num"),
        (augmentation, "data_augmentation"),
        (splitting, "leave_one_out"),
        (splitting, "split_by_ratio"),
        (sampling, "used_ids"),
    ):
        monkeypatch.setattr(module, name, refuse)
    asked = settings("SASRec", train_neg_sample_args=None, load_col={"inter": ["user_id", "item_id", "timestamp"]})
    for changes in ({}, split({"RS": [0.8, 0.1, 0.1]})):
        given_keys = {**asked, **{key: value for key, value in changes.items() if key != "mask_history"}}
        alone = Config(model="SASRec", dataset="tiny", config_dict=given_keys)
        assert alone["fast_data"] is None
        *_, test = data_preparation(alone, create_dataset(alone))
        assert type(test._dataset.inter_feat) is Interaction
        with pytest.raises(AssertionError, match="the key is not set"):
            create_dataset(Config(model="SASRec", dataset="tiny", config_dict={**given_keys, "fast_data": True}))


def test_every_replacement_is_in_its_place_once():
    from recbole_pad import speedups

    speedups.install()
    for owner, name in (
        (Dataset, "_load_feat"),
        (Dataset, "_filter_by_inter_num"),
        (Dataset, "leave_one_out"),
        (Dataset, "split_by_ratio"),
        (SequentialDataset, "data_augmentation"),
        (RepeatableSampler, "get_used_ids"),
    ):
        assert len(getattr(owner, name)._recbole_pad) == 1


def test_samplers_hold_one_empty_set_for_all(prepared: Prepared):
    fast, stock = (RepeatableSampler(["train"], entry[1]).used_ids for entry in both(prepared))
    assert fast.dtype == stock.dtype == object
    assert fast.tolist() == stock.tolist()
    assert len(set(map(id, fast))) == 1
