"""Rubrics: what the model is shown and when, what is kept, when learning stops, and files."""

import json
import re

import numpy as np
import pytest

from oracle import Oracle
from tamis.asking import template
from tamis.checks.c026_auto_rubric import FacetModel, World, criterion
from tamis.context import Context
from tamis.errors import ConfigError, DataError
from tamis.judges.pairs import Pair
from tamis.preferences import Preference
from tamis.records import Completion, Law, Message, Prompt, Turn
from tamis.rubrics import Rubric, Theme, analyse, clustered, learn, propose_evaluate_revise, read, structure

LAW = Law(temperature=1.0, max_new_tokens=64)
WORDING = template("rubric_prefer")


def kind(text):
    for name, mark in (("judge", "Rubric:"), ("revise", "that failed:"), ("structure", "at most 5 themes")):
        if mark in text:
            return name
    return "propose"


def preference(number=0, better=0, critiques=()):
    prompt = Prompt((Message("user", f"request {number}"),))
    texts = ("good", "bad") if better == 0 else ("bad", "good")
    first, second = (Completion(prompt.id, (Turn("assistant", f"{t} {number}"),), index=i) for i, t in enumerate(texts))
    return Preference(Pair(prompt, first, second), better, critiques, f"file:{number}")


def proposing(text, criterion="A good answer is good."):
    return json.dumps({"criteria": [criterion]})


def truthful(text):
    return "Verdict: " + ("A" if "Answer A:\ngood" in text else "B")


def by_kind(**replies):
    return Oracle(lambda text: replies[kind(text)](text))


def stage_one(model, preferences, **options):
    ctx = Context(seed=3, model=model)
    return propose_evaluate_revise(ctx, preferences, LAW, WORDING, **options), ctx


def test_the_judge_of_criteria_never_sees_label_or_critiques():
    model = by_kind(propose=proposing, judge=truthful)
    pairs = [preference(i, i % 2, ("SECRET remark",)) for i in range(20)]
    found, ctx = stage_one(model, pairs)
    assert all(r.valid and r.epoch == 1 and r.criteria == ("A good answer is good.",) for r in found)
    assert [r.pair_id for r in found] == [p.pair.prompt.id for p in pairs]
    judged = [text for text in model.asked if kind(text) == "judge"]
    assert not any("SECRET" in text or "better one" in text for text in judged)
    proposed = [text for text in model.asked if kind(text) == "propose"]
    assert all("- SECRET remark" in text for text in proposed)
    for text in proposed:
        better = "A" if "Answer A:\ngood" in text else "B"
        assert f"answer {better} is the better one" in text
    for texts in (judged, proposed):
        assert 3 < sum("Answer A:\ngood" in text for text in texts) < 17
    assert ctx.counts["pairs with a valid criterion"] == 20


@pytest.mark.parametrize("verdict", ["Verdict: tie", "no idea", "", "Verdict: A"])
def test_ties_unreadable_replies_and_a_fixed_slot_are_no_success(verdict):
    model = by_kind(propose=proposing, revise=proposing, judge=lambda text: verdict)
    found, ctx = stage_one(model, [preference(i) for i in range(12)], max_epochs=2)
    valid = [r.valid for r in found]
    if verdict == "Verdict: A":
        assert 0 < sum(valid) < 12
    else:
        assert not any(valid)
        assert ctx.counts["dropped: no valid criterion was found"] == 12
        assert ctx.dropped[0]["record"] == "file:0"


def test_what_failed_is_shown_when_it_is_revised_and_rounds_are_limited():
    tries = iter(f"Criterion number {i} is here." for i in range(100))
    model = by_kind(
        propose=lambda t: proposing(t, next(tries)),
        revise=lambda t: proposing(t, next(tries)),
        judge=lambda t: truthful(t) if "number 3" in t else "Verdict: tie",
    )
    (found,), _ = stage_one(model, [preference()])
    assert (found.valid, found.epoch, found.criteria) == (True, 4, ("Criterion number 3 is here.",))
    last = [t for t in model.asked if kind(t) == "revise"][-1]
    assert all(f"- Criterion number {i} is here." in last for i in range(3))
    model.asked.clear()
    (found,), _ = stage_one(model, [preference(7)], max_epochs=3)
    assert (found.valid, found.epoch) == (False, 3)
    assert [kind(t) for t in model.asked] == ["propose", "judge", "revise", "judge", "revise", "judge"]


