"""Plans: exact where nothing is left to chance, ranges elsewhere, done stages free, and the run's folder untouched."""

import json
import math
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from small import load, small
from tamis import pipeline
from tamis import plan as plans
from tamis.errors import ConfigError, ModelError, StoreError
from tamis.hashing import rng
from tamis.models import keeper
from tamis.plan.estimate import Plan, Span, total
from tamis.plan.pool import fill, trained_by_donor
from tamis.plan.rounds import estimate, grow
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict

made = partial(load, small())


def stage(plan, kind):
    return next(s for s in plan.stages if s.kind == kind)


@pytest.fixture(scope="module")
def planned_and_run(tmp_path_factory):
    """A plan with time enough to see all prompts, then the run."""
    place = tmp_path_factory.mktemp("runs")
    plan = plans.plan(made(), runs_dir=place, seconds=1e6)
    assert [p.name for p in place.iterdir()] == [".plans"]
    return place, plan, pipeline.run(made(), runs_dir=place)


def test_with_time_enough_tokens_examples_and_steps_are_exact(planned_and_run):
    _, plan, run = planned_and_run
    taken = {s["kind"]: s for s in run.manifest["stages"]}
    assert [s.kind for s in plan.stages] == list(taken)
    for kind in ("sample", "evaluate_before"):
        assert stage(plan, kind).sampled_tokens == Span.exact(taken[kind]["cost"]["sampled_tokens"])
        assert stage(plan, kind).completions == Span.exact(taken[kind]["counts"]["completions"])
    assert stage(plan, "compose").examples == Span.exact(taken["compose"]["counts"]["examples"])
    assert stage(plan, "tune").trained_tokens == Span.exact(taken["tune"]["cost"]["trained_tokens"])
    assert all(s.seconds.mid > 0 and s.memory > 0 for s in plan.stages)
    assert plan.total("seconds").mid > plan.start > 0


def test_a_run_at_one_go_is_compared_with_its_plan_and_no_other(planned_and_run):
    place, plan, run = planned_and_run
    found = plans.compare(run, 3600)
    assert found.planned_tokens == plan.total("sampled_tokens").mid + plan.total("trained_tokens").mid
    assert found.tokens_off < 0.1
    assert plans.compare(run, -10) is None
    kept = place / ".plans" / f"{run.name}.json"
    whole = kept.read_text()
    for damaged in ("", "[]", "{}", whole.replace('"done": false', '"done": true')):
        kept.write_text(damaged)
        assert plans.compare(run, 3600) is None
    kept.write_text(whole)


def nested(text):
    return '{"a":' * 100_000


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("plan", nested),
        ("plan", lambda text: text.replace('"mid": ', '"mid": "x", "was": ')),
        ("manifest", nested),
        ("manifest", lambda text: text.replace("+00:00", "")),
        ("manifest", lambda text: text.replace('"sampled_tokens"', '"other"')),
    ],
)
def test_a_comparison_that_cannot_be_made_is_left_out(planned_and_run, name, damage):
    place, _, run = planned_and_run
    path = place / ".plans" / f"{run.name}.json" if name == "plan" else run.path / "manifest.json"
    whole = path.read_text()
    path.write_text(damage(whole))
    try:
        assert path.read_text() != whole
        assert plans.compare(run, 3600) is None
    finally:
        path.write_text(whole)


