"""Joint text vectors: parts found, checked, transformed and scaled each by itself, in every model that reads text."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model

from recbole_pad.__main__ import main
from recbole_pad.config import PADConfig
from recbole_pad.data.text_cache import MappedVectors
from recbole_pad.data.text_table import JointTextTable, find_text_table
from recbole_pad.dataset_prep.item_texts import ItemFile
from recbole_pad.dataset_prep.text_encoders import encoder_parts, text_encoder
from recbole_pad.errors import InputError
from recbole_pad.nn import text_transforms
from recbole_pad.nn.text_transforms import Joint, transform_text
from recbole_pad.preflight import settled_config
from tests.reference import joint_text_loops, text_transforms_svd
from tests.unit.test_text_transforms import table

TRANSFORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda items: items,
    "unit": lambda items: np.stack([row / np.sqrt(row @ row) for row in items]),
    "center": lambda items: items - items.mean(axis=0),
    "whiten": text_transforms_svd.whiten,
    "pca:2": lambda items: text_transforms_svd.pca(items, 2),
}


def expected(parts: list[np.ndarray], specs: list[str]) -> np.ndarray:
    """Of parts without padding."""
    return joint_text_loops.join([TRANSFORMS[spec](part) for part, spec in zip(parts, specs, strict=True)])


# --- the numbers -------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    specs=st.lists(st.sampled_from(list(TRANSFORMS)), min_size=2, max_size=3),
    factor=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_parts_are_transformed_each_by_itself_and_made_equally_long(seed: int, specs: list[str], factor: float):
    parts = [table(width=3 + 2 * number, seed=seed + number) * factor**number for number in range(len(specs))]
    joint = transform_text(Joint(parts), "+".join(specs))
    wanted = expected([part[1:] for part in parts], specs)
    assert joint.dtype == torch.float32
    assert not joint[0].any()
    np.testing.assert_allclose(joint[1:].numpy(), wanted, atol=2e-4 * np.abs(wanted).max())


def test_one_transform_is_that_of_every_part():
    parts = [table(width=3), table(width=5, seed=1)]
    assert torch.equal(transform_text(Joint(parts), "whiten"), transform_text(Joint(parts), "whiten+whiten"))


@given(seed=st.integers(0, 10_000))
@hypothesis_settings(deadline=None, max_examples=20)
def test_the_cosine_of_unit_parts_is_the_mean_of_their_cosines(seed: int):
    parts = [table(n_items=6, width=width, seed=seed + width) for width in (3, 5, 4)]
    joint = transform_text(Joint(parts), "unit").double().numpy()
    for a in range(1, 7):
        for b in range(1, 7):
            cosines = [joint_text_loops.cosine(part[a], part[b]) for part in parts]
            assert joint_text_loops.cosine(joint[a], joint[b]) == pytest.approx(sum(cosines) / 3, abs=1e-5)


def test_unit_leaves_a_zero_vector_zero():
    got = transform_text(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), "unit")
    np.testing.assert_allclose(got.numpy(), [[0, 0], [0.6, 0.8], [0, 0]], atol=1e-7)


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch):
    parts = [table(width=3).astype(np.float32), table(width=5, seed=1).astype(np.float32)]
    whole = transform_text(Joint(parts), "whiten+unit")
    monkeypatch.setattr(text_transforms, "NUMBERS_PER_BLOCK", 35)  # other blocks for the parts than for both
    torch.testing.assert_close(transform_text(Joint(parts), "whiten+unit"), whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("whiten+none+none", "names 3 transforms, but text_encoder has 2 part"),
        ("whiten+zca", "'zca' is not known"),
        ("whiten+", "'' is not known"),
        ("whiten+pca:4", "'pca:4' asks for 4, the vectors have 3 columns"),
    ],
)
def test_transforms_that_do_not_fit_the_parts_are_refused(spec: str, words: str):
    with pytest.raises(InputError) as error:
        transform_text(Joint([table(width=5), table(width=3)]), spec)
    assert words in str(error.value)


def test_two_transforms_of_vectors_that_are_not_joint_are_refused():
    with pytest.raises(InputError, match="names 2 transforms, but text_encoder has 1 part"):
        transform_text(table(), "whiten+none")


def test_a_part_that_is_zero_is_refused():
    with pytest.raises(InputError, match="zero for all items"):
        transform_text(Joint([table(), np.zeros((61, 2))]), "none")


# --- names -------------------------------------------------------------------------------------------------


def test_names_are_split_at_plus_unless_a_file_or_folder_has_it(tmp_path: Path):
    assert encoder_parts("minilm+tfidf:512") == ["minilm", "tfidf:512"]
    assert encoder_parts("minilm") == ["minilm"]
    assert encoder_parts(f"minilm + file:{tmp_path}/own.npy") == ["minilm", f"file:{tmp_path}/own.npy"]
    (tmp_path / "a+b").mkdir()
    (tmp_path / "a+b.npy").touch()
    for name in (f"{tmp_path}/a+b", f"file:{tmp_path}/a+b.npy"):
        assert encoder_parts(name) == [name]
    with pytest.raises(InputError, match="empty part"):
        encoder_parts("minilm+")


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (["whiten", "none"], "whiten+none"),
        ("[whiten, none]", "whiten+none"),
        ("whiten+none", "whiten+none"),
        ("whiten", "whiten"),
        (["whiten"], "whiten"),
    ],
)
def test_a_list_and_a_joined_word_mean_the_same(config: Any, given: Any, read: str):
    settings = PADConfig.read(config(text_transform=given, text_encoder=["minilm", "tfidf"]))
    assert settings.text_transform == read
    assert settings.text_encoder == "minilm+tfidf"


def test_tfidf_takes_a_number_of_directions():
    texts = [f"word{n} word{n + 1} word{n % 7}" for n in range(400)]
    narrow, wide = (text_encoder(name).encode(texts) for name in ("tfidf:5", "tfidf:300"))
    assert narrow.shape == (400, 5)
    assert wide.shape == (400, 300)
    assert text_encoder("tfidf:256").encode(texts).tobytes() == text_encoder("tfidf").encode(texts).tobytes()
    assert len({text_encoder(name).revision for name in ("tfidf", "tfidf:5", "tfidf:300")}) == 3
    for bad in ("tfidf:", "tfidf:0", "tfidf:x"):
        with pytest.raises(InputError, match=r"whole number of directions, such as tfidf:512"):
            text_encoder(bad)


# --- files -------------------------------------------------------------------------------------------------

TITLES = {"i0": "red apple", "i1": "green apple", "i2": "car engine", "i3": "engine oil", "i4": "red paint"}
TOKENS = ["[PAD]", "i3", "i0", "i4", "i1"]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Own vectors of the items of `TITLES`, in an order of their own, beside `toy.item`."""
    lines = [f"{item}\t{title}" for item, title in TITLES.items()]
    (tmp_path / "toy.item").write_text("\n".join(["item_id:token\ttitle:token_seq", *lines]) + "\n")
    np.save(tmp_path / "own.npy", np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32) + 1)
    (tmp_path / "own.json").write_text(json.dumps({"items": ["i4", "i1", "i0", "i2", "i3"]}))
    return tmp_path / "own.npy"


