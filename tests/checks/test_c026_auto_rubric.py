import numpy as np
import pytest

from tamis.checks import c026_auto_rubric as check
from tamis.checks.harness import Table


@pytest.fixture(scope="module")
def world():
    return check.World(4)


def test_pairs_follow_the_sheet():
    found = check.differences(np.random.default_rng(0), 5000, check.AHEAD)
    assert (np.abs(found).sum(axis=1) == 3).all()
    assert (found.sum(axis=1) > 0).all()
    assert np.abs(found).mean(axis=0) == pytest.approx(3 / 12, abs=0.03)
    even = check.differences(np.random.default_rng(0), 20_000, check.EVEN)
    assert (even > 0).sum() / np.abs(even).sum() == pytest.approx(0.75, abs=0.01)


def test_criteria_are_read_back():
    text = check.criterion(11, 1) + "\n" + check.criterion(3, -1)
    assert check.read_criteria(text) == [(11, 1), (3, -1)]


def test_embeddings_of_a_facet_are_orthonormal(world):
    rubrics = np.stack([np.arange(12), np.ones(12, dtype=int)], axis=1)
    x = world.embedded(rubrics, 0.0)
    np.testing.assert_allclose(x @ x.T, np.eye(12), atol=1e-12)
    assert 0 < np.abs(world.embedded(rubrics, 0.03) - x).mean() < 0.05


def test_the_vote_against_a_loop(world):
    rubrics = np.array([[0, 1], [3, -1], [3, 1], [7, 1]])
    for difference, score in list(zip(world.heldout, world.accuracy(rubrics), strict=True))[:200]:
        net = difference[0] - difference[3] + difference[3] + difference[7]
        assert score == (1.0 if net > 0 else 0.0 if net < 0 else 0.5)


def test_the_gate_lets_through_what_the_world_says(world):
    assert (world.gated[:, 1] > 0).mean() > (world.ungated[:, 1] > 0).mean() + 0.2
    assert len(world.ungated) == check.PAIRS
    assert (check.World(4).gated == world.gated).all()


GOOD = {
    "first proposals": {"right": 0.5},
    "gated": {"right": 0.92},
    "gated, even signs": {"right": 0.75},
    "12 by coding rate": {"score": 0.93, "missed": 0.0},
    "12 at random": {"score": 0.85, "facets": 7.5},
    "12 by coding rate, ungated": {"score": 0.5},
    "stops by itself, no noise": {"kept": 11.0, "facets": 11.0, "missed": 0.0},
    "stops by itself, noise 0.03": {"kept": 18.0, "missed": 0.0},
}


def failing(**changes):
    arms = {arm: {**fields, **changes.get(arm, {})} for arm, fields in GOOD.items()}
    figures = check.verdict(Table(dict.fromkeys(check.SEEDS, arms), check.ROW))
    return [f.name for f in figures if f.kind == "gate" and not f.holds]


@pytest.mark.parametrize(
    ("changes", "gates"),
    [
        ({}, []),
        ({"gated": {"right": 0.84}}, ["rubrics in the right direction"]),
        ({"12 by coding rate": {"missed": 2.0}}, ["facets that 12 by coding rate miss, the seed with most"]),
        ({"12 at random": {"score": 0.9}}, ["accuracy: 12 by coding rate - 12 at random"]),
        ({"12 by coding rate, ungated": {"score": 0.66}}, ["accuracy of 12 by coding rate, ungated"]),
        ({"stops by itself, no noise": {"kept": 12.0}}, ["without noise it stops with one rubric per facet"]),
    ],
)
def test_each_gate_can_fail(changes, gates):
    assert failing(**changes) == gates
