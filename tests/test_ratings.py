import pytest

from composers.pools import completion, prompt, verdict
from tamis.context import Context
from tamis.errors import DataError
from tamis.ratings import judged_pairs, own_pair
from tamis.records import Message, Prompt, Verdict
from tamis.registry import build


def row(references=("a", "b"), **metadata):
    return Prompt((Message("user", "q"),), references, metadata=metadata, source="data.jsonl:7")


def test_a_row_with_two_rated_answers():
    found = own_pair(row(ratings=[1, 0, 0.5, "A", "tie"]))
    assert found.ratings == (1, 0, 0.5, 1, 0.5)
    assert found.share == pytest.approx(0.6)
    assert (found.pair.first.text, found.pair.second.text) == ("a", "b")
    assert own_pair(row(ratings="B")).ratings == (0.0,)
    assert own_pair(row(votes=0.7), "votes").share == 0.7


def test_a_row_with_chosen_and_rejected():
    found = own_pair(row(("a",), rejected="b"))
    assert (found.pair.first.text, found.pair.second.text, found.ratings) == ("a", "b", (1.0,))
    assert own_pair(row(("a",), rejected="b", ratings=[1, 0])).share == 0.5


def test_no_answer_of_a_pair_is_shown_as_the_correct_one():
    asked = row(ratings=[1])
    found = own_pair(asked).pair
    assert found.prompt.id == asked.id
    assert found.facts()["reference"] == ""


def test_its_completions_are_those_of_gold():
    asked = row(ratings=[1])
    gold = list(build("sampler", {"gold": {"references": "all"}}).sample([asked], Context()))
    assert own_pair(asked).sources == tuple(c.id for c in gold)


@pytest.mark.parametrize(
    "asked", [row(), row(("a",), ratings=[1]), row(("a", "b", "c"), ratings=[1]), row(("a",), rejected=" a"), row(())]
)
def test_rows_without_a_pair(asked):
    assert own_pair(asked) is None


@pytest.mark.parametrize(
    ("given", "says"),
    [([], "empty"), ([2], "2, which is no rating"), (["C"], "'C'"), ([None], "None"), ({}, "no rating")],
)
def test_ratings_that_are_none(given, says):
    with pytest.raises(DataError, match=says) as caught:
        own_pair(row(ratings=given))
    assert "data.jsonl:7" in str(caught.value)


ASKED = prompt(0)
A, B, C = (completion(ASKED, text, i) for i, text in enumerate(("one", "two", "one ")))


def said(*verdicts):
    of = {}
    for v in verdicts:
        for i in v.completion_ids:
            of.setdefault(i, []).append(v)
    return judged_pairs(ASKED, [A, B, C], of)


def compared(first, second, label, probability=None):
    return Verdict(ASKED.id, (first.id, second.id), "j", label=label, probability=probability)


def test_verdicts_are_ratings_of_the_first():
    (found,) = said(compared(A, B, "A"), compared(B, A, "A"), compared(A, B, "both_right"), compared(B, A, "B", 0.2))
    assert sorted(found.ratings) == [0.0, 0.5, 0.8, 1.0]
    assert (found.pair.first, found.pair.second) == (A, B)
    assert len(found.sources) == 6


def test_what_says_nothing_is_no_rating():
    assert said(compared(A, B, "unparseable_verdict"), verdict(A, None), verdict(B, 1.0)) == []
    assert said(compared(A, C, "A")) == [], "equal texts are no pair"


def test_judges_that_scored_both_are_raters():
    (found, other) = said(
        verdict(A, 1.0), verdict(B, 0.0), verdict(A, 0.5, judge="x"), verdict(B, 0.5, judge="x"), verdict(C, 0.0)
    )
    assert sorted(found.ratings) == [0.5, 1.0]
    assert other.ratings == (0.5,)
