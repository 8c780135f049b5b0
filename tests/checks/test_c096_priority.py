import math

import numpy as np
import pytest

from tamis.checks import c096_priority as check
from tamis.checks.harness import Table


@pytest.fixture(scope="module")
def world():
    return check.world(3)


def test_worlds_are_whole_and_depend_on_the_seed_alone(world):
    assert len(world.logprobs) == 3906
    assert math.fsum(map(math.exp, world.logprobs.values())) == pytest.approx(1)
    again = check.world(3)
    assert (again.flat, again.logprobs) == (world.flat, world.logprobs)


def test_our_arm_is_exact(world):
    found = check.ours(world)
    assert all(found[name] <= 1e-9 for name in found if name.startswith("_"))
    assert [found[f"distinct of {n}"] for n in check.TRIES] == list(check.TRIES)
    assert found["mass of 100"] == pytest.approx(world.found.coverage[-1])


def test_truncation_keeps_the_least_set():
    law = np.array([0.5, 0.3, 0.15, 0.05])
    np.testing.assert_allclose(check.truncated(law, 1.0, 0.75), [0.625, 0.375, 0, 0])
    np.testing.assert_allclose(check.truncated(law, 1.0, 1.0), law)
    np.testing.assert_allclose(check.truncated(law, 0.5, 1.0), law**2 / (law**2).sum())


def test_other_arms(world):
    drawn, until = check.nucleus(world, 1.0), check.until_distinct(world)
    heaviest, found = check.heaviest(world), check.ours(world)
    for n in check.TRIES:
        assert drawn[f"distinct of {n}"] <= n
        assert until[f"distinct of {n}"] == n <= until[f"draws for {n}"]
        assert heaviest[f"mass of {n}"] >= max(found[f"mass of {n}"], drawn[f"mass of {n}"])


def table(**changes):
    """A table in which all holds: ours is better by 0.5 in every world, and exact."""
    exact = ("a rise of priorities", "b repeats", "c mass from 1", "d missed", "logprob error", "passes from nodes")
    cells = {}
    for i, seed in enumerate(check.SEEDS):
        cells[seed] = {}
        for arm in check.ARMS:
            cells[seed][arm] = {f"_{name}": 0.0 for name in exact} if arm == check.OURS else {}
            for n in check.TRIES:
                level = 0.01 * i + 0.5 * (arm == check.OURS)
                cells[seed][arm] |= {f"best of {n}": level, f"flat best of {n}": level}
                cells[seed][arm] |= {f"distinct of {n}": float(n), f"mass of {n}": 0.5, f"draws for {n}": 1.0}
        cells[seed][check.OURS] |= changes
    return Table(cells, check.ROW)


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"_a rise of priorities": 0.1}, "a:"),
        ({"_b repeats": 1.0}, "b:"),
        ({"_c mass from 1": 1e-6}, "c:"),
        ({"_d missed": 1.0}, "d:"),
        ({"_logprob error": 1e-6}, "log-probabilities"),
        ({"_passes from nodes": 1.0}, "forward passes"),
        ({"best of 5": -9.0}, "best of 5"),
        ({"best of 30": 0.0}, "best of 30"),
        ({"distinct of 10": 9.0}, "priority: different"),
    ],
)
def test_verdict_fails_by_the_gate_that_is_broken(changes, gate):
    assert all(f.holds for f in check.verdict(table()) if f.kind == "gate")
    broken = [f.name for f in check.verdict(table(**changes)) if f.kind == "gate" and not f.holds]
    assert len(broken) == 1
    assert broken[0].startswith(gate)


def test_seeds_are_the_rows_own():
    assert check.SEEDS[0] == 50_000 + check.ROW
    assert len(check.SEEDS) == 30
