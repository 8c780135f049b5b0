"""Evaluator `willing`: what a model says of its own answers."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis import stages
from tamis.certainty import StatesCertainty, average_precision, sure_probabilities
from tamis.context import Context
from tamis.errors import ConfigError, ModelError
from tamis.evaluators.willing import Willing
from tamis.lab import nano
from tamis.metrics import View
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.records import Completion, Message, Prompt, Turn, Verdict

PROMPTS = [Prompt((Message("user", f"{i}?"),), (str(i),), split="heldout") for i in range(6)]


@pytest.fixture(scope="module")
def model():
    return LocalModel.from_module(*nano.nano_module(nano.PRINTABLE), "nano", "nano")


def view_of(evaluator, model, prompts, rights, texts=None, logprobs=()):
    (draw,) = evaluator.draws()
    texts = texts or ["an answer"] * len(prompts)
    done = [Completion(p.id, (Turn("assistant", t),)) for p, t in zip(prompts, texts, strict=True)]
    if logprobs:
        ids = [(*model.tokenizer(t)["input_ids"], model.tokenizer.eos_token_id) for t in texts]
        done = [replace(c, token_ids=i, raw_logprobs=logprobs) for c, i in zip(done, ids, strict=True)]
    said = [Verdict(c.prompt_id, (c.id,), "answer", float(r)) for c, r in zip(done, rights, strict=True)]
    return View(prompts, {draw: Pool({p.id: p for p in prompts}, done, said)}, model, Context())


def test_s_is_the_share_of_the_first_tokens_that_differ(model):
    wording = StatesCertainty()
    found = sure_probabilities(model, PROMPTS, ["a"] * 6, wording)
    messages = wording.asked_after(PROMPTS[2], "a")
    before = model.chat.prompt_ids(messages) + model.tokenizer("I am ")["input_ids"]
    logits = model.next_token_logits([before])[0].astype(np.float64)
    s, u = np.exp(logits[model.tokenizer.convert_tokens_to_ids(list("su"))])
    assert found[2] == pytest.approx(s / (s + u), rel=1e-5)
    assert messages[1].content == "a."


def test_words_with_a_common_first_token_and_models_without_logits_are_refused(model):
    shared = StatesCertainty(sure="I am certain.", unsure="I am clueless.")
    with pytest.raises(ConfigError, match="share the first token"):
        sure_probabilities(model, PROMPTS, ["a"] * 6, shared)
    with pytest.raises(ModelError, match="no next-token logits"):
        sure_probabilities(object(), PROMPTS, ["a"] * 6, StatesCertainty())


@pytest.fixture
def decided(monkeypatch):
    """Sure of even questions, unsure of odd ones."""
    said = lambda model, prompts, answers, wording: np.array([0.9 - 0.8 * (int(p.text[0]) % 2) for p in prompts])  # noqa: E731
    monkeypatch.setattr("tamis.evaluators.willing.sure_probabilities", said)


def test_figures(model, decided):
    evaluator = Willing()
    metrics = {m.name: m for m in evaluator.measure(view_of(evaluator, model, PROMPTS, [1, 1, 0, 0, 1, 0]))}
    assert metrics["accuracy when willing"].value == pytest.approx(2 / 3)  # 0, 2 and 4, of which 2 is wrong
    assert metrics["share willing"].value == 0.5
    assert metrics["share willing"].per_item == {p.id: float(i % 2 == 0) for i, p in enumerate(PROMPTS)}
    assert metrics["over-refusal"].value == pytest.approx(1 / 3)
    assert metrics["false trust"].value == pytest.approx(1 / 3)
    assert not metrics["false trust"].higher_is_better
    assert metrics["ECE of sure"].value == pytest.approx((0.9 - 2 / 3 + 1 / 3 - 0.1) / 2)
    assert metrics["average precision"].notes == {"answers without log-probabilities": 6}
    assert metrics["average precision"].value == metrics["average precision, sure alone"].value
    assert "refusal rate, unanswerable" not in metrics


def test_unanswerable_prompts_count_in_the_refusal_rate_alone(model, decided):
    evaluator = Willing()
    prompts = [*PROMPTS[:4], *(replace(p, metadata={"answerable": False}, id="") for p in PROMPTS[4:])]
    metrics = {m.name: m for m in evaluator.measure(view_of(evaluator, model, prompts, [1] * 4 + [0] * 2))}
    assert (metrics["refusal rate, unanswerable"].value, metrics["refusal rate, unanswerable"].n) == (0.5, 2)
    assert metrics["share willing"].n == 4
    assert metrics["accuracy when willing"].value == 1
    assert "false trust" not in metrics


def test_refusals_in_words(model):
    evaluator = Willing(form="refuse")
    texts = ["0", "I don't know.", "7", "I cannot answer this question.", "4", "5"]
    metrics = {m.name: m for m in evaluator.measure(view_of(evaluator, model, PROMPTS, [1, 0, 0, 0, 1, 1], texts))}
    assert metrics["share willing"].value == pytest.approx(4 / 6)
    assert metrics["accuracy when willing"].value == 0.75
    assert "ECE of sure" not in metrics


def test_confidence_is_the_geometric_mean_before_the_stop(model):
    evaluator = Willing(stop=())
    view = view_of(evaluator, model, PROMPTS, [1] * 6, ["ab"] * 6, (math.log(0.5), math.log(0.25), math.log(0.01)))
    found = evaluator.answered(view)
    assert found.confidence == pytest.approx([math.sqrt(0.5 * 0.25)] * 6)
    assert found.score == pytest.approx(0.5 * found.confidence + 0.5 * found.sure)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([0.1, 0.2, 0.5, 0.9])), min_size=1, max_size=30))
def test_average_precision_against_scikit_learn(items):
    from sklearn.metrics import average_precision_score

    right, score = (np.array(column, dtype=float) for column in zip(*items, strict=True))
    wanted = average_precision_score(right, score) if right.any() else 0.0
    assert average_precision(right, score) == pytest.approx(wanted)


def test_average_precision_by_hand():
    assert average_precision(np.array([1, 0, 1, 1]), np.array([4, 3, 2, 1])) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_figures_that_one_side_alone_has_are_shown_and_not_paired(model, decided):
    evaluator = Willing()
    made = [
        {"evaluator": "willing", **asdict(m)} for m in evaluator.measure(view_of(evaluator, model, PROMPTS, [1] * 6))
    ]
    before = [m for m in made if m["name"] != "accuracy when willing"]
    rows = {r["name"]: r for r in stages.compare({"before": before, "after": made}, seed=0)}
    assert set(rows) == {m["name"] for m in made}
    assert "before" not in rows["accuracy when willing"]
    assert rows["accuracy when willing"]["after"]["value"] == 1
    assert rows["share willing"]["difference"]["value"] == 0
    assert "difference" not in rows["over-refusal"]
