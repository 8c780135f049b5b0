import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from tamis import conformal, conformal_components
from tamis.conformal import Abstain, CLMConfig, ConformalSampler, Rule, SetBuilder
from tamis.errors import ConfigError, DataError

EDGES = (-math.inf, 0.2, 0.5, 0.8, math.inf)


def draws(n, k, seed=0, rate=0.5, failed=0.0):
    """Scores, similarities (not symmetric) and labels of made-up prompts."""
    rng = np.random.default_rng(seed)
    labels = rng.random((n, k)) < rate
    scores = np.round(0.4 * labels + 0.6 * rng.random((n, k)), 1)
    scores[rng.random((n, k)) < failed] = -np.inf
    return scores, np.round(rng.random((n, k, k)), 1), labels


def naive(rule, scores, sims):
    """The set of one prompt, as the sheet words it: (kept draws, number of draws)."""
    kept, best = [], {"max": -math.inf}.get(rule.set_score, 0.0)
    for k, score in enumerate(scores.tolist()):
        alike = max([max(sims[j, k], sims[k, j]) for j in kept], default=-math.inf)
        if score > -math.inf and score >= rule.quality and not alike > rule.similarity:
            kept.append(k)
        of = [scores[j] for j in kept]
        found = {
            "first_k": k + 1,
            "max": max(of, default=-math.inf),
            "sum": sum(of),
            "geo": sum(-math.log1p(-q) if q < 1 else math.inf for q in of),
        }[rule.set_score]
        best = max(best, found)
        if best >= rule.stop - 1e-12:
            break
    return kept, k + 1


rules = st.builds(
    Rule,
    st.sampled_from(conformal.SET_SCORES),
    st.sampled_from(EDGES),
    st.sampled_from(EDGES),
    st.sampled_from((*EDGES, 1.25, 3.0)),
)


@settings(max_examples=60, deadline=None)
@given(rules, st.integers(0, 1000))
def test_vectorised_sets_are_those_of_the_definition_and_of_the_builder(rule, seed):
    scores, sims, _ = draws(4, 6, seed, failed=0.1)
    found = conformal.build(rule, scores, sims)
    config = CLMConfig(0.2, 0.05, 9, (), rule.set_score, rule.similarity, rule.quality, rule.stop)
    for i in range(4):
        kept, made = naive(rule, scores[i], sims[i])
        assert (np.flatnonzero(found.kept[i]).tolist(), found.draws[i]) == (kept, made)
        sampler = ConformalSampler(
            lambda x, k: (x, k),
            lambda x, item: float(scores[item]),
            lambda a, b: float(sims[a[0], a[1], b[1]]),
            config,
            k_max=6,
        )
        one = sampler.run(i)
        assert ([k for _, k in one.items], one.draws) == (kept, made)
        assert one.stopped or one.draws == 6


def test_rejected_answers_do_not_reject_others():
    scores, sims = np.array([[0.1, 0.9, 0.9]]), np.full((1, 3, 3), 0.95)
    found = conformal.build(Rule("first_k", 0.5, 0.5, 3), scores, sims)
    assert found.kept.tolist() == [[False, True, False]], "the first is bad, so the second is no repeat of a member"


def test_the_front_is_the_brute_force_front():
    scores, sims, labels = draws(25, 4, 3)
    sims = np.maximum(sims, sims.swapaxes(1, 2))
    grids = [
        [-np.inf, *np.quantile(v, np.linspace(0, 1, 3), method="inverted_cdf"), np.inf]
        for v in (sims[:, *np.tril_indices(4, -1)], scores, np.maximum.accumulate(scores, axis=1))
    ]
    points = []
    for a in grids[0]:
        for b in grids[1]:
            for c in grids[2]:
                m = conformal.clm_metrics(conformal.build(Rule("max", a, b, c), scores, sims), labels)
                points.append((m["loss"], m["draws"] + m["size"]))
    best = sorted({p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)})
    front = conformal.pareto_front(scores, sims, labels, "max", 3)
    found = [conformal.clm_metrics(conformal.build(r, scores, sims), labels) for r in front]
    assert [(m["loss"], m["draws"] + m["size"]) for m in found] == [pytest.approx(p) for p in best]


@pytest.mark.parametrize("set_score", conformal.SET_SCORES)
def test_tests_run_in_order_up_to_the_first_failure(set_score):
    scores, sims, labels = draws(200, 8, 1, rate=0.3)
    found = conformal.calibrate(scores, sims, labels, 0.2, 0.05, set_score, n_grid=5)
    assert isinstance(found, CLMConfig)
    p = [binom.cdf(round(point.risk * found.n), found.n, 0.2) for point in found.tested]
    passed = sum(value <= 0.05 for value in p)
    assert all(value <= 0.05 for value in p[:passed])
    assert passed >= len(p) - 1
    assert found.found == found.tested[passed - 1]
    assert found.n == 140


def test_p_values_are_binomial():
    for losses in (0, 3, 10):
        assert conformal.p_value(losses, 40, 0.2) == pytest.approx(binom.cdf(losses, 40, 0.2))


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_least_prompts_is_least(eps, delta):
    n = conformal.least_prompts(eps, delta)
    assert (1 - eps) ** n <= delta * (1 + 1e-9)
    assert n == 1 or (1 - eps) ** (n - 1) > delta * (1 - 1e-9)


def test_parts_share_no_prompt():
    first, second = conformal.parts(50, 0.3, 7)
    assert len(first) == 15
    assert sorted([*first, *second]) == list(range(50))


