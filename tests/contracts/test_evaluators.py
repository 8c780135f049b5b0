"""What every registered evaluator keeps, those of third-party packages included.

An evaluator whose options have no defaults names some in a class attribute `contract = {"option": value}`.
"""

import inspect
import math
from dataclasses import replace

import numpy as np
import pytest

from tamis import registry
from tamis.errors import TamisError
from tamis.lab import nano
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, judged_view
from tamis.lab.worlds import ModularSums
from tamis.metrics import Draw, Metric
from tamis.models.hf import LocalModel
from tamis.records import Law, Message, Prompt

EVALUATORS = registry.components("evaluator")
WORLD = ModularSums()


def build(component):
    return component.build(getattr(component.cls, "contract", {}))


@pytest.fixture(scope="module")
def model():
    return LocalModel.from_module(*nano.nano_module(nano.PRINTABLE), "nano", "nano")


@pytest.fixture(scope="module")
def prompts():
    problems, solutions = WORLD.batch(np.random.default_rng(0), 12)
    return [
        Prompt(
            (Message("user", p),),
            references=(s,),
            metadata={"answer": WORLD.answer(p), "rejected": "#"},
            split="heldout",
            task="sums",
        )
        for p, s in dict(zip(problems, solutions, strict=True)).items()
    ]


def view_of(evaluator, prompts, model, rate=0.5):
    judge = ScriptedJudge(false_negatives=0.1, unparseable=0.1)
    needs = evaluator.component.needs
    return judged_view(evaluator, prompts, ScriptedModel(rate), judge, model=model if needs else None)


every = pytest.mark.parametrize("component", EVALUATORS, ids=lambda c: c.name)


def test_there_are_some():
    assert {"accuracy", "pass_at_k", "maj_at_k", "perplexity"} <= {c.name for c in EVALUATORS}


@every
def test_documented(component):
    assert component.about.endswith((".", ":"))
    assert len(component.page) > len(component.about)
    assert all(option["about"] for option in component.options())
    assert all(inspect.getdoc(getattr(component.cls, m)) for m in ("draws", "measure"))


@every
def test_draws_are_laws_that_can_be_shared(component):
    draws = build(component).draws()
    assert list(draws) == list(build(component).draws())
    assert len(set(draws)) == len(draws)
    for draw in draws:
        assert isinstance(draw, Draw)
        assert isinstance(draw.law, Law)
        assert draw.n >= 1
        assert draw.law.max_new_tokens >= 1
        assert draw.law.temperature >= 0
        assert draw.n == 1 or draw.law.temperature > 0, "greedy completions are all the same"


@every
def test_metrics_are_whole(component, prompts, model):
    evaluator = build(component)
    metrics = evaluator.measure(view_of(evaluator, prompts, model))
    assert metrics
    assert len({m.name for m in metrics}) == len(metrics)
    for metric in metrics:
        assert isinstance(metric, Metric)
        assert metric.name
        assert all(map(math.isfinite, (metric.value, metric.low, metric.high, *metric.per_item.values())))
        assert metric.low <= metric.value <= metric.high
        assert 1 <= metric.n <= len(prompts)
        assert set(metric.per_item) <= {p.id for p in prompts}
        assert all(isinstance(v, int | float | str) for v in metric.notes.values())


@every
def test_deterministic_and_independent_of_order(component, prompts, model):
    evaluator = build(component)
    first = evaluator.measure(view_of(evaluator, prompts, model))
    assert evaluator.measure(view_of(evaluator, prompts, model)) == first
    for again, metric in zip(evaluator.measure(view_of(evaluator, prompts[::-1], model)), first, strict=True):
        assert again.per_item == pytest.approx(metric.per_item, rel=1e-5)
        assert (again.value, again.low, again.high) == pytest.approx((metric.value, metric.low, metric.high), rel=1e-5)


@every
def test_no_prompts_is_a_clear_error(component, model):
    evaluator = build(component)
    with pytest.raises(TamisError):
        evaluator.measure(view_of(evaluator, [], model))


@every
def test_unjudged_completions_are_never_right(component, prompts, model):
    evaluator = build(component)
    if not evaluator.draws():
        pytest.skip("asks for no samples")
    view = view_of(evaluator, prompts, model, rate=1.0)
    unread = {
        d: replace(p, verdicts=[replace(v, score=None, id="") for v in p.verdicts]) for d, p in view.pools.items()
    }
    try:
        metrics = evaluator.measure(replace(view, pools=unread))
    except TamisError:
        return
    for metric in metrics:
        assert not any(metric.per_item.values()) or not metric.higher_is_better
        assert metric.notes
