from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_pad.errors import InputError
from recbole_pad.nn import text_transforms
from recbole_pad.nn.text_transforms import TEXT_TRANSFORMS, transform_text
from tests.reference import text_transforms_svd


def table(n_items: int = 60, width: int = 5, seed: int = 0) -> np.ndarray:
    """Row 0 padding; correlated columns of different size, far from the origin."""
    rng = np.random.default_rng(seed)
    items = rng.normal(size=(n_items, width)) @ rng.normal(size=(width, width)) + 3.0
    return np.vstack([np.zeros(width), items])


def covariance(vectors: torch.Tensor) -> np.ndarray:
    return np.cov(vectors[1:].double().numpy().T, bias=True)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 5))
def test_pca_equals_the_singular_value_decomposition(seed: int, k: int):
    vectors = table(seed=seed)
    got = transform_text(vectors, f"pca:{k}")
    expected = text_transforms_svd.pca(vectors[1:], k)
    assert got.shape == (61, k)
    np.testing.assert_allclose(got[1:].numpy(), expected, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_whitening_equals_the_singular_value_decomposition(seed: int):
    vectors = table(seed=seed)
    np.testing.assert_allclose(
        transform_text(vectors, "whiten")[1:].numpy(), text_transforms_svd.whiten(vectors[1:]), atol=1e-3
    )


def test_whitened_vectors_have_mean_zero_and_identity_covariance():
    white = transform_text(table(500), "whiten")
    np.testing.assert_allclose(white[1:].mean(dim=0).numpy(), 0, atol=1e-5)
    np.testing.assert_allclose(covariance(white), np.eye(5), atol=1e-3)


def test_whitening_with_k_keeps_the_leading_directions():
    vectors = table()
    assert torch.equal(transform_text(vectors, "whiten:2"), transform_text(vectors, "whiten")[:, :2])


def test_whitening_drops_directions_without_variance():
    vectors = table(width=5)
    flat = np.hstack([vectors, vectors[:, :2] + vectors[:, 2:4], np.full((61, 1), 7.0)])
    assert transform_text(flat, "whiten").shape == (61, 5)
    assert transform_text(flat, "whiten:7").shape == (61, 5)
    assert transform_text(flat, "pca:7").shape == (61, 7)


def test_center_subtracts_the_mean_of_the_items_without_padding():
    got = transform_text(np.array([[0.0, 0.0], [1.0, 10.0], [3.0, 20.0]]), "center")
    assert got.tolist() == [[0.0, 0.0], [-1.0, -5.0], [1.0, 5.0]]


def test_none_returns_the_same_numbers_in_a_new_tensor():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    got = transform_text(vectors, "none")
    assert torch.equal(got, vectors)
    got[1] = 9
    assert vectors[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_vectors_themselves_stay_as_they_are(dtype: torch.dtype):
    vectors = torch.from_numpy(table()).to(dtype)
    before = vectors.clone()
    transform_text(vectors, "whiten")
    assert torch.equal(vectors, before)


@pytest.mark.parametrize("spec", ["none", "center", "whiten", "whiten:2", "pca:3"])
def test_padding_row_enters_no_statistic_and_stays_zero(spec: str):
    vectors, other = table(), table()
    other[0] = 1000.0
    got = transform_text(vectors, spec)
    assert torch.equal(got, transform_text(other, spec))
    assert (got[0] == 0).all()
    assert got.dtype == torch.float32


@pytest.mark.parametrize("spec", ["none", "center", "whiten", "pca:3"])
def test_blocks_and_input_types_do_not_matter(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    vectors = table().astype(np.float32)
    whole = transform_text(torch.from_numpy(vectors), spec)
    np.save(tmp_path / "vectors.npy", vectors)
    memmap = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    monkeypatch.setattr(text_transforms, "NUMBERS_PER_BLOCK", 35)  # seven rows
    assert torch.allclose(transform_text(memmap, spec), whole, atol=1e-5)


def test_half_precision_vectors_are_accepted():
    vectors = table().astype(np.float16)
    expected = transform_text(vectors.astype(np.float32), "whiten")
    assert torch.equal(transform_text(vectors, "whiten"), expected)
    as_bfloat16 = torch.from_numpy(table()).bfloat16()
    assert torch.equal(transform_text(as_bfloat16, "pca:2"), transform_text(as_bfloat16.float(), "pca:2"))


def test_statistics_survive_a_mean_far_larger_than_the_spread():
    vectors = table()
    vectors[1:] += 1e5
    np.testing.assert_allclose(covariance(transform_text(vectors, "whiten")), np.eye(5), atol=1e-3)


@pytest.mark.parametrize(
    "spec", ["pca", "pca:", "pca:0", "pca:-1", "pca:2.5", "none:2", "center:2", "zca", "", "whiten:x"]
)
def test_bad_specs_are_refused_with_the_allowed_forms(spec: str):
    with pytest.raises(InputError, match="choose one of none, center, whiten, whiten:K, pca:K"):
        transform_text(table(), spec)


def test_what_cannot_be_done_is_refused():
    with pytest.raises(InputError, match="the vectors have 5"):
        transform_text(table(), "pca:6")
    with pytest.raises(InputError, match="nothing to whiten"):
        transform_text(np.full((4, 3), 0.1), "whiten")
    with pytest.raises(InputError, match="NaN"):
        transform_text(np.array([[0.0], [1.0], [np.nan]]), "center")
    with pytest.raises(InputError, match="padding row"):
        transform_text(np.zeros((1, 3)), "center")
    with pytest.raises(InputError, match="shape"):
        transform_text(np.zeros(3), "none")


def test_every_transform_has_a_form_in_the_message():
    assert {form.split(":")[0] for form in text_transforms.ALLOWED.split(" (")[0].split(", ")} == set(TEXT_TRANSFORMS)
