"""Text vectors in RecBole's item order: the mapping, and every mismatch that is refused."""

import json
import logging
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from recbole_pad.__main__ import main
from recbole_pad.data.text_table import find_text_table, open_text_table
from recbole_pad.dataset_prep.encode_text import encode_items
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts, text_digest
from recbole_pad.errors import InputError

TITLES = {"i0": "red apple", "i1": "green apple", "i2": "car engine", "i3": "engine oil", "i4": "red paint"}
TOKENS = ["[PAD]", "i3", "i0", "i4", "i1", "i2"]
REBUILD = "recbole-pad encode --dataset=toy --text_encoder=tfidf"


def write_items(folder, titles=TITLES):
    path = folder / "toy.item"
    lines = [f"{item}\t{title}" for item, title in titles.items()]
    path.write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n", encoding="utf-8")
    return path


def find(folder, tokens=TOKENS, /, **settings):
    settings = {"text_encoder": "tfidf", "text_fields": ["title"], "folder": folder / "vectors", **settings}
    return find_text_table("toy", ItemFile(folder / "toy.item"), tokens, **settings)


def own_vectors(folder, items=("a", "b", "c"), width=2, dtype=np.float32, **manifest):
    npy = folder / "own.npy"
    vectors = np.arange(1, len(items) * width + 1).reshape(len(items), width).astype(dtype)
    np.save(npy, vectors)
    npy.with_suffix(".json").write_text(json.dumps({"items": list(items), **manifest}))
    return npy, vectors


def find_own(npy, tokens=("[PAD]", "c", "a", "b")):
    return find_text_table(
        "toy",
        ItemFile(npy.parent / "none.item"),
        tokens,
        text_encoder=f"file:{npy}",
        text_fields=["title"],
        folder=npy.parent,
    )


@pytest.fixture
def made(tmp_path):
    """Folder with an `.item` file and tf-idf vectors of it."""
    write_items(tmp_path)
    npy = encode_items(
        ItemFile(tmp_path / "toy.item"), tmp_path / "vectors", "toy", text_encoder="tfidf", show_progress=False
    )
    return tmp_path, npy


def rewrite(npy, **changes):
    manifest = json.loads(npy.with_suffix(".json").read_text())
    npy.with_suffix(".json").write_text(json.dumps({**manifest, **changes}))


def message_of(call, *args, **kwargs):
    with pytest.raises(InputError) as error:
        call(*args, **kwargs)
    return str(error.value)


def assert_ends_with_command(message):
    assert re.search(re.escape(REBUILD) + r"( --\w+=\S+)*$", message)


# The table


def test_each_item_gets_the_vector_of_its_own_text(made):
    folder, npy = made
    table = find(folder)
    vectors, items = np.load(npy), json.loads(npy.with_suffix(".json").read_text())["items"]
    read = table.read()
    assert read.shape == (6, table.width)
    assert read.dtype == torch.float32
    assert not read[0].any()
    for number, token in enumerate(TOKENS[1:], start=1):
        np.testing.assert_array_equal(read[number].numpy(), vectors[items.index(token)])
    assert table.rows.dtype == np.int64
    assert table.rows[0] == -1
    assert table.manifest["text_encoder"] == "tfidf"
    assert table.fingerprint == table.manifest["vectors_sha256"]


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.permutations(list(TITLES)), st.permutations(list(TITLES)))
def test_orders_of_file_and_dataset_never_change_an_items_vector(tmp_path_factory, file_order, recbole_order):
    folder = tmp_path_factory.mktemp("order")
    write_items(folder)
    expected = dict(zip(TOKENS, find(folder).read(), strict=True))
    write_items(folder, {item: TITLES[item] for item in file_order})  # the digest ignores the order of lines
    tokens = ["[PAD]", *recbole_order]
    for token, vector in zip(tokens, find(folder, tokens, folder=folder / "again").read(), strict=True):
        assert torch.equal(vector, expected[token])
    for token, vector in zip(tokens, find(folder, tokens).read(), strict=True):
        assert torch.equal(vector, expected[token])


