import numpy as np
import pytest

from tamis.checks import c008_ssr as check
from tamis.checks.harness import Table
from tamis.lab import nano
from tamis.records import Verdict


def test_solutions_of_both_styles():
    world = check.WORLD
    assert world.solution("1+5+4+2=", 1) == "1+5=0,0+4=4,4+2=0,#0"
    assert world.solution("1-5-4-2=", 2) == ">152>244>422#2"
    problems, solutions = world.batch(np.random.default_rng(0), 2000)
    assert all(world.right(p, s) for p, s in zip(problems, solutions, strict=True))
    assert np.mean([s[0] == ">" for s in solutions]) == pytest.approx(0.1, abs=0.03)
    assert np.mean(["+" in p for p in problems]) == pytest.approx(0.5, abs=0.05)
    assert not world.right("1+1+1+1=", "#3")
    assert world.right("1+1+1+1=", "3, no, #4")
    assert set("".join(problems + solutions)) <= set(world.alphabet)


def test_divergence_is_zero_of_a_model_from_itself_and_exact_of_another():
    import torch

    one, two = (nano.nano_module(check.WORLD.alphabet, seed=seed)[0] for seed in (0, 1))
    tokenizer = nano.nano_tokenizer(check.WORLD.alphabet)
    from tamis.models.chat import ChatFormat

    targets = [ChatFormat(tokenizer).render(check._answered(p)) for p in ("1-2-3-4=", "5-5-5-5=")]
    assert check.divergence(one, one, targets) == pytest.approx([0, 0], abs=1e-12)
    found = check.divergence(one, two, targets)
    ids = torch.tensor([targets[0].token_ids])
    p, q = (m(input_ids=ids).logits[0, 7:-1].double().softmax(-1).detach() for m in (one, two))
    assert found[0] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)


def test_flips_are_of_the_kind_and_rate_that_is_asked_for():
    right, wrong = ([Verdict(f"p{i}", (f"c{i}",), "answer", score) for i in range(2000)] for score in (1.0, 0.0))
    flips = lambda verdicts, *rates: np.mean([check._flipped(v, *rates, 0).score != v.score for v in verdicts])  # noqa: E731
    assert flips(right, 0.3, 0.0) == 0
    assert flips(wrong, 0.3, 0.0) == pytest.approx(0.3, abs=0.04)
    assert flips(right, 0.0, 0.1) == pytest.approx(0.1, abs=0.03)
    assert flips(wrong, 0.0, 0.1) == 0


def table(kl, other, target):
    rng = np.random.default_rng(0)
    cells = {}
    for seed in check.SEEDS:
        base = (rng.random(800) < 0.4).astype(float)
        outcome = {"target": np.ones(800) * 0.9, "other": base, "KL": np.full(200, 0.1)}
        cells[seed] = dict.fromkeys(check.ARMS, outcome)
        more = {"share self": 0.8, "log-prob of self targets": -0.1, "log-prob of gold targets": -1.0, "_exact": 1.0}
        ssr = {"target": np.ones(800) * (0.9 + target), "other": np.where(rng.random(800) < other, 1.0, base)}
        cells[seed]["SSR"] = {**outcome, **ssr, "KL": np.full(200, kl), **more}
    return Table(cells, row=check.ROW)


def gates(made):
    return [f.holds for f in check.verdict(made) if f.kind == "gate"]


def test_verdict():
    assert gates(table(0.04, 0.1, 0.0)) == [True] * 4
    assert gates(table(0.06, 0.0, -0.02)) == [False, False, False, True]


def test_seeds_are_the_rows_own():
    assert tuple(range(50_000 + check.ROW, 50_000 + check.ROW + 3)) == check.SEEDS
