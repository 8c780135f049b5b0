import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis import difficulty
from tamis.difficulty import difficulty_bias, round_size, solve_k, targets, vanilla_rows
from tamis.hashing import rng
from tamis.pool import Pool
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict

RATES = st.lists(st.integers(0, 8).map(lambda c: c / 8), min_size=1, max_size=12).map(np.array)


def test_targets_by_hand():
    assert targets(np.array([0.0, 0.5, 0.9, 1.0]), "prop2diff", 4).tolist() == [4, 2, 1, 1]
    assert targets(np.array([0.5, 0.75, 1.0]), "prop2diff", 4).tolist() == [4, 2, 1]
    assert targets(np.array([0.1, 1.0]), "uniform", 40).tolist() == [40, 40]
    assert targets(np.ones(3), "prop2diff", 9).tolist() == [1, 1, 1]
    assert targets(np.zeros(0), "prop2diff", 9).tolist() == []


@given(RATES, st.integers(1, 50))
def test_targets_are_exact_ceilings(rates, k):
    fails = [8 - int(r * 8) for r in rates]
    hardest = max(fails)
    exact = [max(1, -(-k * f // hardest)) if hardest else 1 for f in fails]
    assert targets(rates, "prop2diff", k).tolist() == exact


@pytest.mark.parametrize(
    ("rates", "policy", "k", "message"),
    [
        ([0.5], "uniform", 0, "k must be at least 1"),
        ([0.5, np.nan], "uniform", 1, "pass rate 1 is nan"),
        ([1.5], "prop2diff", 1, "pass rate 0 is 1.5"),
        ([-0.1], "prop2diff", 1, r"must lie in \[0, 1\]"),
        ([0.5], "even", 1, "'uniform' or 'prop2diff'"),
    ],
)
def test_targets_errors(rates, policy, k, message):
    with pytest.raises(ValueError, match=message):
        targets(np.array(rates), policy, k)


@given(RATES, st.sampled_from(["uniform", "prop2diff"]), st.integers(1, 120))
def test_solve_k_equals_brute_force(rates, policy, total):
    sums = {k: int(targets(rates, policy, k).sum()) for k in range(1, total + 2)}
    assert solve_k(rates, policy, total) == min(sums, key=lambda k: (abs(sums[k] - total), k))


def test_solve_k_errors():
    with pytest.raises(ValueError, match="at least 1"):
        solve_k(np.array([0.5]), "uniform", 0)
    with pytest.raises(ValueError, match="at least 1"):
        solve_k(np.array([]), "uniform", 3)


def test_round_size_by_hand():
    sizes = round_size([0, 8, 8, 8, 62, 64], [0, 0, 4, 7, 0, 0], [4, 4, 4, 8, 4, 4], 64)
    # p = .5 -> 8; p = 1/10 -> 40, capped; met; p = .8 -> 2; only two tries left; none left
    assert sizes.tolist() == [8, 32, 0, 2, 2, 0]
    assert round_size([100], [0], [4], None).tolist() == [32]
    assert round_size([1000], [0], [1], None, cap=32).tolist() == [16]


def test_bias_by_hand():
    found = difficulty_bias(np.array([4, 0, 2, 0]), np.array([1.0, 0.7, 0.65, 0.0]), bins=10)
    assert found.prompts.tolist() == [1, 0, 0, 2, 0, 0, 0, 0, 0, 1]
    assert found.rows.tolist() == [4, 0, 0, 2, 0, 0, 0, 0, 0, 0]
    assert found.covered[[0, 3, 9]].tolist() == [1.0, 0.5, 0.0]
    assert np.isnan(found.covered[1])
    assert found.without_rows == 0.5
    assert np.isnan(difficulty_bias(np.array([1, 1]), np.array([0.1, 0.2])).correlation)
    assert difficulty_bias(np.array([3, 2, 1]), np.array([0.9, 0.5, 0.1])).correlation == pytest.approx(-1)


@pytest.mark.parametrize(("rows", "rates"), [([1], [0.1, 0.2]), ([], []), ([-1], [0.5]), ([1], [2.0])])
def test_bias_errors(rows, rates):
    with pytest.raises(ValueError, match=r"rows|pass rate"):
        difficulty_bias(np.array(rows), np.array(rates))


def test_vanilla_rows_match_the_law():
    rates = np.array([0.0, 0.25, 1.0])
    drawn = np.array([vanilla_rows(rates, 10, rng(s)) for s in range(400)])
    assert drawn[:, 0].max() == 0
    assert (drawn[:, 2] == 8).all()
    assert abs(drawn[:, 1].mean() - 2) < 4 * np.sqrt(8 * 0.25 * 0.75 / 400)
    with pytest.raises(ValueError, match="no prompt was solved"):
        vanilla_rows(np.zeros(2), 10, rng(0))


def test_account():
    prompts = [Prompt((Message("user", q),), ("1",)) for q in "ab"]
    texts = {0: ["x", "x", "y"], 1: ["z", "w"]}
    completions = [
        Completion(prompts[p].id, (Turn("assistant", t),), index=j, cost=Cost(sampled_tokens=3))
        for p, group in texts.items()
        for j, t in enumerate(group)
    ]
    scores = [1.0, 1.0, 0.0, None, 1.0]
    verdicts = [Verdict(c.prompt_id, (c.id,), "j", s) for c, s in zip(completions, scores, strict=True)]
    pool = Pool({p.id: p for p in prompts}, completions, verdicts)
    found = difficulty.account(pool, {prompts[0].id: 2, prompts[1].id: 1})
    assert found.tries.tolist() == [3, 2]
    assert found.correct.tolist() == [2, 1]
    assert found.usable.tolist() == [1, 1]
    assert found.tokens.tolist() == [9, 6]
    assert found.unmet == (prompts[0].id,)
    assert found.pass_rate.tolist() == [2 / 3, 1 / 2]
    assert difficulty.account(pool, {p.id: 2 for p in prompts}, "none").unmet == (prompts[1].id,)
