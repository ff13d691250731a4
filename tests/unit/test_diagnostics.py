"""The measures of item spaces, against loops, scipy on distances written out, and cases known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from recbole_pad.evaluation.diagnostics import (
    anisotropy,
    effective_rank,
    history_distances,
    mmd_by_kernel,
    nearest_neighbours,
    neighbour_overlap,
    preserved_geometry,
    principal_plane,
    spectrum,
    unseen_of_same_bin,
)


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_anisotropy_is_the_mean_cosine_of_all_pairs():
    vectors = normal(30, 5, seed=1) + 0.5
    pairs = [
        torch.cosine_similarity(vectors[i], vectors[j], dim=0).item() for i in range(30) for j in range(30) if i != j
    ]
    assert anisotropy(vectors) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert anisotropy(torch.ones(4, 3)) == pytest.approx(1.0)


def test_spectrum_and_effective_rank_by_hand():
    square = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert spectrum(square) == pytest.approx([0.5, 0.5])
    assert effective_rank(spectrum(square)) == pytest.approx(2.0)
    line = torch.tensor([[0.0, 1.0], [1.0, 1.0], [3.0, 1.0]])
    assert spectrum(line) == pytest.approx([1.0, 0.0], abs=1e-9)
    assert effective_rank(spectrum(line)) == pytest.approx(1.0)
    assert spectrum(torch.ones(3, 2)) == [0.0, 0.0]
    assert effective_rank([0.0, 0.0]) == 0.0


@pytest.mark.parametrize(("n_items", "width"), [(50, 6), (6, 50)])
def test_spectrum_is_that_of_numpys_singular_values(n_items: int, width: int):
    vectors = normal(n_items, width, seed=2) * torch.arange(1, width + 1) + 3
    centred = vectors.double().numpy() - vectors.double().numpy().mean(axis=0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2
    assert spectrum(vectors) == pytest.approx(variances / variances.sum(), abs=1e-9)


@pytest.mark.parametrize(("n_items", "width"), [(40, 6), (6, 40), (2, 3), (5, 1)])
def test_the_plane_is_that_of_the_first_two_singular_vectors(n_items: int, width: int):
    vectors = normal(n_items, width, seed=3)
    unit = (vectors / vectors.norm(dim=1, keepdim=True)).double().numpy()
    left, values, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    expected = np.zeros((n_items, 2))
    expected[:, : len(values[:2])] = (left * values)[:, :2]
    plane = principal_plane(vectors)
    assert (plane.shape, plane.dtype) == ((n_items, 2), np.float32)
    assert np.abs(plane) == pytest.approx(np.abs(expected), abs=1e-6)  # each axis has either sign in numpy
    assert (plane[np.abs(plane).argmax(axis=0), [0, 1]] >= 0).all()


@pytest.mark.parametrize("n_items", [12, 1500])
def test_nearest_neighbours_are_those_of_sorted_cosines(n_items: int):
    vectors = normal(n_items, 4, seed=4)
    near = nearest_neighbours(vectors, k=3)
    assert near.shape == (n_items, 3)
    for item in range(0, n_items, max(1, n_items // 40)):
        cosine = torch.cosine_similarity(vectors[item][None], vectors, dim=1)
        order = [int(other) for other in cosine.argsort(descending=True) if int(other) != item]
        assert near[item].tolist() == order[:3]


def test_overlap_is_the_share_of_equal_neighbours():
    first, second = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([[2, 1], [2, 3], [3, 4]])
    assert neighbour_overlap(first, second) == pytest.approx(3 / 6)
    vectors = normal(30, 4, seed=5)
    assert neighbour_overlap(nearest_neighbours(vectors, 5), nearest_neighbours(vectors * 2, 5)) == 1.0


def test_neighbours_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="n > 3"):
        nearest_neighbours(torch.randn(3, 2), k=3)
    with pytest.raises(ValueError, match="same items"):
        neighbour_overlap(torch.zeros(3, 2), torch.zeros(4, 2))


def test_mmd_is_near_zero_for_one_distribution_and_larger_for_two():
    one, other = normal(200, 4, seed=6), normal(200, 4, seed=7)
    same, different = mmd_by_kernel(one, other), mmd_by_kernel(one, other + 2)
    assert set(same) == {"gaussian", "laplacian", "linear", "cosine"}
    for kernel in same:
        assert abs(same[kernel]) < different[kernel]


def test_distances_to_the_target_by_hand():
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    found = history_distances(vectors, [np.array([1, 2]), np.array([3])], np.array([3, 1]))
    assert found == pytest.approx([1 - np.sqrt(0.5), 1 - np.sqrt(0.5), 1 - np.sqrt(0.5)])


def test_geometry_is_kept_by_a_rotation_and_lost_by_new_vectors():
    before = normal(300, 6, seed=8)
    rotation = torch.linalg.qr(normal(6, 6, seed=9)).Q
    generator = np.random.default_rng(5)
    histories = [generator.integers(1, 300, size=5) for _ in range(400)]
    others = generator.integers(1, 300, size=400)
    assert preserved_geometry(before, before @ rotation, histories, others) == pytest.approx(1.0, abs=1e-3)
    assert preserved_geometry(before, normal(300, 6, seed=10), histories, others) == pytest.approx(0.0, abs=0.06)


def test_tau_is_scipys_on_distances_written_out():
    """Item 7 of the second user is the other item itself, the third user has none: neither makes a pair."""
    before, after = normal(20, 3, seed=11), normal(20, 3, seed=12)
    histories, others = [np.array([1, 2, 3]), np.array([4, 7, 5]), np.array([8, 9])], np.array([6, 7, 0])
    pairs = [(1, 6), (2, 6), (3, 6), (4, 7), (5, 7)]
    distances = [
        [1 - torch.cosine_similarity(space[item], space[other], dim=0).item() for item, other in pairs]
        for space in (before, after)
    ]
    found = preserved_geometry(before, after, histories, others)
    assert found == pytest.approx(kendalltau(*distances)[0])
    assert abs(found) < 1


def test_without_pairs_there_is_no_tau():
    vectors = normal(5, 3, seed=13)
    assert np.isnan(preserved_geometry(vectors, vectors, [], np.zeros(0, dtype=int)))
    assert np.isnan(preserved_geometry(vectors, vectors, [np.array([2])], np.array([2])))


def test_random_items_are_of_the_targets_bin_and_new_to_the_user():
    """Bin 3 is large, so that items are drawn by trial; bin 2 has two items, both the last user's."""
    bins = np.r_[0, [1] * 5, [2] * 2, [3] * 4000, 0]
    histories = [np.array([1, 2, 3])] * 50 + [np.array([8, 9, 10])] * 50 + [np.array([6])]
    targets = np.r_[[4] * 50, [11] * 50, [7]]
    drawn = unseen_of_same_bin(histories, targets, bins, seed=1)
    assert set(drawn[:50]) == {5}
    assert (bins[drawn[50:100]] == 3).all()
    assert len(set(drawn[50:100])) > 40
    assert not set(drawn[50:100]) & {8, 9, 10, 11}
    assert drawn[100] == 0
    assert (unseen_of_same_bin(histories, targets, bins, seed=1) == drawn).all()


def test_trials_draw_every_free_item_equally_often():
    bins = np.r_[0, [1] * 200]
    taken = np.array([1, 2])
    drawn = unseen_of_same_bin([taken] * 20_000, np.full(20_000, 3), bins, seed=2)
    counts = np.bincount(drawn, minlength=201)
    assert counts[:4].sum() == 0
    assert counts[4:] == pytest.approx(np.full(197, 20_000 / 197), rel=0.6)


def test_a_target_outside_all_bins_draws_nothing():
    assert unseen_of_same_bin([np.array([1])], np.array([2]), np.array([0, 1, 0]), seed=1).tolist() == [0]
