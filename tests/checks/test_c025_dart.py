import numpy as np
import pytest

from tamis import difficulty, hashing
from tamis.checks import c025_dart as check
from tamis.checks.harness import Table
from tamis.context import Context
from tamis.lab.worlds import SumLevels
from tamis.records import Completion, Turn
from tamis.registry import build


@pytest.fixture(scope="module")
def pool():
    return check.Scripted(3, size=60)


def luck(pool, prompt, tries):
    """Whether each try of a prompt is right, from the scripted solver's definition."""
    rate = pool.stages.model.rate(prompt)
    return np.array([hashing.rng(pool.stages.seed, prompt.id, j).random(2)[0] < rate for j in range(tries)])


def test_scripted_world_is_the_sheets():
    rates = check.Scripted(0).pass_rate
    assert len(rates) == 400
    assert (rates.min(), rates.max()) == (0.02, pytest.approx(1.0, abs=0.01))
    assert rates.mean() == pytest.approx(0.5, abs=0.06)
    assert rates.tolist() == check.Scripted(0).pass_rate.tolist() != check.Scripted(1).pass_rate.tolist()


def test_plain_sampling_keeps_every_correct_try(pool):
    drawn, kept = pool.stages.plain(check.TRIES)
    expected = [luck(pool, p, check.TRIES).sum() for p in pool.stages.prompts]
    assert pool.stages.rows(kept).tolist() == expected
    assert len(drawn) == 60 * check.TRIES
    found = pool.biased(drawn, kept)
    hard = pool.pass_rate < 0.1
    assert found["hard covered"] == np.mean([rows > 0 for rows, h in zip(expected, hard, strict=True) if h])
    assert found["rank correlation"] < -0.5


def test_uniform_keeps_the_first_four_and_one_try_a_round_stops_at_the_fourth(pool):
    drawn, kept = pool.stages.dart("uniform", 4, max_tries=2000, round_cap=1)
    for prompt in pool.stages.prompts:
        right = np.flatnonzero(luck(pool, prompt, 600))[:4]
        assert [kept.completions[i].index for i in kept.by_prompt[prompt.id]] == right.tolist()
        assert len(drawn.by_prompt[prompt.id]) == right[3] + 1
    in_rounds, same = pool.stages.dart("uniform", 4, max_tries=2000)
    assert [c.id for c in same.completions] == [c.id for c in kept.completions]
    assert len(in_rounds) > len(drawn)
    found = pool.uniform(max_tries=2000, round_cap=1)
    assert found["_exact"] == 1.0
    assert found["rows"] == 240
    np.testing.assert_allclose(
        found["_tries of expected"],
        [len(drawn.by_prompt[p.id]) * pool.stages.model.rate(p) / 4 for p in pool.stages.prompts],
    )


def test_a_cap_leaves_targets_unmet_and_says_so(pool):
    found = pool.uniform(max_tries=4)
    assert 0 < found["target met"].mean() < 1
    assert found["tries"] == 240
    assert found["rows"] == sum(luck(pool, p, 4).sum() for p in pool.stages.prompts)


def test_prop2diff_rows_are_the_targets_of_the_probe(pool):
    _, kept = pool.stages.dart("prop2diff", 4, max_tries=2000)
    probe = np.array([luck(pool, p, check.PROBES).mean() for p in pool.stages.prompts])
    assert pool.stages.rows(kept).tolist() == difficulty.targets(probe, "prop2diff", 4).tolist()


def test_problems_are_new_and_judged_by_all_steps():
    level = SumLevels().levels[0]
    train = check.problems(level, np.random.default_rng(0), 100, set())
    fresh = check.problems(level, np.random.default_rng(1), 500, {p.text for p in train}, distinct=False)
    assert len({p.text for p in train}) == 100
    assert not {p.text for p in train} & {p.text for p in fresh}
    assert len(fresh) == 500
    (prompt, *_) = train
    a, b, c = level.operands(prompt.text)
    right = level.solution(prompt.text)
    lucky = f"{a}+{b}={(a + b + 1) % 6},{(a + b + 1) % 6}+{c}={level.answer(prompt.text)},#{level.answer(prompt.text)}"
    made = [Completion(prompt.id, (Turn("assistant", text),), index=i) for i, text in enumerate((right, lucky))]
    judge = build("judge", {"answer": {"kind": "python", "callable": "tamis.checks.c025_dart:all_steps_right"}})
    assert [v.score for v in judge.judge({prompt.id: prompt}, made, Context())] == [1.0, 0.0]


