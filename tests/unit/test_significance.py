import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap

from recbole_pad.evaluation import significance
from recbole_pad.evaluation.metrics import gains
from recbole_pad.evaluation.significance import holm, paired_bootstrap, seed_t_test


def test_gains_by_hand():
    ranks = np.array([1.0, 2.0, 10.0, 11.0, math.inf])
    assert gains(ranks, "hit@10").tolist() == [1, 1, 1, 0, 0]
    assert gains(ranks, "ndcg@10").tolist() == pytest.approx([1, 1 / math.log2(3), 1 / math.log2(11), 0, 0])
    assert gains(ranks, "mrr@2").tolist() == [1, 0.5, 0, 0, 0]
    with pytest.raises(ValueError, match="map@3"):
        gains(ranks, "map@3")


def test_the_interval_is_that_of_scipys_percentile_bootstrap():
    generator = np.random.default_rng(1)
    first = (generator.random(400) < 0.30).astype(float)
    second = (generator.random(400) < 0.22).astype(float)
    ours = paired_bootstrap(first, second, seed=3, n_resamples=20_000)
    scipys = bootstrap(
        (first - second,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5)
    ).confidence_interval
    assert ours["difference"] == pytest.approx((first - second).mean())
    assert (ours["low"], ours["high"]) == pytest.approx((scipys.low, scipys.high), abs=0.004)


def test_p_is_small_for_a_clear_difference_large_for_none_and_one_for_equal_models():
    generator = np.random.default_rng(2)
    noise = generator.normal(size=500)
    assert paired_bootstrap(noise + 1, noise)["p"] == 1 / 10_000
    assert paired_bootstrap(noise, generator.permutation(noise))["p"] > 0.05
    assert paired_bootstrap(noise, noise)["p"] == 1.0


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 5))
def test_swapping_the_models_turns_the_sign(values: list[float], seed: int):
    first, second = np.array(values), np.roll(values, 1)
    one, two = paired_bootstrap(first, second, seed), paired_bootstrap(second, first, seed)
    assert one["difference"] == pytest.approx(-two["difference"], abs=1e-12)
    assert one["low"] <= one["difference"] + 1e-9
    assert one["difference"] - 1e-9 <= one["high"]
    assert 0 < one["p"] <= 1


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch: pytest.MonkeyPatch):
    one, other = (np.random.default_rng(seed).random(50) for seed in (1, 2))
    found = paired_bootstrap(one, other, n_resamples=1001)
    monkeypatch.setattr(significance, "_RESAMPLES_AT_ONCE", 10_000)
    assert found == pytest.approx(paired_bootstrap(one, other, n_resamples=1001))


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="one shape"):
        paired_bootstrap(np.zeros(0), np.zeros(0))


def test_t_test_over_seeds_by_hand():
    # differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t = 3.4641, 2 degrees of freedom
    assert seed_t_test([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(0.0742, abs=1e-4)
    assert seed_t_test([1.0], [2.0]) is None
    assert seed_t_test([2.0, 3.0], [1.0, 2.0]) is None


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
