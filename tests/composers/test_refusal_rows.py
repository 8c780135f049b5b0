"""Composer `refusal_rows` and the wording of certainty and refusals."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composers.pools import context, pool_of, prompt, sampled
from tamis.certainty import answer_entropy, sentence
from tamis.composers.refusal_rows import RefusalRows
from tamis.errors import ConfigError, DataError
from tamis.records import Law
from tamis.refusals import SENTENCES, refuses, unanswerable

GREEDY = Law(temperature=0.0, max_new_tokens=15)
ASKED = [prompt(i, (f"Gold{i}",)) for i in range(4)]


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(RefusalRows(**options).compose(pool, ctx)), ctx


def greedy(texts, asked=ASKED, **fields):
    return [sampled(p, text, law=GREEDY, **fields) for p, text in zip(asked, texts, strict=True)]


def trained(ctx, example):
    return [text for text, is_trained in ctx.chat.trained_text(example.target) if is_trained]


ANSWERS = greedy(["it is gold0", "Gold7", "", "so Gold3"])


def test_sure_shows_gold_and_states_what_the_model_knew():
    examples, ctx = compose(pool_of(ASKED, ANSWERS))
    assert [e.metadata["known"] for e in examples] == [True, False, False, True]
    for number, example in enumerate(examples):
        question, answer, again, said = (m.content for m in example.target.messages)
        assert (question, answer) == (ASKED[number].text, f"Gold{number}.")
        assert "sure" in again
        assert said == ("I am sure." if example.metadata["known"] else "I am unsure.")
        assert trained(ctx, example) == [f"{answer}<|im_end|>", f"{said}<|im_end|>"]
    assert not any("Gold7" in m.content for e in examples for m in e.target.messages), "an error would be trained"
    assert (ctx.counts["questions known"], ctx.counts["questions unknown"]) == (2, 2)


def test_the_whole_text_is_trained_where_asked():
    (example, *_), _ = compose(pool_of(ASKED, ANSWERS), loss_on="all")
    assert example.target.weights == (0.0, *[1.0] * (len(example.target.token_ids) - 1))


def test_refuse_draws_refusals_by_id_and_trains_one_turn():
    examples, ctx = compose(pool_of(ASKED, ANSWERS), form="refuse")
    said = [e.target.messages[-1].content for e in examples]
    assert (said[0], said[3]) == ("Gold0.", "Gold3.")
    assert {said[1], said[2]} <= set(SENTENCES)
    assert trained(ctx, examples[1]) == [f"{said[1]}<|im_end|>"]
    backwards, _ = compose(pool_of(ASKED[::-1], ANSWERS[::-1]), form="refuse")
    assert {e.id for e in backwards} == {e.id for e in examples}


def test_every_refusal_is_drawn():
    asked = [prompt(i, ("gold",)) for i in range(400)]
    examples, ctx = compose(pool_of(asked, greedy(["no"] * 400, asked)), form="refuse")
    counts = [sum(e.target.messages[-1].content == s for e in examples) for s in SENTENCES]
    assert min(counts) > 5
    assert ctx.counts["all questions are unknown: there is nothing to contrast"] == 1


def test_a_judge_may_say_what_is_known():
    examples, ctx = compose(pool_of(ASKED, ANSWERS, [0.0, 1.0, None, 1.0]), known="score")
    assert [e.metadata["known"] for e in examples] == [False, True, True]
    assert ctx.counts["dropped: the answer has no score"] == 1


def entropy_pool(rows, references=()):
    asked = [prompt(i, references) for i in range(len(rows))]
    law = Law(temperature=0.7)
    done = [sampled(p, text, j, law=law) for p, row in zip(asked, rows, strict=True) for j, text in enumerate(row)]
    return asked, pool_of(asked, done)


def test_entropy_splits_at_the_median_without_gold():
    rows = [["a", "A.", "b"], ["x", "x", "x"], ["p", "q", "r"], ["m", "n", "n"], ["v", "w", "z"]]
    _, pool = entropy_pool(rows)
    examples, _ = compose(pool, form="entropy")
    u = [answer_entropy(row) for row in rows]
    assert [e.metadata["entropy"] for e in examples] == pytest.approx(u)
    assert examples[1].metadata["known"]
    assert sum(e.metadata["known"] for e in examples) == 2, "floor(N/2), not a threshold on u"
    tied = sorted((0, 3), key=lambda i: examples[i].prompt_id)
    assert examples[tied[0]].metadata["known"]
    assert not examples[tied[1]].metadata["known"]
    shown = [e.target.messages[1].content for e in examples]
    assert shown == ["a.", "x.", "p.", "n.", "v."]
    _, pool = entropy_pool(rows, ("gold",))
    again, _ = compose(pool, form="entropy")
    assert {e.target.messages[1].content for e in again} == {"gold."}


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=12))
def test_entropy_against_scipy(answers):
    from scipy.stats import entropy

    counts = np.unique(answers, return_counts=True)[1]
    assert answer_entropy(answers) == pytest.approx(entropy(counts), abs=1e-12)


def test_closed_values_of_the_entropy():
    assert answer_entropy(list("aabcc")) == pytest.approx(1.0549, abs=5e-5)
    assert answer_entropy(list("aaaaa")) == 0
    assert answer_entropy(list("abcde")) == pytest.approx(np.log(5))


def test_what_cannot_tell_what_the_model_knows_is_refused():
    hot = [replace(c, law=Law(temperature=0.7), id="") for c in ANSWERS]
    with pytest.raises(ConfigError, match="greedy"):
        compose(pool_of(ASKED, hot))
    ctx = context()
    ctx.model = type("Base", (), {"identity": "base"})()
    with pytest.raises(ConfigError, match="another model"):
        compose(pool_of(ASKED, greedy(["a"] * 4, model="tuned")), ctx)
    compose(pool_of(ASKED, greedy(["a"] * 4, model="base")), ctx)
    with pytest.raises(ConfigError, match="at least 2 answers"):
        compose(pool_of(ASKED, ANSWERS), form="entropy")
    with pytest.raises(ConfigError, match="the same"):
        RefusalRows.component.build({"sure": "yes", "unsure": "yes "})


def test_missing_gold_is_dropped_and_refused_where_there_is_none():
    bare = prompt(9)
    examples, ctx = compose(pool_of([*ASKED, bare], [*ANSWERS, *greedy(["x"], [bare])]))
    assert len(examples) == 4
    assert ctx.counts["dropped: no gold answer"] == 1
    with pytest.raises(DataError, match="no question has a gold answer"):
        compose(pool_of([bare], greedy(["x"], [bare])))


def test_recorded_failures_and_questions_without_an_answer_are_dropped():
    done = [replace(ANSWERS[0], finish_reason="error", id=""), *ANSWERS[1:3]]
    examples, ctx = compose(pool_of(ASKED, done))
    assert [e.prompt_id for e in examples] == [ASKED[1].id, ASKED[2].id]
    assert ctx.counts["dropped: the model gave no answer"] == 2


@pytest.mark.parametrize("text", SENTENCES)
def test_its_own_refusals_are_detected(text):
    assert refuses(text)
    assert refuses(text.upper().replace("'", "\u2019"))


@pytest.mark.parametrize(
    "text", ["", "Paris.", "He did not answer the king.", "The unknown soldier", "No. 5", "I say 7"]
)
def test_answers_are_no_refusals(text):
    assert not refuses(text)


def test_prompts_without_an_answer():
    assert unanswerable(prompt(1, ("The context does not provide the answer.",)))
    assert unanswerable(replace(prompt(1, ("x",)), metadata={"answerable": False}, id=""))
    assert not unanswerable(prompt(1, ("Paris",)))
    assert not unanswerable(prompt(1))


def test_answers_are_sentences():
    assert [sentence(t) for t in ("Paris", " Paris. ", "Why?", "")] == ["Paris.", "Paris.", "Why?", "."]
