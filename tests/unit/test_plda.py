"""PLDA against loops and scipy, against the likelihood ratio of known Gaussians, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, ortho_group

import recbole_pad.nn.plda as plda_module
from recbole_pad.data.followers import follower_counts, follower_lists, plda_of_followers
from recbole_pad.data.histories import Histories
from recbole_pad.nn.plda import fit_plda
from recbole_pad.nn.ragged import Ragged
from tests.reference import plda_loops


def unit_vectors(n_items: int, width: int, seed: int = 0) -> torch.Tensor:
    """Unit rows; row 0, padding, is zero."""
    vectors = np.random.default_rng(seed).normal(size=(n_items, width))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[0] = 0
    return torch.from_numpy(vectors).float()


def lists_of(pairs: plda_loops.Pairs, n_items: int) -> Ragged:
    first, second, weights = (torch.tensor(part) for part in zip(*pairs, strict=True))
    return Ragged.from_pairs(first, second, n_items, weights.double())


def similarities(vectors: torch.Tensor, pairs: Ragged) -> np.ndarray:
    plda = fit_plda(lambda items: vectors[items], pairs)
    assert plda is not None
    mapped = plda(vectors)
    return (mapped @ mapped.T).numpy()


pair_lists = st.lists(
    st.tuples(st.integers(1, 11), st.integers(1, 11), st.sampled_from([0.25, 0.5, 1.0])), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@example(  # one correlation above the cap, others below
    pairs=[
        (8, 1, 1e3), (1, 2, 1.0), (9, 9, 1e3), (9, 2, 10.0), (3, 6, 10.0), (7, 10, 100.0),
        (6, 11, 1e4), (1, 3, 1e4), (11, 1, 1.0), (8, 6, 100.0), (4, 10, 1e3),
    ],
    width=6,
    block=3,
)  # fmt: skip
@given(pairs=pair_lists, width=st.integers(2, 6), block=st.sampled_from([1, 3, 10_000]))
def test_the_map_is_that_of_the_loops_whatever_the_blocks(pairs: plda_loops.Pairs, width: int, block: int):
    vectors = unit_vectors(12, width, seed=len(pairs))
    vectors[3] = 0  # an item without text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plda_module, "rows_of_block", lambda width: block)
        plda = fit_plda(lambda items: vectors[items], lists_of(pairs, 12))
    expected = plda_loops.similarities(vectors.double().numpy(), pairs)
    assert (plda is None) == (expected is None)
    if plda is None or expected is None:
        return
    mapped = plda(vectors)
    np.testing.assert_allclose((mapped @ mapped.T).numpy(), expected, atol=1e-4)
    assert not mapped[[0, 3]].any()
    norms = mapped.norm(dim=1).numpy()
    np.testing.assert_allclose(np.delete(norms, [0, 3]), 1, atol=1e-5)


def test_the_weight_of_a_direction_is_that_of_the_likelihood_ratio():
    """Pairs of unit Gaussians that correlate by 0.8, 0.3 and -0.5: by their densities, two items x and y are a pair by
    c_1 x_1 y_1 + c_2 x_2 y_2 + c_3 x_3 y_3 and terms of one item alone. A direction in which pairs differ is left out.
    """
    correlations = (0.8, 0.3, -0.5)

    def ratio(x: np.ndarray, y: np.ndarray) -> float:
        together = sum(
            multivariate_normal.logpdf([a, b], cov=[[1, r], [r, 1]]) for a, b, r in zip(x, y, correlations, strict=True)
        )
        return together - sum(multivariate_normal.logpdf(a) for a in (*x, *y))

    unit = np.eye(3)
    weights = [  # the mixed difference leaves x_k y_k alone
        ratio(unit[k], unit[k]) - ratio(unit[k], 0 * unit[k]) - ratio(0 * unit[k], unit[k]) + ratio(*np.zeros((2, 3)))
        for k in range(3)
    ]
    n_pairs = 100_000
    rng = np.random.default_rng(5)
    one = rng.normal(size=(n_pairs, 3))
    other = one * correlations + rng.normal(size=(n_pairs, 3)) * np.sqrt(1 - np.square(correlations))
    vectors = torch.from_numpy(np.concatenate([np.zeros((1, 3)), one, other]))
    first = torch.arange(1, n_pairs + 1)
    pairs = Ragged.from_pairs(first, first + n_pairs, 2 * n_pairs + 1, torch.ones(n_pairs))
    plda = fit_plda(lambda items: vectors[items], pairs)
    assert plda is not None
    assert plda.directions.shape == (3, 2)
    form = (plda.directions @ plda.directions.T).numpy()  # x' form y
    np.testing.assert_allclose(form, np.diag([weights[0], weights[1], 0]), atol=0.05)


def test_a_rotation_of_the_vectors_changes_nothing():
    vectors = unit_vectors(40, 8)
    rng = np.random.default_rng(1)
    pairs = lists_of([(int(a), int(b), 1.0) for a, b in rng.integers(1, 40, size=(300, 2))], 40)
    turned = vectors @ torch.from_numpy(ortho_group.rvs(8, random_state=2)).float()
    np.testing.assert_allclose(similarities(turned, pairs), similarities(vectors, pairs), atol=1e-3)


def test_what_pairs_have_in_common_counts_and_what_they_have_not_does_not():
    """Brand in the first half of the vector, size in the second: users stay with a brand. The cosine sees no more in
    the same brand than in the same size.
    """
    rng = np.random.default_rng(3)
    brands, sizes = rng.normal(size=(2, 6, 10))
    vectors = torch.zeros(37, 20)
    for brand in range(6):
        for size in range(6):
            vectors[1 + 6 * brand + size] = torch.from_numpy(np.concatenate([brands[brand], sizes[size]]))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    pairs = [(1 + 6 * b + s, 1 + 6 * b + t, 1.0) for b in range(6) for s in range(6) for t in range(6) if s != t]

    def extremes(table: np.ndarray) -> tuple[float, float]:
        """The least similarity of two sizes of a brand, the highest of two brands of a size."""
        of_items = table[1:, 1:].reshape(6, 6, 6, 6)  # brand, size, brand, size
        return min(of_items[b, :, b].min() for b in range(6)), max(
            of_items[b, s, c, s] for s in range(6) for b in range(6) for c in range(6) if b != c
        )

    least, highest = extremes((vectors @ vectors.T).numpy())
    assert least < highest
    least, highest = extremes(similarities(vectors, lists_of(pairs, 37)))
    assert least > highest + 0.3


@pytest.mark.parametrize(
    "pairs", [[(1, 1, 1.0)], [(1, 3, 1.0), (3, 2, 1.0)], [(2, 2, 1.0), (1, 3, 0.5)]], ids=["itself", "no text", "both"]
)
def test_without_a_pair_that_says_something_there_is_no_map(pairs: plda_loops.Pairs):
    vectors = unit_vectors(4, 3)
    vectors[3] = 0
    assert fit_plda(lambda items: vectors[items], lists_of(pairs, 4)) is None


@pytest.mark.parametrize("width", [1, 3, 40])
@pytest.mark.parametrize("equal", ["all", "the pair's"])
def test_vectors_that_are_all_the_same_give_no_map(equal: str, width: int):
    vectors = unit_vectors(6, width)
    vectors[1 : (6 if equal == "all" else 3)] = vectors[1].clone()
    pairs = [(1, 2, 1.0), (2, 1, 0.5)] + ([(4, 5, 1.0), (3, 1, 0.25)] if equal == "all" else [])
    assert fit_plda(lambda items: vectors[items], lists_of(pairs, 6)) is None


def test_where_histories_say_nothing_of_texts_cosine_is_used_and_said(caplog: pytest.LogCaptureFixture):
    vectors = unit_vectors(4, 3)
    of_one_item = Histories(np.array([0, 0, 2]), np.array([1, 1]))
    with caplog.at_level("WARNING"):
        assert plda_of_followers(lambda items: vectors[items], of_one_item, 4) is None
    assert "cosine is used" in caplog.text


def test_pairs_that_agree_in_no_direction_give_no_map():
    vectors = torch.tensor([[0.0], [1.0], [-1.0]])
    assert fit_plda(lambda items: vectors[items], lists_of([(1, 2, 1.0), (2, 1, 1.0)], 3)) is None


def test_followers_are_counted_up_to_three_later_by_distance():
    """User 1: a b a c d; user 2: b d. Nothing crosses from one user to the next."""
    train = Histories(np.array([0, 0, 5, 7]), np.array([1, 2, 1, 3, 4, 2, 4]))
    expected = np.zeros((6, 6))
    by_distance = {1: "12 21 13 34 24", 0.5: "11 23 14", 0.25: "13 24"}
    for weight, (a, b) in ((weight, map(int, pair)) for weight, pairs in by_distance.items() for pair in pairs.split()):
        expected[a, b] += weight
    np.testing.assert_allclose(follower_counts(train, 6).toarray(), expected)
    lists = follower_lists(train, 6)
    assert lists.values is not None
    found = np.zeros((6, 6))
    place, entry = lists.entries(torch.arange(6))
    found[place, lists.items[entry]] = lists.values[entry]
    np.testing.assert_allclose(found, expected)
