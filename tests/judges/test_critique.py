"""The judge `critique`, and the composer that trains its critiques."""

import pytest

from composers.pools import context, pool_of, prompt, sampled, verdict
from oracle import Oracle
from tamis.context import Context
from tamis.critiques import parse_conclusion
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.registry import build


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Good.\nConclusion: right", "right"),
        ("It slips.\nconclusion :  WRONG. [END]", "wrong"),
        ("Conclusion: right ... no.\nConclusion: WRONG [END]", "wrong"),
        ("Conclusion: right\nConclusion: unclear", None),
        ("Conclusion: right/wrong", None),
        ("Conclusion: rightly so", None),
        ("It is right.", None),
        ("", None),
    ],
)
def test_the_last_conclusion_counts_and_only_a_clear_one(text, said):
    assert parse_conclusion(text) == said


ASKED = prompt(1, ("THE GOLD",))
DONE = [sampled(ASKED, text, i) for i, text in enumerate(("good 1", "bad 2", "odd 3"))]


def critic(text):
    if "odd" in text:
        return "I cannot say."
    return f"I looked.\nConclusion: {'right' if 'good' in text else 'wrong'}\n[END]"


def judged(oracle, **options):
    return list(build("judge", {"critique": options}).judge({ASKED.id: ASKED}, DONE, Context(model=oracle)))


def test_a_critique_is_the_rationale_and_concludes():
    oracle = Oracle(critic)
    right, wrong, open_ = judged(oracle)
    assert [(v.score, v.label) for v in (right, wrong)] == [(1.0, "right"), (0.0, "wrong")]
    assert right.rationale == "I looked.\nConclusion: right"
    assert (open_.score, open_.label, open_.cost.judge_calls) == (None, "unparseable_verdict", 2)
    assert not any("THE GOLD" in text for text in oracle.asked)
    judged(oracle, show_reference=True)
    assert "THE GOLD" in oracle.asked[-1]


def composed(scores=None, **options):
    known = [] if scores is None else [verdict(c, s) for c, s in zip(DONE, scores, strict=True)]
    ctx = context()
    pool = Pool({ASKED.id: ASKED}, DONE, [*known, *judged(Oracle(critic))])
    return list(build("composer", {"critique": options}).compose(pool, ctx)), ctx


def test_the_critique_alone_is_trained():
    (first, second), ctx = composed(per_prompt=None)
    question, answer = first.target.messages
    assert "Question:\nquestion 1?\n\nSolution:\ngood 1" in question.content
    assert answer.content == "I looked.\nConclusion: right"
    trained = ctx.chat.trained_text(first.target)
    assert "".join(text for text, is_trained in trained if is_trained) == f"{answer.content}<|im_end|>"
    assert second.metadata == {"origin": "critique", "conclusion": "wrong"}
    assert ctx.counts["dropped: no critique with a conclusion"] == 1
    assert len(composed()[0]) == 1


def test_what_another_judge_says_of_the_critiques_is_counted():
    made, ctx = composed((1.0, 1.0, 0.0), per_prompt=None)
    assert len(made) == 2
    assert ctx.counts["critiques that another judge contradicts"] == 1
    assert ctx.counts["critiques that agree with the other judge"] == 1
    made, ctx = composed((1.0, 1.0, 0.0), per_prompt=None, drop_wrong_critiques=True)
    assert [e.metadata["conclusion"] for e in made] == ["right"]
    assert ctx.counts["dropped: another judge contradicts the critique"] == 1


def test_refusals():
    with pytest.raises(ConfigError, match="no critique to train on"):
        list(build("composer", "critique").compose(pool_of([ASKED], DONE), context()))
    with pytest.raises(ConfigError, match="no other judge"):
        composed(drop_wrong_critiques=True)