def test_a_runs_folder_that_cannot_be_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr("tamis.plan.rehearsal.Rehearsal.run", lambda self: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for runs_dir in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(StoreError, match="the system refused") as error:
            plans.plan(made(), runs_dir=runs_dir)
        assert error.value.where == str(tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_what_is_done_costs_nothing_and_stays_as_it_was(planned_and_run):
    place, _, run = planned_and_run
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    again = plans.plan(made(), runs_dir=place, seconds=0)
    assert all(s.done and not s.seconds.mid and not s.disk for s in again.stages)
    longer = plans.plan(made("stages.tune.epochs=4"), runs_dir=place, seconds=0)
    assert [s.kind for s in longer.stages if not s.done] == ["tune", "evaluate_after"]
    tokens = next(s for s in run.manifest["stages"] if s["kind"] == "tune")["cost"]["trained_tokens"]
    assert stage(longer, "tune").trained_tokens == Span.exact(2 * tokens)
    assert {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_the_evaluation_of_a_model_tuned_in_rehearsal_is_never_taken_for_done(planned_and_run):
    place, _, run = planned_and_run
    steps = next(s for s in run.manifest["stages"] if s["kind"] == "tune")["counts"]["steps"]
    longer = plans.plan(made(f"stages.tune.max_steps={2 * steps}"), runs_dir=place, seconds=0)
    assert not stage(longer, "evaluate_after").done


def test_a_plan_in_a_hurry_has_ranges_that_hold_its_middle(tmp_path):
    plan = plans.plan(made("task.modular_sums.size=200"), runs_dir=tmp_path, seconds=0)
    sampled = stage(plan, "sample")
    assert sampled.completions == Span.exact(800)
    assert sampled.sampled_tokens.low < sampled.sampled_tokens.mid < sampled.sampled_tokens.high
    assert plan.total("trained_tokens").low <= plan.total("trained_tokens").mid <= plan.total("trained_tokens").high
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_later_rounds_take_what_the_first_takes_but_for_the_base_measured_once(tmp_path):
    plan = plans.plan(made(loop=3), runs_dir=tmp_path, seconds=1e6)
    kinds = [s.kind for s in plan.stages]
    assert kinds.count("tune") == 3
    assert [s.done for s in plan.stages if s.kind == "evaluate_before"] == [False, True, True]


def test_few_prompts_without_an_accepted_answer_leave_the_rest_unknown(tmp_path):
    plan = plans.plan(made("stages.judge.answer.pattern='never(x)'"), runs_dir=tmp_path, seconds=0)
    assert "no example is left" in plan.unknown
    assert [s.kind for s in plan.stages] == ["task", "sample", "judge", "select"]


def test_what_a_run_refuses_the_plan_refuses(tmp_path):
    with pytest.raises(ModelError):
        plans.plan(made(model="http://localhost:1/v1#m"), runs_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_seconds_that_are_no_time_are_refused(tmp_path, seconds):
    with pytest.raises(ConfigError, match="Give a number of 0 or more"):
        plans.plan(made(), runs_dir=tmp_path, seconds=seconds)


FAR = "{model: 'http://localhost:9/v1#m'}"


def test_a_judge_at_an_endpoint_is_asked_little_and_every_request_is_told(tmp_path, monkeypatch):
    asked, get = [], keeper.Models.get

    class Points:
        identity = "points"

        def generate(self, prompts, law, *, candidates, seed, sampler):
            for prompt, wanted in zip(prompts, candidates, strict=True):
                asked.append(prompt.id)
                turn = Turn("assistant", '{"reason": "so", "score": 7}')
                yield from (Completion(prompt.id, (turn,), index=j) for j in wanted)

    monkeypatch.setattr(keeper.Models, "get", lambda s, ref: Points() if ref.kind == "endpoint" else get(s, ref))
    plan = plans.plan(made(f"stages.judge={{score: {FAR}}}"), runs_dir=tmp_path, seconds=1e6)
    assert stage(plan, "judge").judge_calls == Span.exact(96)
    assert stage(plan, "evaluate_before").judge_calls == Span.exact(16)
    assert 0 < len(asked) <= plan.requests == 28 + 16


def test_no_plan_pays_an_endpoint_for_a_whole_pool(tmp_path):
    plan = plans.plan(made(f"stages.select={{knockout: {{}}, judge: {{prefer: {FAR}}}}}"), runs_dir=tmp_path, seconds=0)
    assert "'knockout' asks an endpoint about the whole pool" in plan.unknown
    assert [s.kind for s in plan.stages] == ["task", "sample", "judge"]
    assert not plan.requests


def test_the_command_prints_a_plan_and_the_run_how_far_it_was_off(tmp_path):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(made().to_yaml())

    def tamis(*arguments):
        command = [sys.executable, "-m", "tamis.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ}, check=True)

    said = tamis("plan", "small.yaml", "--seconds", "1000").stdout
    assert all(word in said for word in ("sample", "evaluate_after", "in total", "Measured in"))
    assert " % off" in tamis("run", "small.yaml", "-q").stdout


@given(st.lists(st.integers(0, 50), min_size=2, max_size=40), st.integers(0, 100))
def test_a_total_holds_its_mean_never_less_than_seen_and_is_exact_when_all_is_seen(seen, more):
    span = total(seen, len(seen) + more)
    assert span.low <= span.mid + 1e-9
    assert span.mid <= span.high + 1e-9
    assert span.low >= sum(seen) - 1e-9
    assert span.mid == pytest.approx(np.mean(seen) * (len(seen) + more))
    if not more:
        assert span == Span.exact(sum(seen))


def test_the_range_of_a_total_holds_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    population = draw.gamma(2.0, 30.0, size=300)
    spans = [total(draw.choice(population, 40, replace=False), 300) for _ in range(1000)]
    held = np.mean([s.low <= population.sum() <= s.high for s in spans])
    assert 0.92 < held < 0.98


def prompts(count):
    return [Prompt((Message("user", f"{i}"),), references=("1",)) for i in range(count)]


def answered(prompt, n, tokens=5):
    turn = (Turn("assistant", "x"),)
    return [Completion(prompt.id, turn, index=i, cost=Cost(sampled_tokens=tokens)) for i in range(n)]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 200), st.floats(0, 0.01))
def test_rounds_grow_see_no_prompt_twice_and_stay_below_their_limit(count, n, most, seconds):
    asked, forgotten = prompts(count), []

    def work(part):
        return [c for p in part for c in answered(p, n)], []

    rounds = grow(asked, work, most, seconds, forget=lambda: forgotten.append(1), enough=lambda: False)
    seen = [i for r in rounds for i in r.ids]
    assert len(seen) == len(set(seen)) <= count
    assert len(forgotten) == len(rounds) - 1
    assert all(len(r.completions) <= max(most, n) for r in rounds)
    sizes = [len(r.ids) for r in rounds[1:]]
    assert sizes[:-1] == sorted(sizes[:-1])
    assert estimate(rounds, count)["completions"] == Span.exact(n * count)
    assert estimate(rounds, count)["sampled_tokens"].mid == pytest.approx(5 * n * count)


@given(st.integers(2, 40), st.integers(1, 10), st.integers(0, 5))
def test_a_filled_pool_is_as_large_as_the_real_one_and_borrows_evenly(count, sampled, seed):
    train = prompts(count)
    sampled = min(sampled, count)
    first = train[:sampled]
    drawn = [c for p in first for c in answered(p, 3)]
    said = [Verdict(c.prompt_id, (c.id,), "j", float(c.index == 0)) for c in drawn]
    ids = {c.id for c in drawn}
    filled = fill(train, [p.id for p in first], ids, drawn, said, rng(seed))
    assert [c.prompt_id for c in filled.completions] == [p.id for p in train for _ in range(3)]
    assert len({c.id for c in filled.completions}) == 3 * count
    assert [v.completion_ids for v in filled.verdicts] == [(c.id,) for c in filled.completions]
    assert [v.prompt_id for v in filled.verdicts] == [c.prompt_id for c in filled.completions]
    assert sum(v.score for v in filled.verdicts) == count
    lent = [list(filled.donors.values()).count(p.id) for p in first]
    assert max(lent) - min(lent) <= 1
    assert trained_by_donor([], filled.donors) == [0.0] * sampled


def test_a_pool_beyond_the_limit_is_filled_in_part(monkeypatch):
    from tamis.plan import pool

    monkeypatch.setattr(pool, "MOST", 30)
    train = prompts(50)
    drawn = [c for p in train[:4] for c in answered(p, 3)]
    filled = fill(train, [p.id for p in train[:4]], {c.id for c in drawn}, drawn, [], rng(0))
    assert len(filled.donors) == 10
    assert len(filled.completions) == 30


def test_prompts_with_completions_of_their_own_keep_them_and_borrow_the_rest():
    train = prompts(4)
    gold = [Completion(p.id, (Turn("assistant", "gold"),), sampler="gold") for p in train]
    drawn = answered(train[1], 2)
    filled = fill(train, [train[1].id], {c.id for c in drawn}, [*gold, *drawn], [], rng(0))
    texts = {p.id: sorted(c.text for c in filled.completions if c.prompt_id == p.id) for p in train}
    assert set(map(tuple, texts.values())) == {("gold", "x", "x")}


def test_verdicts_on_pairs_are_borrowed_with_their_pair():
    train = prompts(3)
    drawn = answered(train[0], 2)
    pair = Verdict(train[0].id, tuple(c.id for c in drawn), "prefer", 1.0)
    filled = fill(train, [train[0].id], {c.id for c in drawn}, drawn, [pair], rng(0))
    of_prompt = [tuple(c.id for c in filled.completions if c.prompt_id == p.id) for p in train]
    assert [v.completion_ids for v in filled.verdicts] == of_prompt


def test_spans_add_and_scale():
    span = (Span(1, 2, 4) + Span.exact(1)) * 2
    assert span == Span(4, 6, 10)
    assert math.isclose(span.widened(0.5, 2).high, 20)
    assert Span().spread == (1.0, 1.0)
