import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.audit import statistics
from tamis.calibration import (
    binned,
    calibration_error,
    calibration_report,
    centred_advantages,
    parse_probability,
    proper_score,
    statement,
)
from tamis.errors import ConfigError, DataError

GRID = np.linspace(0, 1, 101)
shares = st.floats(0, 1)


@pytest.mark.parametrize("rule", ["brier", "log"])
@given(truth=st.integers(2, 98))
def test_the_honest_probability_earns_most(rule, truth):
    found = proper_score(GRID, np.full(101, truth / 100), rule)
    assert int(found.argmax()) == truth
    assert (np.diff(found[: truth + 1]) >= 0).all()
    assert (np.diff(found[truth:]) <= 0).all()


@given(shares, shares)
def test_a_fractional_outcome_is_the_expected_score(p, z):
    for rule in ("brier", "log"):
        wrong, right = proper_score([p, p], [0.0, 1.0], rule)
        assert proper_score([p], [z], rule)[0] == pytest.approx(z * right + (1 - z) * wrong)


def test_scores_by_hand():
    assert proper_score([0.7, 0.7], [1, 0]) == pytest.approx([-0.09, -0.49])
    assert proper_score([0.7, 0.0, 1.0], [1, 1, 0], "log") == pytest.approx(
        [math.log(0.7), math.log(0.01), math.log(0.01)]
    )
    assert proper_score([0.0], [1]) == -1, "the quadratic rule is never clipped"
    for rule, lowest in (("brier", -1), ("log", math.log(0.01))):
        assert proper_score([np.nan, 1.0], [1, 1], rule, invalid=[True, False])[0] == pytest.approx(lowest)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([0.5, 1.2], [1, 1]), r"p\[1\] is 1.2"),
        (([0.5, math.nan], [1, 1]), r"p\[1\] is nan"),
        (([0.5], [-1]), r"z\[0\] is -1"),
    ],
)
def test_what_is_no_probability_is_named(arguments, says):
    with pytest.raises(DataError, match=says):
        proper_score(*arguments)


def test_unknown_rules_and_clips():
    for clip in (0, 0.5):
        with pytest.raises(ConfigError, match="clip"):
            proper_score([0.5], [1], "log", clip=clip)
    with pytest.raises(ConfigError, match="unknown rule"):
        proper_score([0.5], [1], "spherical")


def test_advantages_are_centred_and_never_divided():
    found = centred_advantages([[1.0, 3.0], [2.0, 2.0]])
    assert found.tolist() == [[-1, 1], [0, 0]]
    with pytest.raises(ConfigError, match="no longer proper"):
        centred_advantages([[1.0, 2.0]], scale_rewards=True)
    with pytest.raises(ConfigError, match="group of one"):
        centred_advantages([[1.0]])


@given(shares, st.integers(1, 4))
def test_a_statement_is_read_back(p, decimals):
    assert parse_probability(f"Both are fine.\n{statement(p, decimals)}\n") == pytest.approx(
        p, abs=0.51 * 10**-decimals
    )


@pytest.mark.parametrize(("text", "p"), [("[P: .7]", 0.7), ("[P:1]", 1), ("[P: 0]", 0), ("x [P:  0.250 ].", 0.25)])
def test_plain_decimals(text, p):
    assert parse_probability(text) == p


@pytest.mark.parametrize(
    "inside", ["", " ", "70%", "+0.7", "-0.1", "7e-1", "1.1", "0.7 0.8", "0.7/1", "0..7", ".", "٠.٧", "nan", "A", "0,7"]
)
def test_nothing_else_is_a_probability(inside):
    assert parse_probability(f"[P: {inside}]") is None


@pytest.mark.parametrize("text", ["", "0.7", "[P: 0.7", "[P: 0.7] [P: 0.7]", "[P: [P: 0.7]]", "[P: 0.7] and [P:"])
def test_one_marker_exactly(text):
    assert parse_probability(text) is None


def by_hand(p, y, bins):
    """The ECE by a loop."""
    total = 0.0
    for b in range(bins):
        inside = [(b / bins <= x < (b + 1) / bins) or (b == bins - 1 and x == 1) for x in p]
        total += abs(sum(x - t for x, t, there in zip(p, y, inside, strict=True) if there))
    return total / len(p)


