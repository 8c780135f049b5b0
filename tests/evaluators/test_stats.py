import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as reference

from tamis.errors import ConfigError
from tamis.evaluators import stats

finite = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))


def rng(*parts):
    return np.random.default_rng(parts)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(n, share, level):
    successes = round(n * share)
    value, low, high = stats.wilson(successes, n, level)
    expected = reference.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert (value, low, high) == pytest.approx((successes / n, expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= value <= high <= 1


def test_wilson_known_value_and_errors():
    assert stats.wilson(0, 10)[1:] == pytest.approx((0.0, 0.2775327998))
    for successes, n in [(1, 0), (-1, 5), (6, 5)]:
        with pytest.raises(ConfigError, match="successes"):
            stats.wilson(successes, n)
    with pytest.raises(ConfigError, match="level"):
        stats.wilson(1, 2, level=95)


def covers(simulate, truth, trials=1500):
    hits = sum(low <= truth <= high for _, low, high in map(simulate, range(trials)))
    return reference.binomtest(hits, trials).proportion_ci(0.9999)


@pytest.mark.parametrize(("p", "n"), [(0.5, 40), (0.1, 200)])
def test_wilson_covers(p, n):
    draws = rng(1).binomial(n, p, 1500)
    interval = covers(lambda i: stats.wilson(int(draws[i]), n), p)
    assert interval.low <= 0.955
    assert interval.high >= 0.94


def test_bootstrap_covers_the_mean():
    interval = covers(
        lambda i: stats.bootstrap_mean(rng(2, i).exponential(size=150), rng=rng(3, i), resamples=400), 1.0, trials=400
    )
    assert interval.high >= 0.93
    assert interval.low <= 0.96


def test_clustered_bootstrap_covers_where_the_plain_one_does_not():
    def table(i):
        draw = rng(4, i)
        return draw.normal(0, 1, (12, 1)) + draw.normal(0, 1, (12, 20))

    clustered = covers(lambda i: stats.clustered_bootstrap(table(i), rng=rng(5, i), resamples=300), 0.0, trials=300)
    plain = covers(lambda i: stats.bootstrap_mean(table(i).ravel(), rng=rng(5, i), resamples=300), 0.0, trials=300)
    assert clustered.high >= 0.93
    assert clustered.low > 0.8
    assert plain.high < 0.75


def test_bootstrap_matches_its_exact_law():
    """With two values the resampled mean is binomial: its quantiles are known."""
    for values in ([0.0] * 12 + [1.0] * 8, [0.0, 1.0, 1.0]):
        n, share = len(values), np.mean(values)
        value, low, high = stats.bootstrap_mean(values, rng=rng(6), resamples=50_000)
        assert value == pytest.approx(share)
        exact = reference.binom(n, share).ppf([0.025, 0.975]) / n
        assert [low, high] == pytest.approx(exact, abs=1e-9)


def test_bootstrap_spread_equals_theory_on_both_paths():
    continuous = rng(7).normal(size=300)
    discrete = np.round(continuous)
    for values in (continuous, discrete):
        means = stats._resampled_means(values, rng(8), 8000)
        assert means.mean() == pytest.approx(values.mean(), abs=4 * values.std() / math.sqrt(300 * 8000))
        assert means.std() == pytest.approx(values.std() / math.sqrt(300), rel=0.04)


def test_bootstrap_in_blocks_equals_one_block(monkeypatch):
    values = rng(9).normal(size=50)
    whole = stats.bootstrap_mean(values, rng=rng(10))
    monkeypatch.setattr(stats, "CHUNK", 1000)
    assert stats.bootstrap_mean(values, rng=rng(10)) == pytest.approx(whole)


def test_bootstrap_ratio():
    above, below = rng(11).exponential(size=200), rng(12).integers(1, 9, 200)
    value, low, high = stats.bootstrap_ratio(above, below, rng=rng(13))
    assert value == pytest.approx(above.sum() / below.sum())
    assert low < value < high
    delta = (above - value * below).std() / below.mean() / math.sqrt(200)
    assert high - low == pytest.approx(2 * 1.96 * delta, rel=0.1)
    with pytest.raises(ConfigError, match="positive"):
        stats.bootstrap_ratio([1, 2], [1, 0], rng=rng(1))


def test_paired_bootstrap_uses_pairs():
    base = rng(14).normal(0, 10, 100)
    value, low, high = stats.paired_bootstrap(base + 1, base, rng=rng(15))
    assert value == pytest.approx(1)
    assert low == pytest.approx(1)
    assert high == pytest.approx(1)
    with pytest.raises(ConfigError, match="equal lengths"):
        stats.paired_bootstrap([1, 2], [1], rng=rng(1))
    with pytest.raises(ConfigError, match="finite"):
        stats.paired_bootstrap([1, math.nan], [1, 1], rng=rng(1))


def test_clustered_bootstrap_refuses_vectors():
    with pytest.raises(ConfigError, match="seeds, prompts"):
        stats.clustered_bootstrap([1.0, 2.0], rng=rng(1))


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_equals_scipy(gained, lost):
    expected = reference.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert stats.mcnemar(gained, lost) == pytest.approx(expected)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8))