def test_empty_and_short_criteria_are_asked_for_again_and_then_the_pair_is_dropped():
    for reply in ("", '{"criteria": []}', '{"criteria": ["too short"]}'):
        model = by_kind(propose=lambda text, reply=reply: reply)
        (found,), ctx = stage_one(model, [preference()])
        assert (found.valid, found.epoch, len(model.asked)) == (False, 0, 6)
        assert ctx.counts["dropped: no criterion was written"] == 1


def test_at_most_m_criteria():
    many = json.dumps({"criteria": [f"A good answer has point {i}." for i in range(5)]})
    model = by_kind(propose=lambda text: many, judge=truthful)
    (found,), _ = stage_one(model, [preference()], m=3)
    assert len(found.criteria) == 3


def embed(texts):
    """Texts with the same first digits lie in the same direction."""
    axes = [int(re.search(r"\d+", text)[0]) for text in texts]
    return np.eye(64, dtype=np.float32)[axes]


def learned(model, n=40, **options):
    ctx = Context(seed=1, model=model, embed=embed)
    return learn(ctx, [preference(i) for i in range(n)], LAW, WORDING, **options), ctx


def point(text, modulus):
    number = int(re.search(r"request (\d+)", text)[1])
    return proposing(text, f"A good answer has point {number % modulus} of pair {number}.")


def grouped(text):
    themes = [{"statement": "Be good in general.", "tips": ["one", "two"], "sources": [1, 2, 99, 0, 2]}]
    return json.dumps({"themes": [*themes, {"statement": "Made up.", "tips": [], "sources": [77]}]})


def test_the_core_set_has_one_criterion_of_each_kind_and_themes_cite_them():
    model = by_kind(propose=lambda t: point(t, 8), judge=truthful, structure=grouped)
    rubric, ctx = learned(model)
    assert len(rubric.criteria) == 8
    assert rubric.stopped == "2 batches in a row added nothing new"
    assert len(rubric.pairs) == 8
    assert rubric.themes == (Theme("Be good in general.", ("one", "two"), (0, 1)),)
    assert ctx.counts["criteria that no theme names"] == 6
    assert sum(kind(t) == "propose" for t in model.asked) == 30
    asked = len(model.asked)
    again = learn(ctx, [preference(i) for i in range(40)], LAW, WORDING)
    assert again == rubric
    assert len(model.asked) == asked


def test_why_learning_stops():
    fresh = by_kind(propose=lambda t: point(t, 64), judge=truthful, structure=grouped)
    assert learned(fresh)[0].stopped == "all pairs were seen"
    assert learned(fresh, k=15)[0].stopped == "the core set has 15 criteria"
    assert learned(fresh, max_rounds=2)[0].stopped == "2 batches were seen"
    poor = by_kind(
        propose=lambda t: point(t, 64),
        revise=lambda t: point(t, 64),
        judge=lambda t: truthful(t) if re.search(r"request \d*[05]\n", t) else "Verdict: tie",
        structure=grouped,
    )
    rubric, _ = learned(poor)
    assert rubric.stopped == "only 20% of the pairs of batch 1 gave a valid criterion"
    assert len(rubric.criteria) == 2
    never = by_kind(propose=proposing, revise=proposing, judge=lambda t: "Verdict: tie")
    with pytest.raises(DataError, match="no criterion was learned"):
        learned(never)
    with pytest.raises(ConfigError, match="embedder"):
        learn(Context(model=fresh), [preference()], LAW, WORDING)


def test_without_a_readable_reply_themes_are_clusters():
    criteria = [f"Point {i // 4}, said in way {i}." for i in range(12)]
    x = np.eye(3)[np.arange(12) // 4] + 0.01 * np.random.default_rng(0).normal(size=(12, 3))
    ctx = Context(model=Oracle(lambda text: "no JSON"))
    themes = structure(ctx, criteria, x, LAW, max_themes=3, max_tips=2)
    assert ctx.counts["rubrics grouped by k-means, for want of a readable reply"] == 1
    assert sorted(t.sources for t in themes) == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)]
    for theme in themes:
        members = [criteria[i] for i in theme.sources]
        assert theme.statement in members
        assert len(theme.tips) == 2
        assert {theme.statement, *theme.tips} <= set(members)
    assert len(clustered(["same"] * 3, np.ones((3, 2)), 5, 5, np.random.default_rng(0))) == 1
    with pytest.raises(ValueError, match="no criterion"):
        structure(ctx, [], np.zeros((0, 2)), LAW)


