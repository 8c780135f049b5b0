import numpy as np
import pytest

from tamis.checks import c113_calibrated as check
from tamis.checks.harness import Table

WORLD = check.World(3)


def test_the_world_is_the_sheets():
    assert np.linalg.norm(WORLD.w) == pytest.approx(1.5)
    first = (WORLD.train @ WORLD.w > 0).mean()
    assert first == pytest.approx(0.9, abs=0.02), "80% of the half whose second answer is better are turned round"
    assert (check.World(3).labels == WORLD.labels).all()
    assert (check.World(4).test != WORLD.test).any()
    assert WORLD.labels.mean() == pytest.approx(check.sigmoid(WORLD.train @ WORLD.w).mean(), abs=0.02)


def test_the_gradient_against_finite_differences():
    rng = np.random.default_rng(0)
    x, said = WORLD.train[:20], rng.integers(21, size=20)
    judge = check.Judge(0.3 * rng.standard_normal(7))

    def likelihood(weights):
        return np.log(check.Judge(weights).law(x)[np.arange(20), said]).mean()

    found = judge.gradient(x, check.VALUES[said] - judge.law(x) @ check.VALUES)
    for k, step in enumerate(1e-5 * np.eye(7)):
        slope = (likelihood(judge.weights + step) - likelihood(judge.weights - step)) / 2e-5
        assert found[k] == pytest.approx(slope, rel=1e-4, abs=1e-6)


def test_draws_follow_the_law():
    law = np.array([[0.2, 0.0, 0.8], [1.0, 0.0, 0.0]])
    drawn = check.draw(law, np.random.default_rng(0).random((2, 20_000)))
    assert np.bincount(drawn[0], minlength=3) / 20_000 == pytest.approx([0.2, 0, 0.8], abs=0.02)
    assert (drawn[1] == 0).all()


def test_every_pair_is_seen_once_an_epoch_in_either_order():
    x, target = WORLD.train[:200], np.linspace(0, 1, 200)
    seen = [
        (row, goal) for xs, goals, _ in check.batches(WORLD, x, target, 1) for row, goal in zip(xs, goals, strict=True)
    ]
    assert len(seen) == 200
    turned = 0
    for row, goal in seen:
        (at,) = np.flatnonzero((abs(x) == abs(row)).all(axis=1))
        same = (x[at] == row).all()
        turned += not same
        assert goal == pytest.approx(target[at] if same else 1 - target[at])
    assert 70 < turned < 130


GOOD = {
    "start": {"mse": 0.03, "ece": 0.16, "positional bias": 0.13, "agreement": 0.9},
    "single ratings, brier": {"mse": 0.002, "ece": 0.02, "positional bias": 0.03, "agreement": 0.96},
    "single ratings, log": {"mse": 0.002},
    "single ratings, brier, divided": {"mse": 0.05, "ece": 0.2},
    "shares of ten": {"mse": 0.001},
    "majorities of ten": {"mse": 0.02},
    "tabular, brier": {"_stated": check.SHARES + 0.05},
    "tabular, log": {"_stated": check.SHARES - 0.05},
    "tabular, brier, divided": {"_stated": check.SHARES + 0.2},
}


def failing(arm="start", **changes):
    arms = GOOD | {
        arm: GOOD[arm] | {name.replace("_", " ") if name != "_stated" else name: v for name, v in changes.items()}
    }
    figures = check.verdict(Table(dict.fromkeys(check.SEEDS, arms), check.ROW))
    return [f.name for f in figures if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    assert failing() == []
    assert failing("single ratings, brier", positional_bias=0.06) == ["single ratings, brier: positional bias"]
    assert failing("single ratings, brier", agreement=0.94) == ["single ratings, brier: agreement"]
    assert failing("single ratings, brier, divided", mse=0.02) == ["single ratings, brier, divided: mse"]
    assert failing("majorities of ten", mse=0.01) == ["majorities of ten: mse"]
    assert failing("tabular, log", _stated=check.SHARES + 0.1) == ["tabular, log: no pair off by more"]
    assert failing("tabular, brier, divided", _stated=check.SHARES) == ["tabular, divided: some pair is off by more"]
