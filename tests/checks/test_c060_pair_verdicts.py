import numpy as np
import pytest

from tamis.checks import c060_pair_verdicts as check
from tamis.checks.harness import Table
from tamis.evaluators.stats import wilson

WORLD = check.World(5)


def test_closed_forms_are_the_sheets():
    assert check.knockout_theory(0.3, 4, 0.2) == pytest.approx(0.841, abs=5e-4)
    for rounds, share in ((4, 0.4096), (6, 0.2621)):
        assert (1 - check.ERROR) ** rounds == pytest.approx(share, abs=5e-5)
    assert check.pointwise_theory(16, 0.2) == pytest.approx(0.2434, abs=5e-5)
    assert check.pointwise_theory(64, 0.2) == pytest.approx(0.0625, abs=5e-5)


def test_pointwise_theory_against_simulation():
    rng = np.random.default_rng(0)
    truth = np.arange(5) == rng.integers(5, size=(20_000, 1))
    hits = check.pointwise(truth, 0.3, rng)
    low, high = wilson(hits.sum(), len(hits), level=0.999)[1:]
    assert low < check.pointwise_theory(5, 0.3) < high


def test_worlds_depend_on_the_seed_alone():
    assert (check.World(5).one_of(16) == WORLD.one_of(16)).all()
    assert (check.World(6).one_of(16) != WORLD.one_of(16)).any()
    assert (WORLD.one_of(16).sum(axis=1) == 1).all()
    assert WORLD.independent().mean() == pytest.approx(0.3, abs=0.01)


def test_without_errors_everybody_finds_the_right_one():
    truth = WORLD.one_of(7)[:200]
    rng = np.random.default_rng(1)
    assert check.won(truth, 0.0, rng).all()
    assert check.pointwise(truth, 0.0, rng).all()


def test_solutions_are_right_as_they_are_labelled():
    nano = object.__new__(check.Nano)
    rng = np.random.default_rng(2)
    problems = check.WORLD.problems(rng, 100)
    texts, right = nano.solutions(rng, problems)
    assert [check.WORLD.all_steps_right(p, t) for p, t in zip(problems, texts, strict=True)] == right.tolist()
    shown, answers = nano._pairs(np.random.default_rng(3), 50)
    for text, answer in zip(shown, answers, strict=True):
        problem, rest = text[: text.index("=") + 1], text[text.index("=") + 1 : -1]
        a, b = rest.split(";")
        expected = ["WR"[check.WORLD.all_steps_right(problem, t)] for t in (a, b)]
        assert answer == check.WORLD.answer(problem) + "".join(expected)


def shares(value, n=3400):
    return (np.arange(n) < round(value * n)).astype(float)


def verdict(**changes):
    good = {
        "knockout, 16 independent": 0.8406,
        "knockout, one of 16": 0.4096,
        "knockout, one of 64": 0.2621,
        "one verdict, one of 16": 0.2434,
        "one verdict, one of 64": 0.0625,
    }
    arms = {arm: {"score": np.random.default_rng(0).permutation(shares(0.2))} for arm in check.ARMS}
    arms |= {arm: {"score": shares(value)} for arm, value in (good | changes).items()}
    arms |= {f"knockout, error {e}": {"score": shares((1 - e) ** 4)} for e in check.SWEEP}
    for arm in ("trained on pairs", "trained on single solutions"):
        arms[arm] = {**arms[arm], "error per label": 0.1, "right choice": 0.9}
    return check.verdict(Table(dict.fromkeys(check.SEEDS, arms), check.ROW))


def failing(**changes):
    return [f.name for f in verdict(**changes) if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    assert failing() == []
    assert failing(**{"knockout, 16 independent": 0.80}) == ["knockout, 16 independent"]
    assert "one of 64: knockout - one verdict" in failing(**{"knockout, one of 64": 0.06})


def test_the_crossing_lies_between_two_errors_of_the_sweep():
    found = next(f.value for f in verdict() if f.name.startswith("pair error"))
    assert (1 - found) ** 4 == pytest.approx(0.2, abs=0.01)
