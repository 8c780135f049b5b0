import numpy as np
import pytest

from tamis import conformal
from tamis.checks import c075_conformal as check
from tamis.checks.harness import Table

WORLD = check.World(5)


def test_the_world_is_the_sheets():
    draws = check.Draws.of(2000, np.random.default_rng(0))
    assert draws.labels.mean() == pytest.approx(0.4, abs=0.02)
    right = draws.labels[:, :, None] & draws.labels[:, None, :] & ~np.eye(check.K, dtype=bool)
    assert draws.sims[right].mean() == pytest.approx(0.9, abs=0.02)
    assert (draws.sims == draws.sims.swapaxes(1, 2)).all()
    assert draws.scores[draws.labels].mean() > draws.scores[~draws.labels].mean() + 0.3
    assert (WORLD.trial(0).scores == check.World(5).trial(0).scores).all()
    assert (WORLD.trial(0).scores != WORLD.trial(1).scores).any()


def test_the_baseline_sees_only_the_optimisation_part():
    data = WORLD.trial(0)
    rule = check.untested("max", data, 0)
    cut, rest = conformal.parts(300, check.N_OPT / (check.N_OPT + check.N_CAL), 0)
    assert (len(cut), len(rest)) == (check.N_OPT, check.N_CAL)
    assert data.take(cut).metrics(rule)["loss"] <= check.EPS
    labels = data.labels.copy()
    labels[rest] = False
    assert check.untested("max", check.Draws(data.scores, data.sims, labels), 0) == rule
    assert check.calibrated("max", check.Draws(data.scores, data.sims, labels), 0) is None


def table(**changes):
    arms = {}
    for arm in check.ARMS:
        n = check.PART_TRIALS if arm == "components" else check.TRIALS
        fields = {"violation": 0.0, "loss": 0.15, "draws": 4.0, "size": 2.0, "abstained": 0.0, "kept": 0.3}
        if arm == "calibrated, first_k":
            fields["draws"] = 6.0
        if arm == "untested, max":
            fields["violation"] = 0.5
        fields |= changes.get(arm, {})
        arms[arm] = {
            name: np.arange(n) < round(v * n) if name == "violation" else np.full(n, v) for name, v in fields.items()
        }
    return Table(dict.fromkeys(check.SEEDS, arms), check.ROW)


def failing(**changes):
    return [f.name for f in check.verdict(table(**changes)) if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    assert failing() == []
    assert failing(**{"calibrated, sum": {"violation": 0.2}}) == ["violations: calibrated, sum"]
    assert failing(**{"calibrated, max": {"loss": 0.05}}) == ["mean risk: calibrated, max"]
    assert failing(**{"calibrated, max": {"draws": 7.0}}) == ["draws: first_k - calibrated, max"]
    assert failing(**{"untested, max": {"violation": 0.1}}) == ["violations, untested"]
    assert failing(components={"violation": 0.2, "kept": 0.05}) == [
        "violations: components",
        "share of components kept",
    ]