def test_vectors_are_made_once_if_there_are_none(tmp_path, caplog, monkeypatch):
    write_items(tmp_path)
    with caplog.at_level(logging.INFO):
        first = find(tmp_path)
    assert "encoding 5 items with tfidf" in caplog.text
    caplog.clear()
    stamp = first.path.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        again = find(tmp_path)
    assert "encoding" not in caplog.text
    assert again.path.stat().st_mtime_ns == stamp
    assert again.fingerprint == first.fingerprint


def test_vectors_without_a_manifest_are_made_again(made):
    folder, npy = made
    npy.with_suffix(".json").unlink()
    npy.write_bytes(b"half a file")
    assert find(folder).read()[1:].any(dim=1).all()


@pytest.mark.parametrize(("tokens", "said"), [(["[PAD]", "i0"], True), (["[PAD]", "i0", "i1", "i2"], False)])
def test_an_item_file_of_many_unused_lines_is_encoded_whole_and_that_is_said(tmp_path, caplog, tokens, said):
    write_items(tmp_path)
    find(tmp_path, tokens)
    assert ("all 5 items are encoded, 1 of them are in the dataset" in caplog.text) == said


def test_items_the_dataset_does_not_use_are_left_out_and_counted(made, caplog):
    folder, _ = made
    with caplog.at_level(logging.INFO):
        table = find(folder, ["[PAD]", "i2", "i0"])
    assert table.read().shape[0] == 3
    assert "3 of 5 items are not in the dataset" in caplog.text


def test_the_table_is_pickled_without_vectors_and_reads_afterwards(made):
    folder, _ = made
    table = find(folder)
    expected = table.read()
    stored = pickle.dumps(table)
    assert len(stored) < 3000
    assert torch.equal(pickle.loads(stored).read(), expected)


def test_read_refuses_a_file_that_changed_after_the_check(made):
    folder, npy = made
    table = find(folder)
    expected = table.read()
    np.save(npy, np.load(npy))  # the same bytes at another time are fine
    assert torch.equal(table.read(), expected)
    np.save(npy, np.load(npy) + 1)
    assert "have changed since they were checked" in message_of(table.read)
    npy.unlink()
    assert "are gone" in message_of(table.read)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_read_converts_to_the_wanted_type(made, dtype):
    folder, _ = made
    table = find(folder)
    assert torch.equal(table.read(dtype), table.read().to(dtype))


def test_tokens_must_be_in_recbole_order(made):
    folder, npy = made
    with pytest.raises(ValueError, match=r"\[PAD\]"):
        open_text_table(npy, TOKENS[1:], expected_digest=None, rebuild=REBUILD)
    assert find(folder, np.array(TOKENS)).read().shape[0] == 6  # field2id_token is an array


# Refusals; each message ends with the command that makes the vectors again


def test_a_changed_title_is_refused_with_the_command_to_rebuild(made):
    folder, npy = made
    write_items(folder, {**TITLES, "i2": "car engines"})
    message = message_of(find, folder)
    assert "texts of the items have changed" in message
    assert str(npy) in message
    assert_ends_with_command(message)


def test_a_changed_title_of_an_item_out_of_the_dataset_is_refused_too(made):
    folder, _ = made
    write_items(folder, {**TITLES, "i2": "car engines"})
    assert "have changed" in message_of(find, folder, ["[PAD]", "i0"])


def test_the_rebuild_command_names_what_is_not_the_default(tmp_path):
    root = tmp_path / "my data"
    (root / "toy").mkdir(parents=True)
    path = root / "toy" / "toy.item"
    path.write_text("asin:token,brand:token,title:token_seq\na,Acme,red apple\nb,Acme,car\n")

    def find_again():
        return find_text_table(
            "toy",
            ItemFile(path, "asin", ","),
            ["[PAD]", "a", "b"],
            text_encoder="tfidf",
            text_fields=["title", "brand"],
            folder=root / "vectors",
        )

    find_again()
    path.write_text(path.read_text().replace("apple", "pear"))
    message = message_of(find_again)
    words = shlex.split(message[message.index(REBUILD) :])[4:]
    assert words == [
        "--text_fields=title,brand",
        f"--data_path={root}",
        f"--text_vectors_dir={root / 'vectors'}",
        "--item_field=asin",
        "--field_separator=,",
    ]