@settings(max_examples=50)
def test_permutation_equals_enumeration(pairs):
    a, b = np.array(pairs).T
    patterns = [np.array(signs) @ (a - b) for signs in itertools.product((1, -1), repeat=len(a))]
    expected = np.mean(np.abs(patterns) >= abs((a - b).sum()) - 1e-9 * np.abs(a - b).sum())
    assert stats.paired_permutation(a, b, rng(1)) == pytest.approx(expected)


def test_random_permutation_is_near_the_exact_one_and_never_zero():
    a = rng(16).normal(0.35, 1, 13)
    exact = stats.paired_permutation(a, np.zeros(13), rng(17))
    drawn = [stats.paired_permutation(a, np.zeros(13), rng(18, i), resamples=4000) for i in range(5)]
    assert np.mean(drawn) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000) + 1e-3)
    assert stats.paired_permutation(np.ones(100), np.zeros(100), rng(1), resamples=999) == 1 / 1000
    assert stats.paired_permutation([1, 2], [1, 2], rng(1)) == 1.0


def test_permutation_of_binary_differences_is_mcnemar():
    for gained, lost in [(3, 0), (6, 2), (5, 5)]:
        d = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 20)
        assert stats.paired_permutation(d, 0 * d, rng(1)) == pytest.approx(stats.mcnemar(gained, lost))


def test_permutation_p_values_are_uniform_under_the_null():
    p = [stats.paired_permutation(rng(19, i).normal(size=10), np.zeros(10), rng(20)) for i in range(400)]
    assert reference.kstest(p, "uniform").pvalue > 1e-3


def test_holm_known_values_and_properties():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([]).shape == (0,)
    with pytest.raises(ConfigError, match="p-values"):
        stats.holm([0.1, math.nan])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_rejects_as_the_step_down_rule(p):
    adjusted = stats.holm(p)
    for level in (0.01, 0.05, 0.3):
        rejected, order = set(), sorted(range(len(p)), key=lambda i: p[i])
        for rank, i in enumerate(order):
            if p[i] * (len(p) - rank) > level:
                break
            rejected.add(i)
        assert {i for i in range(len(p)) if adjusted[i] <= level} == rejected


@given(st.lists(st.tuples(st.integers(0, 5), finite), min_size=2, max_size=30))
def test_spearman_equals_scipy(pairs):
    x, y = np.array(pairs, dtype=float).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(stats.spearman(x, y))
    else:
        assert stats.spearman(x, y) == pytest.approx(reference.spearmanr(x, y).statistic, abs=1e-9)


def test_least_squares_equals_scipy():
    x, y = rng(21).normal(size=(2, 40))
    expected = reference.linregress(x, y)
    line = stats.least_squares(x, y)
    assert line == pytest.approx((expected.slope, expected.intercept, expected.rvalue**2))
    assert stats.least_squares([1, 2], [3, 3]) == (0.0, 3.0, 1.0)
    with pytest.raises(ConfigError, match="distinct"):
        stats.least_squares([2, 2], [1, 3])


@given(st.integers(1, 12), st.data())
def test_pass_at_k_equals_enumeration(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    hits = [any(i < c for i in chosen) for chosen in itertools.combinations(range(n), k)]
    assert float(stats.pass_at_k(n, c, k)) == pytest.approx(np.mean(hits))


def test_pass_at_k_is_unbiased_vectorised_and_stable():
    right = rng(22).binomial(10, 0.3, 20_000)
    assert stats.pass_at_k(10, right, 4).mean() == pytest.approx(1 - 0.7**4, abs=0.01)
    assert stats.pass_at_k(10_000, [0, 1, 9_999, 10_000], 100).tolist() == pytest.approx([0, 0.01, 1, 1])
    for n, c, k in [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)]:
        with pytest.raises(ConfigError, match="pass@"):
            stats.pass_at_k(n, c, k)


def test_paired_binary():
    before = {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0, "e": 0.0}
    after = {"e": 1.0, "d": 1.0, "c": 0.0, "b": 0.0, "a": 1.0}
    result = stats.paired(before, after, rng(1))
    assert (result.test, result.n, result.value) == ("mcnemar", 5, pytest.approx(0.2))
    assert (result.gained, result.lost, result.kept_right, result.kept_wrong) == (("a", "e"), ("b",), 1, 1)
    assert result.p_value == 1.0
    assert result.low <= result.value <= result.high


@given(st.dictionaries(st.text("abcdefgh", min_size=1), st.tuples(finite, finite), min_size=1, max_size=12))
@settings(max_examples=30)
def test_paired_general_values(items):
    before, after = ({k: v[i] for k, v in items.items()} for i in (0, 1))
    result = stats.paired(before, after, rng(1))
    flipped = stats.paired(dict(reversed(before.items())), after, rng(1))
    assert result == flipped
    assert len(result.gained) + len(result.lost) + result.kept_right + result.kept_wrong == result.n == len(items)
    worse = stats.paired(before, after, rng(1), higher_is_better=False)
    assert (worse.gained, worse.lost, worse.value) == (result.lost, result.gained, result.value)
    assert 0 < result.p_value <= 1


def test_paired_refuses_different_items():
    with pytest.raises(ConfigError, match=r"1 are only in the first and 0 only in the second"):
        stats.paired({"a": 1.0, "b": 0.0}, {"a": 1.0}, rng(1))
    with pytest.raises(ConfigError, match="same items"):
        stats.paired({}, {}, rng(1))
