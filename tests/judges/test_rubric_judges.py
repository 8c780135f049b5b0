"""Judges by a rubric: votes in random orders, and the judge that learns its rubric first."""

import json

import numpy as np
import pytest

from oracle import Oracle
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.judges.pairs import Pair
from tamis.records import Completion, Message, Prompt, Turn
from tamis.registry import build

ASKED = Prompt((Message("user", "2+2?"),))
PAIRS = [
    Pair(
        ASKED,
        *(Completion(ASKED.id, (Turn("assistant", t),), index=i) for i, t in enumerate((f"good {n}", f"bad {n}"))),
    )
    for n in range(20)
]


def truthful(text):
    return "Verdict: " + ("A" if "Answer A:\ngood" in text else "B")


@pytest.fixture
def by_file(tmp_path):
    (tmp_path / "rubric.yaml").write_text("themes: [{statement: Be good., tips: [Be very good.]}]")
    return lambda **options: build("judge", {"rubric": {"path": str(tmp_path / "rubric.yaml"), **options}})


def test_votes_are_shown_in_random_orders_and_counted(by_file):
    model = Oracle(truthful)
    verdicts = by_file().compare(PAIRS, Context(model=model))
    assert {(v.label, v.probability, v.judge, v.cost.judge_calls) for v in verdicts} == {("A", 1.0, "rubric", 5)}
    assert [v.completion_ids for v in verdicts] == [p.ids for p in PAIRS]
    assert all("1. Be good.\n   - Be very good." in text for text in model.asked)
    assert 30 < sum("Answer A:\ngood" in text for text in model.asked) < 70


def test_a_judge_that_follows_the_place_wins_nothing_on_average(by_file):
    ctx = Context(model=Oracle(lambda text: "Verdict: A"))
    shares = [v.probability for v in by_file().compare(PAIRS, ctx)]
    assert 0.3 < np.mean(shares) < 0.7
    assert {v.label for v in by_file(both_orders=True).compare(PAIRS, ctx)} == {"tie"}
    assert {v.label for v in by_file().in_order(PAIRS, ctx)} == {"A"}


def test_equal_votes_are_a_tie_and_unreadable_ones_do_not_vote(by_file):
    first = {}

    def once_each(text):
        answer = "good" if first.setdefault(text.split("good ")[1][:3], 0) % 2 == 0 else "bad"
        first[text.split("good ")[1][:3]] += 1
        return "Verdict: " + ("A" if f"Answer A:\n{answer}" in text else "B")

    (tie,) = by_file(votes=2).compare(PAIRS[:1], Context(model=Oracle(once_each)))
    assert (tie.label, tie.probability) == ("tie", 0.5)
    (unread,) = by_file(votes=3).compare(PAIRS[:1], Context(model=Oracle(lambda text: "hm")))
    assert (unread.label, unread.probability) == ("unparseable_verdict", None)
    with pytest.raises(ConfigError, match="votes"):
        by_file(votes=0)


def learning(text):
    if "themes" in text:
        return json.dumps({"themes": [{"statement": "Goodness.", "tips": [], "sources": [1]}]})
    return truthful(text) if "Rubric:" in text else json.dumps({"criteria": ["A good answer is good."]})


@pytest.fixture
def pairs_file(tmp_path):
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(5)]
    rows[0]["critiques"] = "HUMAN WORDS"
    rows.append({"prompt": "q", "response1": "x", "response2": "y", "label": "tie"})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def unit(texts):
    return np.array([[len(t) % 3 + 1, 1.0] for t in texts], dtype=np.float32)


def test_it_learns_once_and_judges_by_what_it_learned(pairs_file, tmp_path):
    model = Oracle(learning)
    ctx = Context(model=model, embed=unit)
    options = {"pairs": str(pairs_file), "save": str(tmp_path / "out.yaml")}
    judge = build("judge", {"auto_rubric": options})
    assert judge.compare([], ctx) == []
    assert model.asked == []
    assert {v.label for v in judge.compare(PAIRS, ctx)} == {"A"}
    assert sum("HUMAN WORDS" in text for text in model.asked) == 1
    assert ctx.counts["dropped: known to be a tie"] == 1
    assert ctx.counts["pairs with a valid criterion"] == 5
    judge.compare(PAIRS[:3], ctx)
    assert ctx.counts["pairs with a valid criterion"] == 5
    asked = len(model.asked)
    again = build("judge", {"auto_rubric": options})
    assert again.compare(PAIRS, ctx) == judge.compare(PAIRS, ctx)
    assert len(model.asked) == asked
    read = build("judge", {"rubric": {"path": str(tmp_path / "out.yaml")}})
    assert "1. Goodness." in read.rubric(ctx).text


def test_its_key_holds_the_content_of_the_pairs(pairs_file):
    judge = build("judge", {"auto_rubric": {"pairs": str(pairs_file)}})
    before = judge.fingerprint()
    pairs_file.write_text(pairs_file.read_text().replace("q1", "q9"))
    assert judge.fingerprint() != before


def test_data_without_pairs_is_refused(tmp_path):
    (tmp_path / "single.jsonl").write_text('{"prompt": "q", "answer": "a", "label": "yes"}\n')
    judge = build("judge", {"auto_rubric": {"pairs": str(tmp_path / "single.jsonl")}})
    with pytest.raises(DataError, match="no pair with a better answer"):
        judge.compare(PAIRS, Context(model=Oracle(learning), embed=unit))
    missing = build("judge", {"auto_rubric": {"pairs": str(tmp_path / "none.jsonl")}})
    with pytest.raises(DataError, match="there is no file"):
        missing.fingerprint()