@pytest.fixture(scope="module")
def levels(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("TAMIS_HOME", str(tmp_path_factory.mktemp("home")))
    sums = SumLevels(modulus=2, terms=(2, 3))
    yield check.Levels(1, sums, per_level=2, heldout=6, width=32, lr=5e-3, check_every=5)
    patch.undo()


def test_tuned_arms_train_on_equal_rows(levels):
    w = check.World(None, levels)
    arms = {name: arm(w) for name, arm in check.ARMS.items() if name.startswith("tuned")}
    policies = [arms[f"tuned: {p}"] for p in ("VRT", "uniform", "prop2diff")]
    assert {a["rows"] for a in policies} == {levels.equal_rows}
    assert all(a["score"].shape == (12,) and a["2 additions"].shape == (6,) for a in arms.values())
    assert all(set(np.unique(a["score"])) <= {0.0, 1.0} for a in arms.values())
    assert arms["tuned: VRT, equal tokens"]["trained tokens"] <= arms["tuned: prop2diff"]["trained tokens"]
    assert arms["tuned: VRT"]["tries"] == 4 * check.TRIES
    again = check.ARMS["tuned: prop2diff"](w)
    assert again["score"].tolist() == arms["tuned: prop2diff"]["score"].tolist()


def test_prop2diff_asks_for_about_as_many_rows_as_uniform(levels):
    rates = levels._pass_rate()
    drawn, kept = levels.drawn("prop2diff")
    probes = [[i for i in rows if drawn.completions[i].index < check.PROBES] for rows in drawn.by_prompt.values()]
    assert [np.mean([drawn.accepted(i) for i in probe]) for probe in probes] == rates.tolist()
    k = difficulty.solve_k(rates, "prop2diff", 16)
    assert len(kept) <= difficulty.targets(rates, "prop2diff", k).sum()


def table(**changes):
    """A table on which every gate holds, with `changes` as {"arm / field": value} on every seed."""
    rng = np.random.default_rng(0)
    score = {"base": 0.3, "tuned: VRT": 0.4, "tuned: uniform": 0.5, "tuned: prop2diff": 0.6}
    score |= {"tuned: VRT, distinct": 0.5, "tuned: VRT, equal tokens": 0.5}
    pools = {
        "pool: VRT": {"rank correlation": -0.9, "hard covered": 0.3, "tries": 100.0},
        "pool: uniform": {"hard covered": 1.0, "tries": 300.0, "_exact": 1.0},
        "pool: prop2diff": {"rank correlation": 0.9, "hard covered": 1.0},
        "pool: uniform, one try a round": {"_exact": 1.0, "_tries of expected": rng.normal(1, 0.5, 400)},
    }
    cells = {arm: {"score": np.full(50, s), "6 additions": np.full(50, s)} for arm, s in score.items()} | pools
    for change, value in changes.items():
        arm, field = change.split(" / ")
        cells[arm] = {**cells[arm], field: value}
    return Table(dict.fromkeys(check.SEEDS, cells), check.ROW)


def failing(**changes):
    return [f.name for f in check.verdict(table(**changes)) if f.kind == "gate" and not f.holds]


def test_verdict_gates():
    figures = check.verdict(table())
    assert failing() == []
    assert sum(f.kind == "gate" for f in figures) == 10
    assert next(f.value for f in figures if f.name.startswith("tries of uniform")) == 3.0


@pytest.mark.parametrize(
    ("change", "value", "gate"),
    [
        ("pool: VRT / rank correlation", -0.8, "rows and difficulty, rank correlation: VRT"),
        ("pool: prop2diff / rank correlation", 0.85, "rows and difficulty, rank correlation: prop2diff"),
        ("pool: uniform / _exact", 0.0, "uniform: prompts that met their target have exactly 4 rows"),
        ("pool: uniform / hard covered", 0.96, "hard prompts (p < 0.1) with a row: uniform"),
        ("pool: prop2diff / hard covered", 0.96, "hard prompts (p < 0.1) with a row: prop2diff"),
        ("pool: VRT / hard covered", 0.6, "hard prompts (p < 0.1) with a row: VRT"),
        (
            "pool: uniform, one try a round / _tries of expected",
            np.random.default_rng(0).normal(1.2, 0.5, 400),
            "one try a round: tries * p / k from 1, in standard errors",
        ),
        ("tuned: prop2diff / 6 additions", np.full(50, 0.4), "hardest problems: prop2diff - VRT"),
        ("tuned: uniform / score", np.full(50, 0.38), "all problems: uniform - VRT"),
        ("tuned: prop2diff / score", np.full(50, 0.38), "all problems: prop2diff - VRT"),
    ],
)
def test_each_gate_can_fail(change, value, gate):
    assert failing(**{change: value}) == [gate]
