"""Coding rate against closed forms, its definition, and a greedy choice that computes every determinant."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.coding_rate import SAME, coding_rate, coding_rate_select, narrowed, normalised


@pytest.mark.parametrize(("n", "value"), [(1, 2.3076), (2, 3.9318), (5, 7.6113), (12, 13.4016)])
def test_orthonormal_rows(n, value):
    assert coding_rate(np.eye(n, 16)) == pytest.approx(value, abs=5e-5)
    assert coding_rate(np.eye(n, 16)) == pytest.approx(n / 2 * np.log(1 + 1 / (0.01 * n)), abs=1e-12)


def test_equal_rows_add_nothing_and_fewer_rows_of_other_directions_are_worth_more():
    assert coding_rate(np.eye(1)[[0, 0]]) == pytest.approx(2.3076, abs=5e-5)
    assert coding_rate(np.zeros((0, 4))) == 0.0
    assert coding_rate(np.eye(3)[[0, 1, 2, 2]]) < coding_rate(np.eye(3))


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 2.0), st.integers(0, 999))
def test_it_is_the_determinant_of_either_side(n, d, eps, seed):
    x = np.random.default_rng(seed).normal(size=(n, d))
    for gram in (x @ x.T, x.T @ x):
        value = np.linalg.slogdet(np.eye(len(gram)) + gram / (eps**2 * n))[1] / 2
        assert coding_rate(x, eps) == pytest.approx(value, rel=1e-9)


def brute_force(x, k, eps, tau, patience):
    chosen, gains = [], []
    while len(chosen) < min(k, len(x)):
        rates = [-np.inf if i in chosen else coding_rate(x[[*chosen, i]], eps) for i in range(len(x))]
        best = next(i for i, rate in enumerate(rates) if rate >= max(rates) - SAME)
        gains.append(rates[best] - (coding_rate(x[chosen], eps) if chosen else 0.0))
        chosen.append(best)
        if len(gains) >= patience and all(g < tau - SAME for g in gains[-patience:]):
            return chosen[:-patience], gains[:-patience]
    return chosen, gains


@given(
    st.integers(1, 14),
    st.integers(1, 8),
    st.integers(1, 12),
    st.sampled_from([0.05, 0.1, 0.5]),
    st.sampled_from([0.0, 0.002, 0.1]),
    st.integers(1, 3),
    st.integers(0, 999),
)
def test_the_greedy_is_the_brute_force_one(n, d, k, eps, tau, patience, seed):
    rng = np.random.default_rng(seed)
    x = normalised(rng.normal(size=(n, d)))[rng.integers(n, size=n)]
    found = coding_rate_select(x, k, eps=eps, tau=tau, patience=patience)
    indices, gains = brute_force(x, k, eps, tau, patience)
    assert found.indices.tolist() == indices
    np.testing.assert_allclose(found.gains, gains, atol=1e-9)
    assert found.gains.sum() == pytest.approx(coding_rate(x[indices], eps) if indices else 0.0, abs=1e-9)


def test_it_stops_with_one_row_of_each_direction():
    rng = np.random.default_rng(0)
    direction = np.concatenate([np.arange(12), rng.integers(12, size=100)])
    found = coding_rate_select(np.eye(32)[direction].astype(np.float32), 40)
    assert sorted(direction[found.indices].tolist()) == list(range(12))
    assert found.indices.dtype == np.int64
    assert found.indices[0] == 0


def test_lengths_count_only_where_rows_are_not_normalised():
    x = np.array([[1.0, 0.0], [0.0, 5.0]])
    assert coding_rate_select(x, 1).indices.tolist() == [0]
    assert coding_rate_select(x, 1, normalize=False).indices.tolist() == [1]


def test_narrowing_keeps_inner_products_of_few_rows():
    x = np.random.default_rng(1).normal(size=(40, 384))
    assert narrowed(x).shape == (40, 40)
    np.testing.assert_allclose(narrowed(x) @ narrowed(x).T, x @ x.T, atol=1e-9)
    assert narrowed(np.random.default_rng(1).normal(size=(150, 384))).shape == (150, 100)
    assert narrowed(x[:, :100]).shape == (40, 100)
    assert np.linalg.norm(narrowed(np.ones((5, 384))), axis=1).min() > 1


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        (np.array([[1.0], [np.nan]]), {"k": 1}, "row 1 is not finite"),
        (np.array([[1.0], [0.0]]), {"k": 1}, "row 1 is all zero"),
        (np.zeros((0, 3)), {"k": 1}, "no row"),
        (np.ones(3), {"k": 1}, "shape"),
        (np.eye(2), {"k": 0}, "at least 1"),
        (np.eye(2), {"k": 1, "eps": 0.0}, "eps must be above 0"),
        (np.eye(2), {"k": 1, "tau": -1.0}, "tau at least 0"),
        (np.eye(2), {"k": 1, "patience": 0}, "at least 1"),
    ],
)
def test_refusals(rows, options, says):
    with pytest.raises(ValueError, match=says):
        coding_rate_select(rows, **options)