def find(own: Path, encoder: str = "", tokens: list[str] = TOKENS) -> Any:
    encoder = encoder or f"tfidf+file:{own}"
    folder = own.parent
    return find_text_table(
        "toy",
        ItemFile(folder / "toy.item"),
        tokens,
        text_encoder=encoder,
        text_fields=["title"],
        folder=folder / "vectors",
    )


def of_tokens(npy: Path) -> np.ndarray:
    items = json.loads(npy.with_suffix(".json").read_text())["items"]
    return np.stack([np.load(npy)[items.index(token)] for token in TOKENS[1:]]).astype(np.float64)


def test_each_part_is_a_pair_of_files_of_its_own_in_the_order_of_the_items(own: Path):
    joint = find(own)
    assert isinstance(joint, JointTextTable)
    tfidf = own.parent / "vectors" / "toy-tfidf-title.npy"
    assert {path.name for path in tfidf.parent.iterdir()} == {"toy-tfidf-title.npy", "toy-tfidf-title.json"}
    parts = [of_tokens(tfidf), of_tokens(own)]
    assert joint.width == parts[0].shape[1] + 3
    for spec in ("whiten+unit", "center", "none"):
        specs = spec.split("+") * (2 - spec.count("+"))
        np.testing.assert_allclose(joint.transformed(spec, 1)[1:].numpy(), expected(parts, specs), atol=1e-4)
    assert torch.equal(joint.read(), joint.transformed("none", 1))
    assert joint.read(torch.float16).dtype == torch.float16


def test_the_fingerprint_covers_all_parts_and_their_order(own: Path):
    first, other = find(own).fingerprint, find(own, f"file:{own}+tfidf").fingerprint
    assert len({first, other, find(own, "tfidf").fingerprint}) == 3
    assert find(own).fingerprint == first
    np.save(own, np.load(own) * 2)
    assert find(own).fingerprint != first


def test_a_part_is_checked_as_it_is_alone(own: Path):
    find(own)
    joint = find(own)
    np.save(own, np.load(own) + 1)
    with pytest.raises(InputError, match=r"own\.npy have changed since they were checked"):
        joint.transformed("none", 1)
    (own.parent / "toy.item").write_text((own.parent / "toy.item").read_text() + "i9\tblue\n")
    with pytest.raises(InputError, match=r"own\.npy: 1 of 5 items \('i9'\) have no vector"):
        find(own, f"file:{own}+tfidf", [*TOKENS, "i9"])
    with pytest.raises(InputError, match=r"texts of the items have changed.*--text_encoder=tfidf "):
        find(own)