def test_the_rebuild_command_is_short_for_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("dataset/toy")
    folder.mkdir(parents=True)
    write_items(folder)
    find(folder, folder=Path("text_vectors"))
    write_items(folder, {**TITLES, "i2": "car engines"})
    assert message_of(find, folder, folder=Path("text_vectors")).endswith(f": {REBUILD} --text_fields=title")


def test_one_command_makes_all_parts_of_joint_vectors_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("dataset/toy")
    folder.mkdir(parents=True)
    write_items(folder)
    settings = {"text_encoder": "tfidf+tfidf:2", "folder": Path("text_vectors")}
    find(folder, **settings)
    write_items(folder, {**TITLES, "i2": "car engines"})
    command = message_of(find, folder, **settings).partition("make the vectors again: ")[2]
    assert command.startswith("recbole-pad encode --dataset=toy --text_encoder=tfidf+tfidf:2 ")
    assert main(shlex.split(command)[1:]) == 0
    find(folder, **settings)


def test_items_without_a_line_in_the_item_file_get_the_mean_vector(made, caplog):
    folder, _ = made
    tokens = ["[PAD]", "i7", *TOKENS[1:], "i8"]
    table = find(folder, tokens)
    assert "toy.item: 2 of 7 items ('i7', 'i8') have no line: they count as items without text" in caplog.text
    vectors, listed = table.read(), find(folder).read()
    assert torch.equal(vectors[2:7], listed[1:])
    for row in (1, 7):
        torch.testing.assert_close(vectors[row], listed[1:].mean(dim=0))
    assert not vectors[0].any()
    joint = find(folder, tokens, text_encoder="tfidf+tfidf:2").transformed("center", memory_mb=1)
    assert joint[1].abs().max() < 1e-6 < joint[2:7].abs().max()


def test_files_with_other_ids_are_refused(made):
    folder, _ = made
    message = message_of(find, folder, [*TOKENS, *(f"x{n}" for n in range(6))])
    assert "6 of 11 items ('x0', 'x1', 'x2') have no line; the file's own items are such as 'i0', 'i1', 'i2'" in message
    assert "toy.item" in message


def test_an_item_without_a_vector_is_refused(made):
    _, npy = made
    digest = text_digest(read_item_texts(ItemFile(npy.parent.parent / "toy.item"), ["title"]))
    message = message_of(open_text_table, npy, [*TOKENS, "i7"], expected_digest=digest, rebuild=REBUILD)
    assert "1 of 6 items ('i7') have no vector" in message
    assert_ends_with_command(message)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 2}, "format is 2, expected 1"),
        ({"text_encoder": "minilm"}, "text_encoder is 'minilm', expected 'tfidf'"),
        ({"text_fields": ["brand"]}, "text_fields is ['brand'], expected ['title']"),
        ({"width": 384}, "width is 5, expected 384"),
        ({"dtype": "float16"}, "dtype is 'float32', expected 'float16'"),
        ({"n_items": 9}, "n_items is 5, expected 9"),
        ({"vectors_sha256": "0" * 64}, "vectors_sha256 is"),
        ({"text_digest": None}, "text_digest None"),
        ({"items": ["i0", "i1"]}, "5 rows, but"),
        ({"items": ["i0", "i1", "i2", "i3", "i3"]}, "1 of 4 items ('i3') are named more than once"),
        ({"items": None}, '"items", a list of item tokens'),
    ],
)
def test_a_foreign_manifest_is_refused_with_what_came_and_what_was_expected(made, changes, words):
    folder, npy = made
    rewrite(npy, **changes)
    message = message_of(find, folder)
    assert words in message
    assert_ends_with_command(message)


def test_a_manifest_that_is_not_json_is_refused(made):
    folder, npy = made
    npy.with_suffix(".json").write_text('{"items": [')
    message = message_of(find, folder)
    assert "is not JSON" in message
    assert_ends_with_command(message)


