"""Composer `self_or_gold`."""

from dataclasses import replace

import numpy as np
import pytest

from composers.pools import completion, context, pool_of, prompt, sampled, verdict
from tamis.composers.accepted_sft import AcceptedSFT
from tamis.composers.self_or_gold import SelfOrGold
from tamis.errors import ConfigError, DataError
from tamis.lab import nano
from tamis.models.hf import LocalModel
from tamis.pool import Pool

ASKED = [prompt(i, (f"gold {i}",)) for i in range(10)]
OWN = [sampled(p, f"own {i}") for i, p in enumerate(ASKED)]


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(SelfOrGold(**options).compose(pool, ctx)), ctx


def texts(examples):
    return [e.target.messages[-1].content for e in examples]


def test_six_right_of_ten_give_six_own_and_four_gold_in_order():
    scores = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    examples, ctx = compose(pool_of(ASKED, OWN, scores))
    assert texts(examples) == [f"{'own' if s else 'gold'} {i}" for i, s in enumerate(scores)]
    assert [e.metadata["source"] for e in examples] == ["self" if s else "gold" for s in scores]
    assert (ctx.counts["targets: self"], ctx.counts["targets: gold"]) == (6, 4)
    assert ctx.counts["tokens of self targets"] == sum(
        sum(e.target.weights) for e in examples if "own" in texts([e])[0]
    )


def test_all_wrong_is_plain_sft_and_all_right_has_no_gold():
    examples, ctx = compose(pool_of(ASKED, OWN, [0.0] * 10))
    plain = list(AcceptedSFT(gold="always").compose(pool_of(ASKED, []), context()))
    assert [e.target for e in examples] == [e.target for e in plain]
    assert ctx.counts["every target is gold: this is plain SFT"] == 1
    examples, ctx = compose(pool_of(ASKED, OWN, [1.0] * 10))
    assert not any("gold" in m.content for e in examples for m in e.target.messages)
    assert ctx.counts["every target is self: this is pure self-training"] == 1


def test_each_question_once_with_its_first_right_answer():
    done = [sampled(ASKED[0], text, i) for i, text in enumerate(("wrong", "first", "second"))]
    examples, _ = compose(pool_of(ASKED[:1], done, [0.0, 1.0, 1.0]))
    assert texts(examples) == ["first"]
    assert examples[0].sources[0] == done[1].id


def test_the_text_is_verbatim_but_for_white_space_at_its_end():
    examples, ctx = compose(pool_of(ASKED[:1], [sampled(ASKED[0], "  two\n lines \n\n")], [1.0]))
    assert texts(examples) == ["  two\n lines"]
    trained = "".join(text for text, is_trained in ctx.chat.trained_text(examples[0].target) if is_trained)
    assert trained == "  two\n lines<|im_end|>"


def test_empty_and_cut_answers_and_those_without_a_score_are_not_right():
    done = [completion(ASKED[0], " "), sampled(ASKED[1], "cut", ended=False), sampled(ASKED[2], "unread")]
    examples, _ = compose(pool_of(ASKED[:3], done, [1.0, 1.0, None]))
    assert texts(examples) == ["gold 0", "gold 1", "gold 2"]


def test_questions_without_a_judged_answer():
    pool = pool_of(ASKED[:3], [OWN[0], OWN[2]], [1.0, None])
    assert texts(compose(pool)[0]) == ["own 0", "gold 1", "gold 2"]
    examples, ctx = compose(pool, on_missing="drop")
    assert texts(examples) == ["own 0"]
    assert ctx.counts["dropped: no judged answer"] == 2


def test_gold_must_be_there_where_it_is_needed():
    bare = prompt(99)
    assert texts(compose(pool_of([bare], [sampled(bare, "own")], [1.0]))[0]) == ["own"]
    for scores in ([0.0], [None]):
        with pytest.raises(DataError, match="no gold answer") as caught:
            compose(pool_of([bare], [sampled(bare, "own")], scores))
        assert caught.value.where == "data.jsonl:99"


def test_verdicts_on_unknown_prompts_are_refused():
    with pytest.raises(DataError, match="is not there"):
        compose(Pool({ASKED[0].id: ASKED[0]}, OWN[:1], [verdict(OWN[0], 1.0), verdict(OWN[1], 1.0)]))


def test_answers_of_another_model_are_counted_or_refused():
    ctx = context()
    ctx.model = type(
        "Base", (), {"identity": "base", "logprobs": lambda self, rows: [np.zeros(len(r)) for r in rows]}
    )()
    pool = pool_of(
        ASKED[:2], [replace(c, model=m, id="") for c, m in zip(OWN, ("base", "tuned"), strict=False)], [1.0, 1.0]
    )
    assert len(compose(pool, ctx)[0]) == 2
    assert ctx.counts["answers by another model than the one to be tuned"] == 1
    with pytest.raises(ConfigError, match="another model"):
        compose(pool, ctx, allow_foreign=False)


def test_targets_are_scored_under_the_base():
    model = LocalModel.from_module(*nano.nano_module(nano.PRINTABLE), "nano", "nano")
    ctx = context()
    ctx.chat, ctx.model = model.chat, model
    (example,), _ = compose(pool_of(ASKED[:1], [], []), ctx)
    row = model.logprobs([example.target.token_ids])[0]
    assert example.metadata["base_logprob"] == pytest.approx(row[np.array(example.target.weights) > 0].mean(), abs=1e-5)
