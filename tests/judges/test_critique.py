"""The judge `critique`, and the composer that trains its critiques."""

import pytest

from composers.pools import completion, context, pool_of, prompt, sampled, verdict
from oracle import Oracle
from tamis.context import Context
from tamis.critiques import parse_conclusion
from tamis.errors import ConfigError, DataError
from tamis.pool import Pool
from tamis.registry import build


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Good.\nConclusion: right", "right"),
        ("It slips.\nconclusion :  WRONG. [END]", "wrong"),
        ("Conclusion: right ... no.\nConclusion: WRONG [END]", "wrong"),
        ("... Conclusion: right ... Conclusion: WRONG [END]", "wrong"),
        ("Conclusion: wrong\nSo much for that.", "wrong"),
        ("Conclusion: right\nConclusion: unclear", None),
        ("Conclusion: right, Conclusion: wrong?", None),
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


class Cut:
    """An oracle whose replies are cut at the limit, or never come."""

    identity = "cut"

    def __init__(self, finish):
        self.finish = finish

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        assert (law.temperature, law.top_p) in {(0.3, 0.95), (0.7, 0.95)}
        for asked in prompts:
            yield completion(asked, "I looked.\nConclusion: right", finish_reason=self.finish)


@pytest.mark.parametrize(
    ("finish", "label", "reason"),
    [
        ("length", "cut_reply", "the critique was cut at the length limit"),
        ("error", "no_reply", "the critic gave no reply"),
    ],
)
def test_a_critique_that_did_not_end_is_no_critique(finish, label, reason):
    verdicts = judged(Cut(finish))
    assert [(v.score, v.label) for v in verdicts] == [(None, label)] * 3
    ctx = context()
    assert not list(build("composer", "critique").compose(Pool({ASKED.id: ASKED}, DONE, verdicts), ctx))
    assert ctx.counts == {f"dropped: {reason}": 3}


def test_a_completion_of_a_prompt_that_is_not_there():
    with pytest.raises(DataError, match="is not there"):
        list(build("judge", "critique").judge({}, DONE, Context(model=Oracle(critic))))


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
    made, ctx = composed()
    assert len(made) == 1
    assert ctx.counts["over per_prompt"] == 2


def test_an_answer_that_was_selected_twice_is_criticised_once():
    pool = Pool({ASKED.id: ASKED}, DONE[:2], judged(Oracle(critic))[:2]).take([0, 0, 1])
    ctx = context()
    made = list(build("composer", {"critique": {"per_prompt": None}}).compose(pool, ctx))
    assert [e.metadata["conclusion"] for e in made] == ["right", "wrong"]
    assert ctx.counts["dropped: the same answer again"] == 1


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
