"""Judge `unanswerable`."""

from dataclasses import replace

import pytest

from oracle import Oracle
from tamis.context import Context
from tamis.records import Completion, Message, Prompt, Turn
from tamis.registry import build

OPEN = Prompt((Message("user", "Who won?"),), ("The context does not provide the answer.",))
MARKED = Prompt((Message("user", "Who lost?"),), ("",), metadata={"answerable": False})
KNOWN = Prompt((Message("user", "Capital of France?"),), ("Paris",))
BY_ID = {p.id: p for p in (OPEN, MARKED, KNOWN)}


def reply(text):
    refusal = "refuse to answer" in text
    if "mumble" in text:
        return "Well..."
    if refusal:
        return "Yes, it does." if "who can tell" in text.lower() else "no"
    return "Yes." if "French capital" in text else "No, it differs"


def judged(prompt, *texts, **options):
    oracle = Oracle(reply)
    done = [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts)]
    found = list(build("judge", {"unanswerable": options}).judge(BY_ID, done, Context(model=oracle)))
    return [(v.score, v.label) for v in found], oracle


def test_a_refusal_is_right_only_where_there_is_no_answer():
    texts = ("I don't know.", "Who can tell?", "Napoleon")
    for asked in (OPEN, MARKED):
        found, oracle = judged(asked, *texts)
        assert found == [(1.0, "right"), (1.0, "right"), (0.0, "answered")]
        assert len(oracle.asked) == 2, "a phrase needs no model, and there is nothing to compare"
    assert judged(KNOWN, *texts)[0][:2] == [(0.0, "refused"), (0.0, "refused")]


def test_other_words_for_the_same_content_are_right():
    found, oracle = judged(KNOWN, "It is the French capital, Paris", "Lyon")
    assert found == [(1.0, "right"), (0.0, "wrong")]
    assert "Correct answer:\nParis" in oracle.asked[-1]
    _, oracle = judged(KNOWN, "Lyon", ask_refusals=False)
    assert len(oracle.asked) == 1


def test_a_reply_that_cannot_be_read_is_no_verdict():
    assert judged(KNOWN, "mumble")[0] == [(None, "unparseable_verdict")]
    assert judged(KNOWN, "mumble", ask_refusals=False)[0] == [(None, "unparseable_verdict")]


@pytest.mark.parametrize(
    ("fields", "finding"),
    [
        ({"turns": (Turn("assistant", " "),)}, (0.0, "empty")),
        ({"finish_reason": "length"}, (0.0, "cut")),
        ({"finish_reason": "error"}, (None, "no_answer")),
    ],
)
def test_empty_and_cut_answers_are_wrong_and_nobody_is_asked(fields, finding):
    done = replace(Completion(KNOWN.id, (Turn("assistant", "Paris"),)), **fields, id="")
    oracle = Oracle(reply)
    (found,) = build("judge", "unanswerable").judge(BY_ID, [done], Context(model=oracle))
    assert (found.score, found.label) == finding
    assert oracle.asked == []


def test_no_gold_is_no_verdict():
    bare = Prompt((Message("user", "Why?"),))
    done = Completion(bare.id, (Turn("assistant", "So."),))
    (found,) = build("judge", "unanswerable").judge({bare.id: bare}, [done], Context(model=Oracle(reply)))
    assert (found.score, found.label) == (None, "no_gold")


def test_both_wordings_enter_the_key():
    assert len(build("judge", "unanswerable").fingerprint()) == 2