cases = st.lists(st.tuples(*[st.integers(0, 16).map(lambda k: k / 16)] * 4), min_size=1, max_size=20).map(np.array)


@given(cases, st.sampled_from([1, 2, 4, 8]))
def test_the_report_against_loops(rows, bins):
    g12, g21, p_star, z = rows.T
    found = calibration_report(g12, g21, p_star, z, bins=bins)
    p, goal, rating = np.append(g12, g21), np.append(p_star, 1 - p_star), np.append(z, 1 - z)
    value = {name: figure.interval.value for name, figure in found.items()}
    assert value["ece"] == pytest.approx(by_hand(p, goal, bins))
    assert value["ece"] == pytest.approx(calibration_error(binned(p, goal, bins).sum(axis=0)))
    assert value["mse"] == pytest.approx(np.mean((p - goal) ** 2))
    assert value["brier"] == pytest.approx(np.mean(rating * (1 - p) ** 2 + (1 - rating) * p**2))
    assert value["positional bias"] == pytest.approx(np.mean(abs(g12 + g21 - 1)))
    named = [0.5 if a == 0.5 or b == 0.5 else float((a > 0.5) == (b > 0.5)) for a, b in zip(p, goal, strict=True)]
    assert value["agreement"] == pytest.approx(np.mean(named))
    assert value["invalid"] == 0
    for figure in found.values():
        assert figure.interval.low <= figure.interval.value <= figure.interval.high
        assert figure.per_pair.mean() == pytest.approx(figure.interval.value)


def test_the_error_is_the_audits():
    rng = np.random.default_rng(0)
    p, y = rng.random(200), (rng.random(200) < 0.5).astype(float)
    audit = statistics.calibration(p, y, np.arange(200), rng)
    both = by_hand(np.append(p, 1 - p), np.append(y, 1 - y), 10)
    assert calibration_report(p, 1 - p, z=y)["ece"].interval.value == pytest.approx(both)
    assert audit.ece.value == pytest.approx(by_hand(p, y, 10))
    assert calibration_report(p, 1 - p, z=y)["brier"].interval.value == pytest.approx(audit.brier.value)


def test_a_bias_that_never_flips_a_verdict_still_shows():
    found = calibration_report([0.52] * 9, [0.51] * 9, p_star=[0.5] * 9)
    assert found["positional bias"].interval.value == pytest.approx(0.03)
    assert calibration_report([0.9], [0.2], p_star=[0.9])["consistency"].interval.value == 1
    assert calibration_report([0.9], [0.6], p_star=[0.9])["consistency"].interval.value == 0
    assert calibration_report([0.5], [0.5], p_star=[0.9])["consistency"].interval.value == 1


def test_an_invalid_statement_is_the_worst_and_never_left_out():
    found = calibration_report([0.8, np.nan], [0.2, np.nan], p_star=[0.8, 0.8], z=[1, 1])
    value = {name: figure.interval.value for name, figure in found.items()}
    assert value["invalid"] == 0.5
    assert [value[name] for name in ("mse", "agreement", "positional bias", "consistency")] == pytest.approx([0.5] * 4)
    assert value["ece"] == pytest.approx(0.5)
    assert value["brier"] == pytest.approx((0.04 + 1) / 2)
    alone = calibration_report([0.8], [0.2], p_star=[0.8], z=[1])
    assert value["log loss"] == pytest.approx((alone["log loss"].interval.value - math.log(0.01)) / 2)


def test_both_orders_are_one_unit_of_the_bootstrap():
    """A pair whose two orders always cancel has no spread."""
    wide = calibration_report([0.9, 0.1] * 20, [0.5] * 40, p_star=[0.5] * 40)["mse"].interval
    assert wide.low == wide.value == wide.high


def test_what_is_missing_is_said():
    with pytest.raises(ConfigError, match="p_star or z"):
        calibration_report([0.5], [0.5])
    with pytest.raises(ConfigError, match="shape"):
        calibration_report([0.5], [0.5], z=[1, 0])
    with pytest.raises(DataError, match=r"g21\[0\] is 2"):
        calibration_report([0.5], [2.0], z=[1])
