from dataclasses import replace

import numpy as np
import pytest

from tamis.checks import c001_rft as check
from tamis.checks.harness import Table
from tamis.checks.sums import bench, exact
from tamis.equations import infix, reasoning_key
from tamis.lab.worlds import ModularSums

N = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TAMIS_HOME", str(tmp_path_factory.mktemp("home")))
        on = bench(ModularSums(3, 3), 7, 0.4, size=12, heldout=12, gold=True)
        return check.World(on, sizes=(3, N, 12))


def own(examples):
    return [e for e in examples if e.metadata["origin"] != "gold"]


def weights(model):
    return np.concatenate([p.detach().numpy().ravel() for p in model.module().parameters()])


def test_world_has_nested_gold_sets_with_left_to_right_solutions_and_fresh_heldout_problems(world):
    ids = {n: {p.id for p in prompts} for n, prompts in world.gold.items()}
    assert {n: len(s) for n, s in ids.items()} == {3: 3, 6: 6, 12: 12}
    assert ids[3] < ids[6] < ids[12]
    assert ids[12].isdisjoint(p.id for p in world.on.heldout)
    for prompt in world.gold[12]:
        assert prompt.references == (world.on.world.solution(prompt.text),)


def test_rft_rows_are_the_gold_solutions_and_distinct_right_paths(world):
    examples = world.examples(N)
    gold = [e.target.messages[-1].content for e in examples if e.metadata["origin"] == "gold"]
    assert gold == [p.references[0] for p in world.gold[N]]
    texts = {p.id: [e.target.messages[-1].content for e in own(examples) if e.prompt_id == p.id] for p in world.gold[N]}
    problems = {p.id: p.text for p in world.gold[N]}
    assert sum(map(len, texts.values())) > N
    for prompt_id, paths in texts.items():
        keys = [reasoning_key(t, infix) for t in paths]
        assert len(set(keys)) == len(keys)
        assert all(world.on.world.right_answer(problems[prompt_id], t) for t in paths)


def test_samples_come_from_the_sft_model_and_tuning_starts_from_the_base(world):
    assert {c.model for c in world.drawn(N).completions} == {world.sft(N).model.identity}
    before = weights(world.on.base)
    assert not np.array_equal(weights(world.sft(N).model), before)
    hardly = world.on.tune(world.examples(N), lr=1e-12, epochs=1.0, batch_size=16)
    np.testing.assert_allclose(weights(hardly.model), before, atol=1e-9)


def test_controls_have_equal_rows_and_equal_steps(world, monkeypatch):
    seen = []
    compose = type(world.on).compose
    monkeypatch.setattr(type(world.on), "compose", lambda self, *a: seen.append(compose(self, *a)) or seen[-1])
    ours, repeated, equal = (arm(world, n=N) for arm in (check.rft_distinct, check.rft_repeated, check.sft_equal_steps))
    assert ours["rows"] == repeated["rows"] == len(world.examples(N))
    assert ours["steps"] == repeated["steps"] == equal["steps"] == check.rft_steps(world, N)
    rows = next(s for s in seen if len(s) == ours["rows"])
    texts = {p.id: [e.target.messages[-1].content for e in own(rows) if e.prompt_id == p.id] for p in world.gold[N]}
    assert all(len(set(paths)) <= 1 for paths in texts.values())
    counts = {p.id: sum(e.prompt_id == p.id for e in own(world.examples(N))) for p in world.gold[N]}
    assert {i: len(paths) for i, paths in texts.items()} == counts


def test_scores_are_the_greedy_all_steps_right_rate(world):
    on = world.on
    truth = [p.metadata["answer"] for p in on.heldout]
    outcome = check.base(world)
    assert outcome["score"].shape == (12,)
    right = replace(on, base=Scripted([on.world.solution(p.text) for p in on.heldout]))
    answer_only = replace(on, base=Scripted([f"#{a}" for a in truth]))
    assert right.scores(right.base).tolist() == [1.0] * 12
    assert answer_only.scores(answer_only.base).tolist() == [0.0] * 12


class Scripted:
    def __init__(self, texts):
        self.texts = texts

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        from tamis.records import Completion, Turn

        assert law.temperature == 0
        return [Completion(p.id, (Turn("assistant", t),)) for p, t in zip(prompts, self.texts, strict=True)]


def test_exact_parts_hold():
    figures = check.exact_figures()
    assert len(figures) == 5
    assert all(f.holds and f.value == 1.0 for f in figures)
    assert exact("wrong", False, "").holds is False


def synthetic(score, seeds=(1, 2, 3)):
    """A table in which arm `a` has exactly a share `score(a, seed)` of 100 items right."""
    cells = {
        s: {a: {"score": (np.arange(100) < round(100 * score(a, s))).astype(float)} for a in check.ARMS} for s in seeds
    }
    return Table(cells, row=1)


def test_verdict_holds_where_rft_wins_and_data_help():
    sizes = {f"sft, N={n}": 0.1 * i for i, n in enumerate(check.SIZES, 2)} | {"sft": 0.4}
    table = synthetic(lambda arm, seed: sizes.get(arm, 0.9 if arm == "rft, distinct" else 0.3 + 0.02 * seed))
    gates = {f.name: f for f in check.verdict(table) if f.kind == "gate"}
    assert all(f.holds for f in gates.values())
    law = gates["data law: SFT accuracy per doubling"]
    assert law.value == pytest.approx(0.1)
    assert law.low == pytest.approx(0.1)


def test_verdict_does_not_hold_where_all_arms_are_alike():
    figures = check.verdict(synthetic(lambda arm, seed: 0.5 + 0.02 * seed))
    held = {f.name: f.holds for f in figures if f.kind == "gate"}
    assert not held["distinct - SFT at equal steps"]
    assert not held["distinct - one path repeated"]
    assert not held["data law: SFT accuracy per doubling"]


def test_seeds_are_the_rows_own():
    assert tuple(range(50_000 + check.ROW, 50_000 + check.ROW + 3)) == check.SEEDS
