import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tamis import scaling
from tamis.hashing import rng


def test_data_law_recovers_an_exact_line():
    n = np.array([15, 30, 60, 120, 240])
    a, b, r2 = scaling.fit_data_law(n, 0.2 + 0.05 * np.log2(n))
    assert (a, b, r2) == pytest.approx((0.2, 0.05, 1.0))


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(0, 1)), min_size=3, max_size=12, unique_by=lambda p: round(p[0]))
)
def test_fits_equal_scipy(points):
    x, y = map(np.array, zip(*points, strict=True))
    assume(np.ptp(y) > 1e-6)
    reference = stats.linregress(np.log2(x), y)
    a, b, r2 = scaling.fit_data_law(x, y)
    assert np.allclose((a, b, r2), (reference.intercept, reference.slope, reference.rvalue**2), rtol=1e-6, atol=1e-7)
    c, s, r = scaling.fit_loss_law(np.log2(x), y)
    assert np.allclose((c, s, r), (reference.intercept, -reference.slope, reference.rvalue), rtol=1e-6, atol=1e-7)
    line = scaling.fit_headroom_law(np.log2(x), y)
    half = stats.t.ppf(0.975, len(x) - 2) * reference.stderr
    assert np.allclose((line.low, line.high), (reference.slope - half, reference.slope + half), rtol=1e-5, atol=1e-6)


def test_headroom_law_finds_the_papers_direction():
    line = scaling.fit_headroom_law(np.array([35.9, 43.0, 54.6]), np.array([5.8, 6.1, -0.1]))
    assert line.slope < 0
    assert line.low < line.slope < line.high


def test_data_law_interval_covers_the_truth():
    n, hits = np.array([15, 30, 60, 120, 240]), 0
    for trial in range(200):
        noise = rng(trial).normal(scale=0.02, size=(12, 5))
        low, high = scaling.data_law_interval(n, 0.3 + 0.04 * np.log2(n) + noise, rng(trial, "b"), resamples=400)
        hits += low <= 0.04 <= high
    assert hits >= 170  # a percentile bootstrap over 12 seeds covers a little less than 95 %


def test_loss_predicts_better_than_size():
    loss, parameters = np.array([2.0, 1.8, 1.6, 1.5]), np.array([7e9, 13e9, 7e9, 70e9])
    by_loss, by_size = scaling.loss_against_size(loss, parameters, 1 - 0.3 * loss)
    assert by_loss == pytest.approx(-1)
    assert abs(by_size) < 0.9


def test_distinct_paths_equals_counting():
    random = rng(0)
    keys = [[None if random.random() < 0.3 else int(random.integers(6)) for _ in range(20)] for _ in range(7)]
    ks = [1, 3, 6, 12, 20]
    counted = [np.mean([len(set(q[:k]) - {None}) for q in keys]) for k in ks]
    assert scaling.distinct_paths(keys, ks).tolist() == pytest.approx(counted)
    assert scaling.distinct_paths([[None, None]], [1, 2]).tolist() == [0, 0]
    assert scaling.fit_diversity_law(np.array([1, 2, 3.0]), np.array([1, 3, 5.0])).slope == pytest.approx(2)


def test_nested_subsets():
    ids = [f"q{i}" for i in range(64)]
    subsets = scaling.nested_subsets(ids, [1, 1 / 2, 1 / 4, 1 / 32, 1 / 1000], seed=3)
    assert [len(s) for s in subsets] == [64, 32, 16, 2, 1]
    for larger, smaller in itertools.pairwise(subsets):
        assert set(smaller) <= set(larger)
    assert subsets == scaling.nested_subsets(ids[::-1], [1, 1 / 2, 1 / 4, 1 / 32, 1 / 1000], seed=3)
    assert subsets[1] != scaling.nested_subsets(ids, [1 / 2], seed=4)[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scaling.fit_data_law([1, 2, 2], [0, 1, 2]), "at least 3 distinct"),
        (lambda: scaling.fit_data_law([0, 1, 2], [0, 1, 2]), "must be positive"),
        (lambda: scaling.fit_data_law([1, 2, 3], [0, 1]), "of one length"),
        (lambda: scaling.fit_loss_law([1, 2, np.nan], [0, 1, 2]), "finite"),
        (lambda: scaling.fit_loss_law([1, 2, 3], [1, 1, 1]), "all accuracies are equal"),
        (lambda: scaling.fit_headroom_law([1, 1, 1], [1, 2, 3]), "at least 3 distinct"),
        (lambda: scaling.data_law_interval([1, 2, 3], [[1, 2, 3]], rng(0)), "seeds >= 2"),
        (lambda: scaling.distinct_paths([["a"]], [2]), "between 1 and"),
        (lambda: scaling.distinct_paths([], [1]), "no questions"),
        (lambda: scaling.nested_subsets(["a", "a"], [1], 0), "unique"),
        (lambda: scaling.nested_subsets(["a"], [2], 0), "lie in"),
        (lambda: scaling.loss_against_size([1, 2, 3], [0, 1, 2], [1, 2, 3]), "positive"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