def test_only_as_many_themes_and_tips_as_asked():
    many = {"themes": [{"statement": f"T{i}", "tips": list("abcdefgh"), "sources": [1]} for i in range(9)]}
    ctx = Context(model=Oracle(lambda text: json.dumps(many)))
    themes = structure(ctx, ["A criterion."], np.ones((1, 2)), LAW)
    assert [len(t.tips) for t in themes] == [5] * 5


def test_analysis_of_themes():
    pairs = [preference(i, i % 2) for i in range(10)]
    themes = [Theme("all"), Theme("half"), Theme("wrong")]

    def judge(some, preferences):
        said = []
        for i, p in enumerate(preferences):
            right, wrong = "AB"[p.better], "BA"[p.better]
            votes = [right] * any(t.statement == "all" for t in some)
            votes += [right] * (any(t.statement == "half" for t in some) and i < 5)
            votes += [wrong] * any(t.statement == "wrong" for t in some)
            said.append(max(votes, key=votes.count) if votes.count(right) != votes.count(wrong) else "tie")
        return said

    accuracy, rows = analyse(themes, pairs, judge)
    assert accuracy == 0.5
    assert [(r.coverage, r.precision, r.contribution) for r in rows] == [
        (1.0, 1.0, 0.5),
        (0.5, 1.0, 0.5),
        (1.0, 0.0, -0.5),
    ]
    assert analyse(themes[:1], pairs, judge)[1][0].contribution == 1.0
    silent = analyse(themes[:1], pairs, lambda some, given: ["tie"] * len(given))
    assert (silent[0], silent[1][0].precision) == (0.0, None)
    with pytest.raises(DataError, match="held-out"):
        analyse(themes, [], judge)


def test_rubrics_are_written_and_read_back(tmp_path):
    rubric = Rubric(
        (Theme("Be true.", ("Check: sums.", "ü"), (0, 2)), Theme("Be short.")), ("a", "b"), ("p", "q"), "why"
    )
    rubric.write(tmp_path / "rubric.yaml")
    assert read(tmp_path / "rubric.yaml") == rubric
    assert rubric.text == "1. Be true.\n   - Check: sums.\n   - ü\n2. Be short."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no list of themes"),
        ("themes: []", "no list of themes"),
        ("themes: [{tips: [a]}]", r"themes\[0\] has no statement"),
        ("themes: [{statement: a, tips: b}]", r"themes\[0\].tips"),
        ("themes: [{statement: a, sources: [b]}]", r"themes\[0\].sources"),
        ("themes: [{statement: a}]\nthemen: 1", "no field 'themen'"),
        ("themes: [{statement: a}]\ncriteria: 5", "criteria is not a list"),
    ],
)
def test_what_is_no_rubric_is_refused(tmp_path, text, says):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        read(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.yaml")


def test_a_pair_has_exactly_one_better_answer():
    with pytest.raises(DataError, match="exactly one preferred answer"):
        Preference(preference().pair, 2)


def test_the_scripted_world_keeps_criteria_that_find_the_better_answer():
    world = World(7)
    ctx = Context(7, FacetModel())
    found = propose_evaluate_revise(ctx, world.preferences[:20], LAW, WORDING)
    for rubric, given in zip(found, world.preferences, strict=False):
        levels = [np.array(c.text.removeprefix("Facets: ").split(), int) for c in (given.pair.first, given.pair.second)]
        ahead = (levels[0] - levels[1]) * (1 if given.better == 0 else -1)
        facet, more = re.search(r"(\d+)", rubric.criteria[0])[0], "more" in rubric.criteria[0]
        assert rubric.valid == (ahead[int(facet)] * (1 if more else -1) > 0)
        assert rubric.criteria[0] == criterion(int(facet), 1 if more else -1)
