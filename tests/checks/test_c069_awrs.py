import numpy as np
import pytest

from tamis.checks import c069_awrs as check
from tamis.checks.harness import Table


def test_worlds_depend_on_the_seed_alone_and_forbid_the_likeliest():
    for seed in range(20):
        p, allowed = check.World(seed).token
        assert p.sum() == pytest.approx(1)
        assert allowed.any()
        assert not allowed[p.argmax()]
        again = check.World(seed).token
        assert (again[0] == p).all()
        assert (again[1] == allowed).all()


def test_arms_at_a_small_size(monkeypatch):
    for name, value in (("DRAWS", 2000), ("PARTICLES", 20), ("RUNS", 20), ("COUNTED", 20)):
        monkeypatch.setattr(check, name, value)
    world = check.world(1)
    for method in ("recursive", "geometric"):
        found = check.token(world, method)
        assert found["largest deviation (s.e.)"] < 5
        assert found["_forbidden"] == 0
    smc, local = check.dead_end(world, proper=True), check.dead_end(world, proper=False)
    assert smc["Z"].shape == (20,)
    assert smc["TV"] < local["TV"]
    assert local["share of first a"] == pytest.approx(0.55 / 0.95, abs=0.1)
    assert check.calls(world, 0.9, "recursive")["calls"].mean() == pytest.approx(1 + 1 / 0.9, abs=0.5)


def table(**changes):
    good = {
        "token: recursive": {"largest deviation (s.e.)": 2.0, "_forbidden": 0.0},
        "token: geometric": {"largest deviation (s.e.)": 2.0, "_forbidden": 0.0},
        "dead end: SMC": {"TV": 0.05, "Z": np.random.default_rng(0).normal(0.30951, 0.01, 200)},
        "dead end: locally constrained": {"TV": 0.6, "Z": np.ones(200)},
    }
    for z in check.SHARES:
        counts = 1 + np.random.default_rng(1).geometric(z, 200)
        good |= {f"calls: {m}, {z:g} allowed": {"calls": counts} for m in ("recursive", "geometric")}
    for arm, fields in changes.items():
        good[arm] = {**good[arm], **fields}
    return Table(dict.fromkeys(check.SEEDS, good), check.ROW)


def failing(changes):
    return [f.name for f in check.verdict(table(**changes)) if f.kind == "gate" and not f.holds]


@pytest.mark.parametrize(
    ("arm", "fields", "gate"),
    [
        ("token: geometric", {"largest deviation (s.e.)": 4.1}, "token: geometric"),
        ("token: recursive", {"_forbidden": 0.01}, "token: weight of forbidden"),
        ("dead end: SMC", {"TV": 0.31}, "dead end: TV"),
        ("dead end: SMC", {"Z": np.random.default_rng(0).normal(0.32, 0.01, 200)}, "dead end: mean"),
        ("calls: recursive, 0.5 allowed", {"calls": np.random.default_rng(1).geometric(0.5, 200)}, "calls: 0.5"),
    ],
)
def test_verdict_fails_by_the_gate_that_is_broken(arm, fields, gate):
    assert failing({}) == []
    broken = failing({arm: fields})
    assert len(broken) == 1
    assert broken[0].startswith(gate)


def test_seeds_are_the_rows_own():
    assert check.SEEDS[0] == 50_000 + check.ROW
