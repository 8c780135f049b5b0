"""Evaluator `forgetting`."""

from dataclasses import replace

import numpy as np
import pytest

from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.evaluators.forgetting import Forgetting, divergences, drops
from tamis.lab import nano
from tamis.lab.scripted import ScriptedJudge, ScriptedModel, judged_view
from tamis.models.hf import LocalModel
from tamis.records import Message, Prompt, Target

PROMPTS = [
    Prompt(
        (Message("user", f"{i}+{i}="),),
        (f"#{2 * i}",),
        task="sums" if i < 10 else "dates" if i < 40 else "names",
        metadata={"answer": str(2 * i)},
        split="heldout",
    )
    for i in range(50)
]


def model(seed):
    return LocalModel.from_module(*nano.nano_module(nano.PRINTABLE, seed=seed), "nano", f"nano {seed}")


@pytest.fixture(scope="module")
def models():
    return model(0), model(1)


def measure(evaluator, measured=None, base=None, prompts=PROMPTS):
    rates = {p.id: float(i % 2 == 0 or i >= 40) for i, p in enumerate(PROMPTS)}
    view = judged_view(evaluator, prompts, ScriptedModel(rates), ScriptedJudge(), model=measured)
    return {m.name: m for m in evaluator.measure(replace(view, ctx=Context(model=base)))}


def test_accuracy_by_other_task_and_their_mean():
    found = measure(Forgetting(target=("sums",)))
    assert {name: m.value for name, m in found.items()} == pytest.approx(
        {"accuracy: dates": 0.5, "accuracy: names": 1.0, "accuracy: mean of tasks": 0.75}
    )
    mean = found["accuracy: mean of tasks"]
    assert np.mean(list(mean.per_item.values())) == pytest.approx(0.75)
    assert mean.low < 0.75 < mean.high
    assert list(measure(Forgetting(target=("sums", "names")))) == ["accuracy: dates"]


def test_a_target_that_is_not_there_and_no_other_task_are_refused():
    with pytest.raises(ConfigError, match="no held-out prompt is of the task 'sum'"):
        measure(Forgetting(target=("sum",)))
    with pytest.raises(DataError, match="another task"):
        measure(Forgetting(target=("sums", "dates", "names")))


def test_a_model_is_at_no_distance_from_itself(models):
    base, other = models
    evaluator = Forgetting(max_new_tokens=8)
    assert measure(evaluator, base, base)["KL from the untuned model"].value == 0
    found = measure(evaluator, other, base)["KL from the untuned model"]
    assert found.value > 0
    assert set(found.per_item) == {p.id for p in PROMPTS}
    assert not found.higher_is_better


def test_the_estimate_is_the_kl_in_expectation(models):
    base, other = models
    head = base.chat.prompt_ids((Message("user", "1+1="),))
    vocabulary = len(base.tokenizer)
    targets = [Target((), token_ids=(*head, token), weights=(*[0.0] * len(head), 1.0)) for token in range(vocabulary)]
    estimates = np.array([row[0] for row in divergences(base, other, targets)])
    p, q = (np.exp([row[-1] for row in m.logprobs([t.token_ids for t in targets])]) for m in (base, other))
    assert p.sum() == pytest.approx(1, abs=1e-5)
    assert (p * estimates).sum() == pytest.approx((p * np.log(p / q)).sum(), abs=1e-6)
    assert (estimates >= 0).all()


def test_drops_are_in_points():
    assert drops({"a": 0.5, "b": 0.9}, {"a": 0.4, "b": 0.95}) == pytest.approx({"a": 10, "b": -5, "mean": 2.5})
    with pytest.raises(ConfigError, match="same benchmarks"):
        drops({"a": 0.5}, {"b": 0.5})
