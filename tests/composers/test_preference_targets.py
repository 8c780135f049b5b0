import pytest

from composers.pools import context, pool_of, prompt, sampled
from tamis.calibration import parse_probability
from tamis.errors import ConfigError, DataError
from tamis.pool import Pool
from tamis.records import Message, Prompt, Verdict
from tamis.registry import build


def row(question="q", answers=("a", "b"), split="train", **metadata):
    return Prompt((Message("user", question),), answers, metadata=metadata, split=split, source="data.jsonl:1")


def compose(prompts, ctx=None, done=(), verdicts=(), **options):
    ctx = ctx or context()
    pool = Pool({p.id: p for p in prompts}, list(done), list(verdicts))
    return list(build("composer", {"preference_targets": options}).compose(pool, ctx)), ctx


def said(examples):
    return [e.target.messages[-1].content for e in examples]


def test_the_share_in_both_orders():
    made, ctx = compose([row(ratings=[1, 1, 0])])
    assert said(made) == ["[P: 0.67]", "[P: 0.33]"]
    first, second = (e.target.messages[0].content for e in made)
    assert first.index("\na\n") < first.index("\nb\n")
    assert second.index("\nb\n") < second.index("\na\n")
    assert made[0].metadata["share"] == pytest.approx(2 / 3)
    trained = [i for i, w in zip(made[0].target.token_ids, made[0].target.weights, strict=True) if w]
    assert ctx.chat.decode(trained).startswith("[P: 0.67]")


@pytest.mark.parametrize("k", range(17))
def test_both_orders_add_up_to_one(k):
    made, _ = compose([row(ratings=[1] * k + [0] * (16 - k))])
    assert sum(parse_probability(text) for text in said(made)) == pytest.approx(1)


def test_majorities_and_verdicts():
    assert said(compose([row(ratings=[1, 1, 0])], targets="majority")[0]) == ["[P: 1.00]", "[P: 0.00]"]
    assert said(compose([row(ratings=[1, 0])], targets="majority")[0]) == ["[P: 0.50]"] * 2
    narrow = row(ratings=[0.504])
    assert said(compose([narrow])[0]) == ["[P: 0.50]"] * 2
    assert said(compose([narrow], targets="majority")[0]) == ["[P: 1.00]", "[P: 0.00]"]
    assert said(compose([row(ratings=[0.4])], targets="verdict")[0]) == ["Verdict: B", "Verdict: A"]
    assert said(compose([row(ratings=["tie"])], targets="verdict")[0]) == ["Verdict: tie"] * 2
    made, _ = compose([row(answers=("good",), rejected="worse")], targets="verdict")
    assert "A correct answer" not in made[0].target.messages[0].content


def test_one_order_is_drawn_at_random():
    prompts = [row(f"q{i}", ratings=[1]) for i in range(200)]
    made, _ = compose(prompts, both_orders=False)
    assert len(made) == 200
    assert 70 < said(made).count("[P: 1.00]") < 130
    assert [e.id for e in compose(prompts[::-1], both_orders=False)[0]] == [e.id for e in made][::-1]


def test_equal_pairs_with_other_ratings_are_kept():
    prompts = [row(ratings=[1], copy=i) for i in range(3)] + [row(ratings=[0], copy=9)]
    assert said(compose(prompts)[0])[::2] == ["[P: 1.00]"] * 3 + ["[P: 0.00]"]


def test_raters_may_be_judges():
    asked = prompt(0, ("gold",))
    a, b = (sampled(asked, text, i) for i, text in enumerate(("one", "two")))
    verdicts = [Verdict(asked.id, (a.id, b.id), "j", label=label) for label in ("A", "A", "tie")]
    (first, _), _ = compose([asked], done=[a, b], verdicts=verdicts)
    assert said([first]) == ["[P: 0.83]"]
    assert set(first.sources) >= {a.id, b.id, verdicts[0].id}
    assert list(build("composer", "preference_targets").compose(pool_of([asked], [a, b], [1.0, 0.0]), context()))


def test_a_pair_that_is_held_out_in_the_other_order_is_refused():
    train, held = row(ratings=[1]), row(answers=("b", "a"), split="heldout", ratings=[0])
    with pytest.raises(DataError, match=r"data.jsonl:1.*also held out"):
        compose([train, held])


def test_what_has_no_rating_is_counted():
    made, ctx = compose([row(), row("other", ratings=[1])])
    assert len(made) == 2
    assert ctx.counts["dropped: no rated pair of answers"] == 1
    with pytest.raises(DataError, match="is empty"):
        compose([row(ratings=[])])
    with pytest.raises(ConfigError, match="unknown template"):
        build("composer", {"preference_targets": {"template": "none"}})
