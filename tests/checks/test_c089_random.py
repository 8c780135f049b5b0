import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import log_loss

from tamis.checks import c089_random as check
from tamis.checks.harness import Table

TINY = check.Sizes(topics=8, small=120, large=400, scoring=40, k=60, test=100, samples=300, kept_samples=12, passes=10)


@pytest.fixture(scope="module")
def tiny():
    return check.World(5, TINY)


@pytest.fixture(scope="module")
def outcomes(tiny):
    return {name: arm(tiny) for name, arm in check.ARMS.items()}


def test_points_follow_the_sheet():
    rng = np.random.default_rng(0)
    topics = check.Topics.drawn(rng, 60)
    points = topics.points(rng, 50_000)
    assert points.x.shape == (50_000, 16)
    assert topics.centres.std() == pytest.approx(1.6, rel=0.1)
    assert points.replaced.mean() == pytest.approx(0.06, abs=0.005)
    assert ((points.y != topics.labels[points.topic]) == points.replaced).all()
    assert set(points.y.tolist()) == set(range(8))
    weights = np.arange(1, 61) ** -0.7
    np.testing.assert_allclose(np.bincount(points.topic) / 50_000, weights / weights.sum(), atol=0.005)
    assert (points.x - topics.centres[points.topic]).std() == pytest.approx(1.0, abs=0.01)
    assert not topics.points(rng, 100, replaced=0.0).replaced.any()


def test_worlds_depend_on_the_seed_alone(tiny):
    same, other = check.World(5, TINY), check.World(6, TINY)
    assert (same.pools["large"].points.x == tiny.pools["large"].points.x).all()
    assert (same.pools["large"].loss == tiny.pools["large"].loss).all()
    assert (other.test.x != tiny.test.x).all()
    assert not tiny.test.replaced.any()


def test_losses_are_those_of_the_labels_as_given(tiny):
    points = tiny.pools["large"].points
    net = check.network(points.take(np.arange(80)), 0, 5)
    ours = check.losses(net, points)
    seen = np.isin(points.y, net.classes_)
    reference = log_loss(points.y[seen], net.predict_proba(points.x[seen]), labels=net.classes_)
    assert ours[seen].mean() == pytest.approx(reference)
    few = np.unique(points.y)[:3]
    unseen = check.losses(check.network(points.take(np.flatnonzero(np.isin(points.y, few))), 0, 2), points)
    assert np.isfinite(unseen).all()
    assert (unseen[~np.isin(points.y, few)] > unseen[np.isin(points.y, few)].max()).all()


@pytest.mark.parametrize("seed", range(5))
def test_k_center_against_all_distances(seed):
    x = np.random.default_rng(seed).normal(size=(40, 3))
    found = check.k_center(x, 12, np.random.default_rng(seed))
    distances = cdist(x, x)
    expected = [int(found[0])]
    while len(expected) < 12:
        expected.append(int(distances[:, expected].min(axis=1).argmax()))
    assert found.tolist() == expected


def test_arms_have_equal_budgets(tiny, outcomes):
    for name, outcome in outcomes.items():
        assert outcome["score"].shape == (100,)
        if not name.startswith("samples"):
            assert outcome["points"] == 60, name
    longest = np.sort(tiny.lengths)[::-1][:12].sum()
    assert outcomes["samples: longest"]["points"] == longest
    assert longest - 24 < outcomes["samples: random, equal tokens"]["points"] <= longest
    assert outcomes["samples: random"]["points"] < longest


def test_random_arms_average_several_draws(outcomes):
    deep = np.unique(np.round(outcomes["large: random"]["score"] * check.DRAWS, 9))
    assert set(deep) <= set(range(check.DRAWS + 1))
    assert len(deep) > 2
    assert set(np.unique(outcomes["large: highest loss"]["score"])) <= {0.0, 1.0}


def test_selections_are_by_loss(tiny, outcomes):
    pool = tiny.pools["large"]
    high, low = np.argsort(-pool.loss)[:60], np.argsort(pool.loss)[:60]
    assert outcomes["large: highest loss"]["wrong labels"] == pool.points.replaced[high].mean()
    assert outcomes["large: lowest loss"]["wrong labels"] == pool.points.replaced[low].mean()
    assert outcomes["large: lowest loss in clusters"]["topics"] >= outcomes["large: lowest loss"]["topics"]


def test_features_are_what_the_networks_answer_is_made_of(tiny):
    pool = tiny.pools["small"]
    logits = pool.features @ pool.network.coefs_[1] + pool.network.intercepts_[1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        shares / shares.sum(axis=1, keepdims=True), pool.network.predict_proba(pool.points.x), atol=1e-12
    )


def test_points_of_samples_are_whole(tiny):
    found = tiny.points_of(np.array([7, 2]))
    assert len(found) == tiny.lengths[[7, 2]].sum()
    first = tiny.lengths[:7].sum()
    assert (found.x[: tiny.lengths[7]] == tiny.in_samples.x[first : first + tiny.lengths[7]]).all()


GOOD = {
    "small: random": 0.86,
    "small: highest loss": 0.76,
    "small: k-center": 0.88,
    "large: random": 0.86,
    "large: highest loss": 0.04,
    "large: lowest loss": 0.52,
    "large: lowest loss in clusters": 0.68,
    "large: stratified random": 0.88,
    "large: k-center": 0.84,
    "large: k-center of features": 0.84,
    "samples: random": 0.76,
    "samples: longest": 0.90,
    "samples: random, equal tokens": 0.90,
}


def verdict(**changes):
    arms = {arm: {"score": np.full(200, score), "points": 300.0} for arm, score in (GOOD | changes).items()}
    return check.verdict(Table(dict.fromkeys(check.SEEDS, arms), check.ROW))


def failing(**changes):
    return [f.name for f in verdict(**changes) if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    assert failing() == []
    assert sum(f.kind == "gate" for f in verdict()) == 8
    more = next(f for f in verdict() if f.name.startswith("what highest loss loses"))
    assert more.value == pytest.approx(0.72)


@pytest.mark.parametrize(
    ("changes", "gates"),
    [
        ({"small: random": 0.90}, ["random, large - small pool"]),
        ({"large: highest loss": 0.57}, ["large: random - highest loss"]),
        (
            {"small: highest loss": 0.03},
            ["what highest loss loses to random, large - small pool"],
        ),
        ({"large: lowest loss in clusters": 0.90}, ["large: best selection by the loss - random"]),
        ({"large: lowest loss": 0.61}, ["large: lowest loss, in clusters - plain"]),
        ({"large: stratified random": 0.84}, ["large: stratified - plain random"]),
        ({"samples: random": 0.83}, ["longest (300 tokens) - as many random samples (300 tokens)"]),
        ({"samples: random, equal tokens": 0.86}, ["longest - random of equal tokens (300 tokens)"]),
        ({"samples: random, equal tokens": 0.94}, ["longest - random of equal tokens (300 tokens)"]),
    ],
)
def test_each_gate_can_fail(changes, gates):
    assert failing(**changes) == gates
