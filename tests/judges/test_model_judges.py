"""Judges that ask a model: what they ask, what they make of the replies, what they never make up."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracle import Oracle
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.pairs import TIES, Pair, PairJudge, merged, pairs_of
from tamis.lab.judges import BiasedJudge, TwoLabelJudge
from tamis.models.base import LabelLogprobs
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict
from tamis.registry import build

PROMPTS = [Prompt((Message("user", f"{i}+{i}=?"),), (str(2 * i),)) for i in range(3)]
BY_ID = {p.id: p for p in PROMPTS}


def answers(*texts, prompt=PROMPTS[1]):
    return [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate(texts)]


FAILED = Completion(PROMPTS[1].id, (Turn("assistant", ""),), index=9, finish_reason="error")


def test_points_become_a_score_and_a_failure_is_not_asked_about():
    def reply(text):
        return json.dumps({"reason": "so", "score": 10 if "Answer:\n2" in text else 1})

    oracle = Oracle(reply)
    ctx = Context(model=oracle)
    made = [*answers("2", "3"), FAILED]
    right, wrong, failed = build("judge", "score").judge(BY_ID, made, ctx)
    assert (right.score, wrong.score, failed.score) == (1.0, 0.0, None)
    assert (right.label, failed.label) == ("scored", "no_answer")
    assert right.rationale == "so"
    assert len(oracle.asked) == 2
    assert all("A correct answer, for comparison:\n2" in text for text in oracle.asked)


def test_points_outside_the_range_are_no_points():
    ctx = Context(model=Oracle(lambda text: '{"reason": "", "score": 11}'))
    (verdict,) = build("judge", {"score": {"retries": 2}}).judge(BY_ID, answers("2"), ctx)
    assert (verdict.score, verdict.label) == (None, "unparseable_verdict")
    assert verdict.cost == Cost(3, 3, 3)
    assert ctx.counts["answers without a value: unparseable_verdict"] == 1


def test_points_are_averaged_over_the_replies_that_can_be_read():
    def reply(text):
        return [json.dumps({"reason": "", "score": 1}), json.dumps({"reason": "", "score": 10}), "hm"]

    judge = build("judge", {"score": {"samples": 3, "temperature": 1.0, "retries": 0}})
    (verdict,) = judge.judge(BY_ID, answers("2"), Context(model=Oracle(reply)))
    assert verdict.score == pytest.approx(0.5)


def test_labels_come_with_probabilities():
    class Exact(Oracle):
        def label_logprobs(self, prompts, labels):
            return LabelLogprobs(np.log([[0.2, 0.1]] * len(prompts)), np.ones((len(prompts), 2), dtype=bool))

    (exact,) = build("judge", "label").judge(BY_ID, answers("2"), Context(model=Exact(None)))
    assert (exact.label, exact.score, exact.probability) == ("yes", pytest.approx(2 / 3), pytest.approx(2 / 3))
    sampled = Oracle(lambda text: ["No."] * 6 + ["yes"] * 2)
    (shares,) = build("judge", "label").judge(BY_ID, answers("2"), Context(model=sampled))
    assert (shares.label, shares.score, shares.probability) == ("no", 0.25, 0.75)
    (unread,) = build("judge", "label").judge(BY_ID, answers("2"), Context(model=Oracle(lambda text: "maybe")))
    assert (unread.label, unread.score, unread.probability) == ("unparseable_verdict", None, None)


def test_labels_are_sampled_by_the_law_of_the_options_and_cost_what_was_asked():
    oracle = Oracle(lambda text: "maybe")
    judge = build("judge", {"label": {"samples": 2, "temperature": 0.5, "retries": 1}})
    (verdict,) = judge.judge(BY_ID, answers("2"), Context(model=oracle))
    assert verdict.cost == Cost(4, 4, 4)
    assert oracle.temperatures == [0.5, 0.5, 0.7, 0.7]
    oracle.temperatures.clear()
    list(build("judge", "label").judge(BY_ID, answers("2"), Context(model=oracle)))
    assert oracle.temperatures == [1.0] * 8


def test_a_judge_that_follows_the_place_is_found_out():
    ctx = Context(model=Oracle(lambda text: "I looked at both.\nVerdict: A"))
    verdicts = list(build("judge", "prefer").judge(BY_ID, [*answers("2", "3", "4"), FAILED], ctx))
    assert [v.label for v in verdicts] == ["tie"] * 3
    assert ctx.counts["pairs flipped by their order"] == 3
    assert all(v.probability == 0.5 and v.cost.judge_calls == 2 for v in verdicts)


def test_a_judge_that_looks_at_the_answers_is_believed():
    def reply(text):
        return "Verdict: " + ("A" if "Answer A:\n2" in text else "B" if "Answer B:\n2" in text else "tie")

    ctx = Context(model=Oracle(reply))
    labels = [v.label for v in build("judge", "prefer").judge(BY_ID, answers("2", "3", "4"), ctx)]
    assert labels == ["A", "A", "tie"]
    once = build("judge", {"prefer": {"both_orders": False, "pairing": "neighbours"}})
    assert [v.label for v in once.judge(BY_ID, answers("3", "2", "4"), ctx)] == ["B", "A"]


LABELS = st.sampled_from(["A", "B", *TIES, "unparseable_verdict", "cut_reply"])


@given(LABELS, LABELS, st.none() | st.floats(0, 1), st.none() | st.floats(0, 1))
def test_merging_two_orders_is_symmetric_and_never_invents_a_winner(there, back, p, q):
    first = Verdict("p", ("x", "y"), "j", label=there, probability=p)
    second = Verdict("p", ("y", "x"), "j", label=back, probability=q)
    one, other = merged(first, second, Context()), merged(second, first, Context())
    assert other.completion_ids == ("y", "x")
    if one.label in ("A", "B"):
        assert other.label == {"A": "B", "B": "A"}[one.label]
        assert {there, back} == {"A", "B"}
    elif there not in ("unparseable_verdict", "cut_reply") and back not in ("unparseable_verdict", "cut_reply"):
        assert one.label == other.label
        assert one.label in TIES
    else:
        assert one.label in ("unparseable_verdict", "cut_reply")
    if one.probability is not None:
        assert other.probability == pytest.approx(1 - one.probability)


def test_a_ranking_is_averaged_over_orders_and_must_name_each_once():
    quality = {"2": 3, "3": 2, "44": 1}

    def reply(text):
        shown = [part.split("\n")[1] for part in text.split("Answer ")[1:]]
        order = sorted(range(1, len(shown) + 1), key=lambda i: -quality[shown[i - 1]])
        return json.dumps({"reason": "r", "order": order})

    made = [*answers("3", "2", "44"), FAILED, *answers("alone", prompt=PROMPTS[0])]
    oracle = Oracle(reply)
    verdicts = list(build("judge", "rank").judge(BY_ID, made, Context(model=oracle)))
    assert [v.score for v in verdicts] == [0.5, 1.0, 0.0, None, 1.0]
    assert len(oracle.asked) == 2
    assert sum(v.cost.judge_calls for v in verdicts) == 2
    broken = Context(model=Oracle(lambda text: '{"order": [1, 1, 2]}'))
    assert {v.score for v in build("judge", "rank").judge(BY_ID, answers("3", "2", "44"), broken)} == {None}


def test_pairs_leave_failures_out():
    made = [*answers("a", "b", "c"), FAILED]
    assert [p.ids for p in pairs_of(BY_ID, made)] == [
        (made[0].id, made[1].id),
        (made[0].id, made[2].id),
        (made[1].id, made[2].id),
    ]
    assert len(list(pairs_of(BY_ID, made, "neighbours"))) == 2


def test_wrong_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="temperature 0"):
        build("judge", {"prefer": {"votes": 3}})
    with pytest.raises(ConfigError, match="labels"):
        build("judge", {"label": {"labels": ["Yes", "yes "]}})
    with pytest.raises(ConfigError, match="below high"):
        build("judge", {"score": {"low": 5, "high": 5}})
    with pytest.raises(ConfigError, match="unknown template"):
        build("judge", {"score": {"template": "scoer"}})
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nmessages:\n  - {role: user, content: '{{ first }}'}\n")
    with pytest.raises(ConfigError, match="'first'"):
        build("judge", {"score": {"template": str(mine)}})


def test_another_wording_is_another_key(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("version: 1\nmessages:\n  - {role: user, content: 'Points from 1 to 10 for {{ answer }}?'}\n")
    judge = build("judge", {"score": {"template": str(mine)}})
    assert judge.fingerprint() != build("judge", "score").fingerprint()
    mine.write_text(mine.read_text().replace("Points", "Marks"))
    again = build("judge", {"score": {"template": str(mine)}})
    assert again.fingerprint() != judge.fingerprint()
    assert "Marks" in again.asked_with.messages[0][1]
    assert "Points" in judge.asked_with.messages[0][1]


def test_scripted_biases_have_the_odds_they_say():
    prompt = PROMPTS[0]
    pairs = [
        Pair(prompt, *(Completion(prompt.id, (Turn("assistant", f"{i} {'x' * n}"),), index=n) for n in (0, 100)))
        for i in range(4000)
    ]
    judge = BiasedJudge(lambda p, c: 0.0, position=0.5, length=1.0)
    share = np.mean([v.label == "A" for v in judge.compare(pairs, Context())])
    expected = 1 / (1 + np.exp(0.5))
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
    assert isinstance(judge, PairJudge)
    two = TwoLabelJudge(lambda p, c: c.index == 0, false_positives=0.2, false_negatives=0.1, unparseable=0.05)
    labels = [v.label for v in two.compare(pairs, Context())]
    said = [label for label in labels if label != "unparseable_verdict"]
    for label, chance in (("A", 0.9 * 0.8), ("B", 0.1 * 0.2), ("both_right", 0.9 * 0.2), ("both_wrong", 0.1 * 0.8)):
        assert abs(np.mean([s == label for s in said]) - chance) < 4 * np.sqrt(chance * (1 - chance) / len(said))
    assert abs(labels.count("unparseable_verdict") / 4000 - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 4000)