@pytest.mark.parametrize("spec", ["whiten+unit", "center"])
def test_on_disk_they_are_those_in_memory(own: Path, spec: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_transforms, "NUMBERS_PER_BLOCK", 16)  # two rows
    joint = pickle.loads(pickle.dumps(find(own)))
    in_memory, on_disk = joint.transformed(spec, 1), joint.transformed(spec, 0)
    assert isinstance(on_disk, MappedVectors)
    assert on_disk.shape == tuple(in_memory.shape)
    assert torch.equal(on_disk.rows(None), in_memory)
    width = joint.width
    assert not joint.stays_on_disk(spec, 5 * width * 4 / 1e6)
    assert joint.stays_on_disk(spec, 5 * width * 4 / 1e6 - 1e-6)
    assert not joint.stays_on_disk("pca:1+pca:2", 5 * 3 * 4 / 1e6)


def test_another_part_has_a_cache_of_its_own(own: Path):
    first = find(own).transformed("center", 0)
    np.save(own, np.load(own)[::-1])
    second = find(own).transformed("center", 0)
    assert first.path != second.path
    assert not torch.equal(first.rows(None), second.rows(None))


# --- models ------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path) -> dict[str, Any]:
    """Settings: tf-idf whitened beside own vectors at unit length."""
    np.save(tmp_path / "own.npy", np.random.default_rng(3).normal(size=(25, 3)).astype(np.float32) + 1)
    (tmp_path / "own.json").write_text(json.dumps({"items": [f"i{n + 1:02d}" for n in range(25)]}))
    return {"text_encoder": f"tfidf+file:{tmp_path / 'own.npy'}", "text_transform": ["whiten", "unit"]}


def of_items(whole: Any, tmp_path: Path) -> np.ndarray:
    tokens = whole.field2id_token["item_id"][1:]
    parts = []
    for npy in (tmp_path / "text_vectors" / "tiny-tfidf-title.npy", tmp_path / "own.npy"):
        items = json.loads(npy.with_suffix(".json").read_text())["items"]
        parts.append(np.stack([np.load(npy)[items.index(token)] for token in tokens]).astype(np.float64))
    return expected(parts, ["whiten", "unit"])


@pytest.mark.parametrize("memory_mb", [1, 0])
def test_pad_holds_joint_vectors(prepared: Any, asked: dict[str, Any], tmp_path: Path, memory_mb: int):
    config, whole, train, _, test = prepared(**asked, text_memory_mb=memory_mb)
    model = get_model("PAD")(config, train._dataset).to("cpu")
    np.testing.assert_allclose(model.catalogue.text(None)[1:].numpy(), of_items(whole, tmp_path), atol=1e-3)
    assert model.text_fingerprint == whole.text_table.fingerprint
    model.phase = "align"
    step = model.train().calculate_loss(next(iter(train)))
    (sum(step) if isinstance(step, tuple) else step).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        assert torch.isfinite(model.eval().full_sort_predict(next(iter(test))[0])).all()


@pytest.mark.parametrize("name", ["TextKNN", "LLMInit", "UniSRec", "WhitenRec"])
def test_the_other_models_that_read_text_take_them_too(
    name: str, asked: dict[str, Any], data_path: Path, tmp_path: Path
):
    settings = {"data_path": str(data_path), "state": "ERROR", "show_progress": False, "MAX_ITEM_LIST_LENGTH": 4}
    if name in ("LLMInit", "WhitenRec"):  # they choose the transform themselves
        del asked["text_transform"]
    if name == "WhitenRec":
        asked["relaxed_groups"] = 2
    config = settled_config(name, "tiny", None, {**settings, **asked})
    whole = create_dataset(config)
    train, _, test = data_preparation(config, whole)
    model = get_model(name)(config, train._dataset).eval()
    assert model.text_fingerprint == whole.text_table.fingerprint
    if name == "TextKNN":
        wanted = of_items(whole, tmp_path)
        cosines = [[joint_text_loops.cosine(a, b) for b in wanted] for a in wanted]
        np.testing.assert_allclose(model.text_vectors[1:] @ model.text_vectors[1:].T, cosines, atol=1e-4)
    with torch.no_grad():
        assert torch.isfinite(model.full_sort_predict(next(iter(test))[0])).all()


def test_the_command_encodes_every_part_that_is_not_finished(data_path: Path, tmp_path: Path):
    command = ["encode", "--dataset=tiny", f"--data_path={data_path}", f"--text_vectors_dir={tmp_path / 'made'}"]
    assert main([*command, "--text_encoder=tfidf+tfidf:3+file:own.npy"]) == 0
    widths = {np.load(npy).shape[1] for npy in (tmp_path / "made").glob("*.npy")}
    assert len(widths) == 2
    assert 3 in widths
    assert main([*command, "--text_encoder=file:own.npy"]) == 2
