"""The judge `pair_verdicts` and the data it is trained on."""

import pytest

from composers.pools import context, pool_of, prompt, sampled
from oracle import Oracle
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.pair_verdicts import LABELS, two_verdicts, verdict_line
from tamis.judges.pairs import Pair
from tamis.registry import build


def truthful(text):
    """A comparison by the truth: "good" solutions are right."""
    a, b = (part.split("\n\n")[0] for part in text.split("Solution A:\n")[1].split("Solution B:\n"))
    return "I checked both.\n" + verdict_line("good" in a, "good" in b)


@pytest.mark.parametrize("said", list(LABELS))
def test_the_verdict_line_is_read_back(said):
    line = verdict_line(*said)
    for text in (line, f"A is wrong... no.\n**{line}**", f"{line}.", line.upper(), line.replace("right", "correct")):
        assert two_verdicts(text) == said


@pytest.mark.parametrize(
    "text", ["", "Verdict: A", "Verdict: A right", "Verdict: A right, B right or wrong", "A is right"]
)
def test_anything_else_is_no_verdict(text):
    assert two_verdicts(text) is None


ASKED = prompt(0, ("good",))
DONE = [sampled(ASKED, text, i) for i, text in enumerate(("good 1", "bad 1", "bad 2", "good 2"))]


def test_each_of_two_is_labelled_by_itself():
    ctx = Context(model=Oracle(truthful))
    verdicts = list(build("judge", "pair_verdicts").judge({ASKED.id: ASKED}, DONE, ctx))
    by_id = {c.id: c.text for c in DONE}
    for verdict in verdicts:
        right = tuple("good" in by_id[i] for i in verdict.completion_ids)
        assert verdict.label == LABELS[right]
        assert verdict.score is None
        assert verdict.cost.judge_calls == 1
    assert len(verdicts) == 6
    assert {"both_right", "both_wrong"} < {v.label for v in verdicts}


def test_slots_are_random_in_a_stage_and_as_given_otherwise():
    many = [sampled(ASKED, f"text {i}", i) for i in range(25)]
    at = {c.id: i for i, c in enumerate(many)}
    judge, ctx = build("judge", "pair_verdicts"), Context(model=Oracle(lambda text: verdict_line(True, False)))
    shown = [tuple(at[i] for i in v.completion_ids) for v in judge.judge({ASKED.id: ASKED}, many, ctx)]
    assert 110 < sum(a < b for a, b in shown) < 190
    pair = Pair(ASKED, many[1], many[0])
    (verdict,) = judge.compare([pair], ctx)
    assert (verdict.completion_ids, verdict.label) == (pair.ids, "A")


def test_a_malformed_reply_is_asked_for_again_and_then_a_fault():
    ctx = Context(model=Oracle(lambda text: "both are fine"))
    (verdict,) = build("judge", "pair_verdicts").compare([Pair(ASKED, *DONE[:2])], ctx)
    assert (verdict.label, verdict.cost.judge_calls) == ("unparseable_verdict", 2)


POOL = pool_of([ASKED], DONE, [1.0, 0.0, 0.0, 1.0])


def compose(ctx, pool=POOL, **options):
    return list(build("composer", {"pair_verdict_data": options}).compose(pool, ctx))


def test_pairs_are_taught_in_both_orders_with_true_verdicts():
    ctx = context()
    ctx.model = Oracle(truthful)
    made = compose(ctx)
    assert len(made) == 2 * (4 + 2)
    for example in made:
        question, answer = (m.content for m in example.target.messages)
        assert two_verdicts(answer) == tuple(example.metadata["right"]) == two_verdicts(truthful(question))
        assert "I checked both." in answer
    for there, back in zip(made[::2], made[1::2], strict=True):
        assert there.metadata["right"] == back.metadata["right"][::-1]
        assert there.sources == back.sources
    assert [e.id for e in compose(ctx)] == [e.id for e in made]
    assert sum(e.metadata["right"] == [True, False] for e in made) == 4


def test_only_the_comparison_is_trained():
    ctx = context()
    (first, *_) = compose(ctx, reasoning=False)
    trained = [i for i, w in zip(first.target.token_ids, first.target.weights, strict=True) if w]
    said = ctx.chat.decode(trained)
    assert said.startswith("Verdict: A ")
    assert "Problem" not in said


def test_a_pair_whose_comparison_is_wrong_in_one_order_is_left_out():
    ctx = context()
    ctx.model = Oracle(lambda text: verdict_line(True, False))
    assert compose(ctx, alike=0) == []
    assert ctx.counts["dropped: a comparison contradicts what is known"] == 4
    ctx = context()
    ctx.model = Oracle(lambda text: "both are fine")
    assert compose(ctx, alike=0) == []
    assert ctx.counts["dropped: a comparison has no verdicts that can be read"] == 4


def test_limits_and_refusals():
    assert len(compose(context(), reasoning=False, mixed=1, alike=0)) == 2
    assert len(compose(context(), reasoning=False, mixed=0, alike=9)) == 4
    with pytest.raises(ConfigError, match="no pair"):
        build("composer", {"pair_verdict_data": {"mixed": 0, "alike": 0}})
    with pytest.raises(ConfigError, match="known to be right or wrong"):
        compose(context(), pool_of([ASKED], DONE))
    ctx = context()
    compose(ctx, pool_of([ASKED], DONE, [1.0, 0.0, None, 1.0]), reasoning=False)
    assert ctx.counts["dropped: no score"] == 1
