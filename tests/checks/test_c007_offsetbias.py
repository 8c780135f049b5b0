import numpy as np
import pytest

from tamis.checks import c007_offsetbias as check
from tamis.checks.harness import Table

WORLD = check.World(5)


def test_features_go_along_with_quality():
    rng = np.random.default_rng(0)
    seen, first = check.ordinary(rng, 40_000)
    quality = np.random.default_rng(0).standard_normal(40_000)
    for column in seen.T[1:]:
        assert np.corrcoef(column, quality)[0, 1] == pytest.approx(0.6, abs=0.02)
    assert ((quality > 0) == first).all()


def test_probes_point_at_the_worse_answer():
    seen, first = check.probes(np.random.default_rng(0), 2000, 3)
    towards_good = np.where(first == 1, 1, -1)[:, None] * seen
    assert (towards_good[:, 4] <= -1).all()
    assert towards_good[:, 0].mean() == pytest.approx(0.3 + 0.75 * np.sqrt(2 / np.pi), abs=0.1)
    assert abs(towards_good[:, [1, 2, 3, 5, 6]].mean()) < 0.05
    assert first.mean() == pytest.approx(0.5, abs=0.05)


def test_the_fit_is_the_maximum():
    x, y = WORLD.base
    weights = check.fitted([(x[:500], y[:500]), (x[500:], y[500:])])
    p = 1 / (1 + np.exp(-x @ weights))
    assert abs(x.T @ (y - p) - check.RIDGE * weights).max() < 1e-6


def test_added_pairs_are_shared_by_the_biases():
    assert [len(y) for _, y in WORLD.counter(range(6))] == [50] * 6
    assert [len(y) for _, y in WORLD.counter([0])] == [300]


def test_scripted_judges():
    assert check.scripted(check.always_first) == (0.5, 0.0, 0.0)
    assert check.scripted(check.longer_wins) == (0.0, 0.0, 1.0)
    assert check.scripted(check.oracle) == (1.0, 1.0, 1.0)


def arm(probes, ordinary, length, other):
    return {"probes": np.array([probes]), "ordinary": np.array([ordinary])} | {
        name: np.array([length if name == "length" else other]) for name in check.TYPES
    }


GOOD = {
    "base": arm(0.28, 0.86, 0.28, 0.28),
    "more ordinary pairs": arm(0.29, 0.86, 0.29, 0.29),
    "offset pairs": arm(0.44, 0.855, 0.44, 0.44),
    "offset pairs of length": arm(0.38, 0.85, 0.74, 0.31),
}


def failing(**changes):
    arms = GOOD | {name.replace("_", " "): values for name, values in changes.items()}
    figures = check.verdict(Table(dict.fromkeys(check.SEEDS, arms), check.ROW))
    return [f.name for f in figures if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    assert failing() == []
    assert failing(more_ordinary_pairs=arm(0.25, 0.86, 0.3, 0.3)) == ["more ordinary pairs - base, up or down"]
    assert failing(offset_pairs=arm(0.39, 0.86, 0.4, 0.4)) == ["offset pairs - base"]
    assert failing(offset_pairs=arm(0.44, 0.84, 0.4, 0.4)) == [
        "ordinary accuracy that offset pairs cost, the worst seed"
    ]
    assert failing(offset_pairs_of_length=arm(0.4, 0.86, 0.6, 0.4)) == [
        "pairs of length alone: length probes",
        "pairs of length alone: most that another probe rises",
    ]