@pytest.mark.parametrize("keep", [0, 60, 150])
def test_a_truncated_file_is_refused(made, keep):
    folder, npy = made
    npy.write_bytes(npy.read_bytes()[:keep])
    message = message_of(find, folder)
    assert "is not a whole .npy file" in message
    assert_ends_with_command(message)


def test_a_manifest_without_its_vectors_is_refused(made):
    folder, npy = made
    npy.unlink()
    message = message_of(find, folder)
    assert "toy-tfidf-title.npy does not exist" in message
    assert_ends_with_command(message)


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "a NaN or infinite value: 'i1'"), (0.0, "an all-zero vector: 'i1'")]
)
def test_nan_and_zero_rows_are_refused_even_if_the_digest_fits(made, value, words):
    folder, npy = made
    vectors = np.load(npy)
    vectors[1] = value
    np.save(npy, vectors)
    message = message_of(find, folder)
    assert "vectors_sha256" in message
    rewrite(npy, vectors_sha256=message.split("vectors_sha256 is '")[1][:64])
    message = message_of(find, folder)
    assert f"1 of 5 items have {words}" in message
    assert_ends_with_command(message)


# The user's own vectors


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_own_vectors_need_only_a_list_of_items(tmp_path, dtype):
    npy, vectors = own_vectors(tmp_path, dtype=dtype)
    table = find_own(npy)
    np.testing.assert_array_equal(table.read()[1:].numpy(), vectors[[2, 0, 1]])
    assert len(table.fingerprint) == 64
    assert table.width == 2


def test_own_vectors_may_name_items_by_whole_numbers_and_hold_bad_rows_of_other_items(tmp_path):
    npy, vectors = own_vectors(tmp_path, items=[10, 11, 12])
    vectors[1] = np.nan
    np.save(npy, vectors)
    np.testing.assert_array_equal(find_own(npy, ["[PAD]", "12", "10"]).read()[1:].numpy(), vectors[[2, 0]])
    assert "1 of 2 items have a NaN or infinite value: '11'" in message_of(find_own, npy, ["[PAD]", "12", "11"])


def test_own_vectors_without_a_manifest_are_told_the_two_lines_that_write_it(tmp_path):
    npy, _ = own_vectors(tmp_path)
    npy.with_suffix(".json").unlink()
    message = message_of(find_own, npy)
    assert "own.json does not exist" in message
    lines = message.splitlines()[-2:]
    assert lines[0].strip() == "import json"
    exec("\n".join(line.strip() for line in lines), {"item_tokens": ["a", "b", "c"]})  # they work
    assert find_own(npy).read().shape == (4, 2)


def test_own_vectors_that_miss_an_item_are_refused(tmp_path):
    npy, _ = own_vectors(tmp_path)
    message = message_of(find_own, npy, ["[PAD]", "a", "z"])
    assert "own.npy: 1 of 2 items ('z') have no vector" in message
    assert "import json" in message


def test_own_vectors_must_fit_what_their_manifest_claims(tmp_path):
    npy, _ = own_vectors(tmp_path, width=2, vectors_sha256="0" * 64)
    assert "vectors_sha256" in message_of(find_own, npy)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones(3, dtype=np.float32), "shape (3,)"),
        (np.ones((3, 2), dtype=np.int64), "type int64"),
        (np.ones((3, 2, 2), dtype=np.float32), "shape (3, 2, 2)"),
        (np.array([["a", 1], ["b", 2], ["c", 3]], dtype=object), "not a whole .npy file"),
    ],
)
def test_own_vectors_of_another_shape_or_type_are_refused(tmp_path, array, words):
    npy, _ = own_vectors(tmp_path)
    np.save(npy, array, allow_pickle=True)
    assert words in message_of(find_own, npy)


def test_own_vectors_must_be_npy_and_there(tmp_path):
    assert "must be a .npy" in message_of(find_own, tmp_path / "own.pt")
    assert "own.npy does not exist" in message_of(find_own, tmp_path / "own.npy")
