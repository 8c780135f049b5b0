"""The statistics of an audit against references, closed forms and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from tamis.audit import statistics
from tamis.evaluators.stats import wilson

CODES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_a_share_with_a_row_a_prompt_is_wilsons(hits):
    found = statistics.share(np.array(hits), np.arange(len(hits)))
    assert found == pytest.approx(wilson(sum(hits), len(hits)))


def test_rows_of_one_prompt_count_once_where_they_say_the_same():
    hits = np.array([True] * 30 + [False] * 10)
    once = statistics.share(hits, np.arange(40))
    twice = statistics.share(np.repeat(hits, 2), np.repeat(np.arange(40), 2))
    assert twice == pytest.approx(once)
    assert statistics.share(np.array([], dtype=bool), np.array([], dtype=int)) is None


@given(CODES)
def test_kappa_is_that_of_scikit_learn(pairs):
    known, said = np.array(pairs).T
    found = statistics.cohen_kappa(known, said, np.arange(len(known)), np.random.default_rng(0))
    with np.errstate(invalid="ignore"):
        wanted = cohen_kappa_score(known, said, labels=[0, 1, 2]) if len(set(known) | set(said)) > 1 else math.nan
    if found is None:
        assert math.isnan(wanted)
    else:
        assert found.value == pytest.approx(wanted)
        assert found.low - 1e-12 <= found.value <= found.high + 1e-12


def test_agreement_everywhere_is_no_certainty():
    codes = np.array([0, 1] * 10)
    found = statistics.cohen_kappa(codes, codes, np.arange(20), np.random.default_rng(0))
    assert found.value == 1
    assert found.low == pytest.approx(2 * wilson(20, 20).low - 1)


def test_fleiss_kappa_of_his_own_example():
    counts = np.array(
        [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
         [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]], dtype=float
    )  # fmt: skip
    equal, kappa = statistics.consistency(counts, np.arange(10), np.random.default_rng(0))
    assert equal.value == pytest.approx(0.378, abs=5e-4)
    assert kappa.value == pytest.approx(0.210, abs=5e-4)
    same = np.array([[3.0, 0.0]] * 10)
    equal, kappa = statistics.consistency(same, np.arange(10), np.random.default_rng(0))
    assert (equal, kappa) == (pytest.approx(wilson(10, 10)), None)


def test_the_fit_is_that_of_scikit_learn_in_large_samples():
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(20000), rng.normal(size=(20000, 2))])
    y = (rng.random(20000) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -0.5]))).astype(float)
    found = statistics.logistic(x, y, np.arange(20000))
    wanted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(x, y)
    assert found.values == pytest.approx(wanted.coef_[0], abs=2e-3)
    p = wanted.predict_proba(x)[:, 1]
    errors = np.sqrt(np.diag(np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]))))
    assert np.ptp(found.intervals, axis=1) / (2 * 1.96) == pytest.approx(errors, rel=0.02)


def test_firth_of_a_single_share_is_its_closed_form():
    y = np.array([1.0] * 10)
    found = statistics.logistic(np.ones((10, 1)), y, np.arange(10))
    assert found.values[0] == pytest.approx(math.log(10.5 / 0.5))
    assert found.unbounded.tolist() == [True]
    assert found.intervals[0, 0] > 0.5
    assert found.p_values[0] < 0.001


def test_the_jackknife_is_near_the_one_that_refits():
    rng = np.random.default_rng(1)
    prompts = np.repeat(np.arange(60), 3)
    x = np.column_stack([np.ones(180), rng.normal(size=180)])
    y = (rng.random(180) < 1 / (1 + np.exp(-(x @ [0.2, 0.8] + np.repeat(rng.normal(size=60), 3))))).astype(float)
    refits = np.array([statistics._firth(x[prompts != g], y[prompts != g]) for g in range(60)])
    wanted = np.sqrt(59 / 60 * ((refits - statistics._firth(x, y)) ** 2).sum(axis=0))
    ends = statistics.logistic(x, y, prompts).intervals
    assert np.ptp(ends, axis=1) / (2 * 2.001) == pytest.approx(wanted, rel=0.05)


def test_separated_data_are_told_and_rejected_by_the_likelihood_ratio():
    rng = np.random.default_rng(2)
    x = np.column_stack([np.ones(60), rng.normal(size=(60, 2))])
    found = statistics.logistic(x, (x[:, 1] + 1e-3 > 0).astype(float), np.arange(60))
    assert found.unbounded.any()
    assert found.p_values[1] < 1e-4
    assert found.intervals[1, 0] > 0
    assert found.intervals[2, 0] < 0 < found.intervals[2, 1]


def test_columns_that_say_the_same_are_kept_once():
    a, b = np.array([1.0, 0, 1, 0]), np.array([1.0, 1, 0, 0])
    assert statistics.full_rank([a, b, a + b, np.zeros(4)]) == [0, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=2, max_size=80))
def test_the_brier_score_falls_into_its_parts(rows):
    p, y = np.array([r[0] for r in rows]), np.array([float(r[1]) for r in rows])
    found = statistics.calibration(p, y, np.arange(len(p)), np.random.default_rng(0))
    bins = np.minimum((p * 10).astype(int), 9)
    gaps = sum(abs(p[bins == k].mean() - y[bins == k].mean()) * (bins == k).mean() for k in set(bins.tolist()))
    assert found.ece.value == pytest.approx(gaps, abs=1e-12)
    assert found.brier.value == pytest.approx(((p - y) ** 2).mean())
    parts = found.reliability - found.resolution + found.uncertainty + found.within
    assert parts == pytest.approx(found.brier.value)
    spread = sum(((p - y)[bins == k] ** 2).sum() - (bins == k).sum() * (p[bins == k].mean() - y[bins == k].mean()) ** 2
                 for k in set(bins.tolist())) / len(p)  # fmt: skip
    varied = sum(((y[bins == k] - y[bins == k].mean()) ** 2).sum() for k in set(bins.tolist())) / len(p)
    assert found.within == pytest.approx(spread - varied, abs=1e-12)


def test_the_bootstrap_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(3).normal(size=400)
    rows = np.column_stack([np.ones(400), values])
    found = statistics.bootstrap(rows, lambda total: total[:, 1] / total[:, 0], np.random.default_rng(0))
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.015)
    assert found.high == pytest.approx(values.mean() + half, abs=0.015)
