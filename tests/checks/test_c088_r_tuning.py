import numpy as np
import pytest

from tamis.checks import c088_r_tuning as check
from tamis.checks.harness import Table


def test_half_of_the_facts_are_taught_and_the_domain_tells_which():
    facts = check.Facts.draw(1, domains=True)
    assert len({p.id for p in facts.prompts}) == check.FACTS
    assert facts.taught.sum() == check.FACTS / 2
    shares = facts.taught.reshape(16, 50).mean(axis=1)
    assert sorted(shares.tolist()) == [0.1] * 8 + [0.9] * 8
    hidden = check.Facts.draw(1, domains=False)
    assert (hidden.taught.reshape(16, 50).sum(axis=1) == 25).all()


def outcome(rng, right, sure):
    willing = sure > 0.5
    return {
        "accuracy": right,
        "share willing": willing.astype(float),
        "accuracy when willing": 0.0,
        "AP of the mixed score": 0.5,
        "AP by c": 0.5,
        "_right": right,
        "_sure": sure,
        "_willing": willing.astype(float),
    }


def table(skill):
    """R-Tuning tells right from wrong with the accuracy `skill`; everybody else by chance."""
    cells = {}
    for seed in check.SEEDS:
        rng = np.random.default_rng(seed)
        cells[seed] = {}
        for arm in check.ARMS:
            right = (rng.random(400) < 0.4).astype(float)
            tells = skill if arm == "R-Tuning" else 0.5
            agrees = rng.random(400) < tells
            sure = np.where(agrees == (right == 1), 0.75, 0.25) + rng.random(400) / 5
            cells[seed][arm] = outcome(rng, right, sure)
    return Table(cells, row=check.ROW)


def gates(made):
    return [f.holds for f in check.verdict(made) if f.kind == "gate"]


def test_verdict():
    assert gates(table(0.8)) == [True] * 6
    assert gates(table(0.5))[:3] == [False] * 3


def test_differences_are_those_of_shares():
    made = table(0.8)
    right, willing = (np.concatenate(made.values("R-Tuning", name)) for name in ("_right", "_willing"))
    base = np.concatenate(made.values("vanilla", "_right"))
    found = check.selective(made, "R-Tuning", "vanilla", True)
    assert found.value == pytest.approx(right[willing == 1].mean() - base.mean())
    assert found.low < found.value < found.high


def test_seeds_are_the_rows_own():
    assert tuple(range(50_000 + check.ROW, 50_000 + check.ROW + 3)) == check.SEEDS