@pytest.mark.parametrize("set_score", ["first_k", "max"])
def test_the_promise_is_kept_within_the_binomial_bound(set_score):
    trials, broken = 60, 0
    fresh = draws(4000, 5, 10_000, rate=0.35)
    for seed in range(trials):
        scores, sims, labels = draws(90, 5, seed, rate=0.35)
        found = conformal.calibrate(scores, sims, labels, 0.25, 0.1, set_score, n_grid=4, seed=seed)
        if isinstance(found, CLMConfig):
            broken += conformal.clm_metrics(conformal.build(found, *fresh[:2]), fresh[2])["loss"] > 0.25
    assert broken <= binom.ppf(0.999, trials, 0.1)


def test_without_a_valid_rule_it_abstains_and_no_set_is_made():
    scores, sims, labels = draws(60, 4)
    found = conformal.calibrate(scores, sims, np.zeros_like(labels), eps=0.3)
    assert isinstance(found, Abstain)
    assert "No set is returned" in found.sentence
    assert "100% of 42 calibration prompts" in found.sentence
    with pytest.raises(ConfigError, match="No set is returned"):
        ConformalSampler(lambda x, k: k, lambda x, y: 1.0, lambda a, b: 0.0, found).run("x")


def test_the_promise_in_words():
    scores, sims, labels = draws(120, 6, rate=0.9)
    found = conformal.calibrate(scores, sims, labels)
    assert found.sentence.startswith("At most 20% of prompts will lack an acceptable answer, with 95% confidence.")
    assert "3 calibration prompts are too few: it takes 14" in Abstain(0.2, 0.05, 3).sentence


def test_errors_say_what_is_wrong():
    scores, sims, labels = draws(60, 4)
    for changed, said in (
        ((scores, sims, labels * 2), "0 or 1"),
        ((scores, sims, labels[:, :2]), "shape"),
        ((scores, sims[:, :2], labels), r"\(n, K, K\)"),
        ((np.where(labels, np.nan, scores), sims, labels), "not a number"),
    ):
        with pytest.raises(DataError, match=said):
            conformal.calibrate(*changed)
    for options in ({"eps": 0.0}, {"eps": 1.0}, {"delta": 1.5}, {"opt_frac": 0.0}, {"set_score": "mean"}):
        with pytest.raises(ConfigError):
            conformal.calibrate(scores, sims, labels, **options)
    with pytest.raises(ConfigError, match="14 or more"):
        conformal.calibrate(scores[:12], sims[:12], labels[:12])
    for bad, set_score in ((-scores, "sum"), (2 * scores, "geo")):
        with pytest.raises(DataError, match="takes scores from 0"):
            conformal.calibrate(bad, sims, labels, set_score=set_score)


def test_metrics():
    kept = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=bool)
    found = conformal.clm_metrics(conformal.Sets(kept, np.array([3, 2, 1])), [[1, 0, 0], [1, 0, 0], [0, 0, 1]])
    assert found["loss"] == pytest.approx(2 / 3)
    assert (found["size"], found["draws"], found["excess draws"]) == (1, 2, 1)
    assert found["worst stratified loss"] == 1


def test_components_by_definition():
    rng = np.random.default_rng(5)
    labels = [rng.random(rng.integers(0, 6)) < 0.6 for _ in range(80)]
    scores = [1.5 * y + rng.standard_normal(len(y)) for y in labels]
    gamma = conformal_components.calibrate_components(scores, labels, n_grid=11)
    expected = math.inf
    for g in np.quantile(np.concatenate(scores), np.linspace(0, 1, 11), method="inverted_cdf")[::-1]:
        losses = sum(bool((s[~y] > g).any()) for s, y in zip(scores, labels, strict=True))
        if binom.cdf(losses, 80, 0.2) > 0.05:
            break
        expected = g
    assert gamma == expected < math.inf
    found = conformal_components.component_metrics(scores, labels, gamma)
    assert 0 < found["recall"] <= 1
    assert found["loss"] < 0.2
    assert not conformal_components.filter_components(scores[0], math.inf).any()


def test_component_errors():
    some = [np.array([0.1, 0.9])] * 20
    with pytest.raises(DataError, match="0 or 1"):
        conformal_components.calibrate_components(some, [np.array([0, 2])] * 20)
    with pytest.raises(DataError, match="shape"):
        conformal_components.calibrate_components(some, [np.array([0])] * 20)
    with pytest.raises(DataError, match="not a number"):
        conformal_components.calibrate_components([np.array([np.nan])] * 20, [np.array([1])] * 20)
    with pytest.raises(ConfigError, match="too few"):
        conformal_components.calibrate_components(some[:5], [np.array([0, 1])] * 5)


def test_a_builder_says_what_becomes_of_a_draw():
    built = SetBuilder(CLMConfig(0.2, 0.05, 9, similarity=0.5, quality=0.3, stop=0.9), 9)
    assert not built.reached
    said = [built.add(q, [0.8] * i) for i, q in enumerate((0.1, 0.5, 0.6, -math.inf))]
    assert said == ["low quality", "kept", "like another", "no answer"]
    assert (built.kept, built.draws, built.done) == ([1], 4, False)


def test_a_front_that_is_too_bold_ends_in_all_draws():
    scores, sims, labels = draws(100, 5, 2, rate=0.6)
    optimise, _ = conformal.parts(100, 0.3, 0)
    labels[optimise, 0] = True
    found = conformal.calibrate(scores, sims, labels, 0.05, 0.2, "first_k")
    assert (found.similarity, found.quality, found.stop) == (math.inf, -math.inf, math.inf)
    assert len(found.tested) == 2, "the front's only rule, one draw, failed"
