import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from tamis.context import Context
from tamis.equations import infix, reasoning_key
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Completion, Message, Prompt, Turn, Verdict
from tamis.registry import build
from tamis.selectors.distinct_reasoning import distinct_reasoning, merge_models, word_levenshtein


def by_the_book(texts, per_prompt=None):
    """The sheet's rule with every distance computed anew."""
    keys, kept = [], []
    for i, y in enumerate(texts):
        key = reasoning_key(y)
        if key not in keys:
            keys.append(key)
            kept.append(i)
            continue
        slot = keys.index(key)
        others = [texts[j] for s, j in enumerate(kept) if s != slot]
        new, old = (sum(Levenshtein.distance(t, r) for r in others) for t in (y, texts[kept[slot]]))
        if new > old:
            kept[slot] = i
    if per_prompt is None or per_prompt >= len(kept):
        return kept
    taken = [0]
    while len(taken) < per_prompt:
        gaps = {
            s: min(Levenshtein.distance(texts[kept[s]], texts[kept[t]]) for t in taken)
            for s in range(len(kept))
            if s not in taken
        }
        taken.append(max(gaps, key=lambda s: (gaps[s], -s)))
    return [kept[s] for s in sorted(taken)]


def test_the_sheets_example():
    texts = ["<<1+2=3>>", "<<2+1=3>>", "<<1 + 2=3>> and more"]
    assert Levenshtein.distance(texts[2], texts[1]) == 13
    assert Levenshtein.distance(texts[0], texts[1]) == 2
    assert distinct_reasoning(texts) == [2, 1]


PIECES = st.sampled_from(["<<1+2=3>>", "<<2+1=3>>", "<<1 +2=3>>", "<<3*4=12>>", "so ", "then we get ", "x", ""])
TEXTS = st.lists(st.lists(PIECES, max_size=4).map("".join), max_size=14)


@settings(max_examples=200)
@given(TEXTS, st.one_of(st.none(), st.integers(1, 5)))
def test_equals_the_rule_by_the_book(texts, per_prompt):
    assert distinct_reasoning(texts, per_prompt=per_prompt) == by_the_book(texts, per_prompt)


def test_order_of_equations_counts_and_no_equation_is_one_path():
    assert len(distinct_reasoning(["<<2+3=5>><<5*4=20>>", "<<5*4=20>><<2+3=5>>"])) == 2
    assert distinct_reasoning(["five", "six", "seven"]) == [0]
    assert distinct_reasoning([]) == []
    assert distinct_reasoning(["1+1=2 a", "2 = 1+1", "1 + 1 = 2"], equations=infix) == [0, 1]


def test_a_distance_can_be_given_and_is_asked_once_a_pair():
    asked = []

    def distance(a, b):
        asked.append((a, b))
        return word_levenshtein(a, b)

    texts = [f"<<{i % 5}+1={i % 5 + 1}>> " + "w " * i for i in range(20)]
    assert len(distinct_reasoning(texts, distance=distance)) == 5
    assert len({frozenset(pair) for pair in asked}) == len(asked) <= 20 * 5
    with pytest.raises(ValueError, match="per_prompt"):
        distinct_reasoning(texts, per_prompt=0)


def completion(prompt, text, index=0, model="m"):
    return Completion(prompt.id, (Turn("assistant", text),), index=index, model=model)


def test_merge_models():
    a, b = (Prompt((Message("user", q),)) for q in "ab")
    of = {
        "x": [completion(a, "1", model="x"), completion(b, "2", model="x")],
        "y": [completion(b, "3", model="y"), completion(a, "4", model="y")],
    }
    assert [c.text for c in merge_models(of, ["x", "y"])] == ["1", "4", "2", "3"]
    assert [c.text for c in merge_models(of, ["y", "x"])] == ["3", "2", "4", "1"]
    with pytest.raises(ValueError, match="'x' is named twice"):
        merge_models(of, ["x", "x", "y"])
    with pytest.raises(ValueError, match="the order names"):
        merge_models(of, ["x"])


def judged(completions, prompts, scores):
    verdicts = [Verdict(c.prompt_id, (c.id,), "j", s) for c, s in zip(completions, scores, strict=True)]
    return Pool({p.id: p for p in prompts}, completions, verdicts)


def test_selector_counts_what_it_leaves_out():
    prompts = [Prompt((Message("user", q),)) for q in ("a", "b", "c")]
    texts = ["<<1+2=3>>", "<<1+2=4>>", "<<2+1=3>>", "<<1+2=3>> again"]
    done = [completion(prompts[0], t, i) for i, t in enumerate(texts)] + [completion(prompts[1], "no", 0)]
    pool = judged(done, prompts, [1.0, 1.0, 1.0, 1.0, 0.0])
    ctx = Context()
    found = build("selector", "distinct_reasoning").select(pool, ctx)
    assert found.indices.tolist() == [3, 2]
    assert ctx.counts == {
        "dropped: states a false equation": 1,
        "same reasoning as a kept one": 1,
        "prompts without an accepted path": 1,
    }
    assert ctx.dropped[0]["record"] == done[1].id
    assert found.notes["paths_per_prompt"] == 1.0
    unchecked = build("selector", {"distinct_reasoning": {"check_arithmetic": False}}).select(pool, Context())
    assert len(unchecked.indices) == 3
    ctx = Context()
    capped = build("selector", {"distinct_reasoning": {"per_prompt": 1}}).select(pool, ctx)
    assert capped.indices.tolist() == [3]
    assert (ctx.counts["same reasoning as a kept one"], ctx.counts["over per_prompt"]) == (1, 1)


def test_an_accepted_empty_completion_is_written_aside():
    prompt = Prompt((Message("user", "a"),))
    empty = completion(prompt, " ", 0)
    ctx = Context()
    found = build("selector", "distinct_reasoning").select(judged([empty], [prompt], [1.0]), ctx)
    assert not len(found.indices)
    assert ctx.dropped == [{"record": empty.id, "reason": "empty response"}]


def test_selector_over_a_union_of_models():
    prompt = Prompt((Message("user", "a"),))
    done = [completion(prompt, "<<1+2=3>> b", model="y"), completion(prompt, "<<1+2=3>> a", model="x")]
    pool = judged(done, [prompt], [1.0, 1.0])
    first = build("selector", {"distinct_reasoning": {"models": ["x", "y"]}}).select(pool, Context())
    assert first.indices.tolist() == [1]  # a tie keeps the first of the model order
    with pytest.raises(ConfigError, match="which `models` does not name"):
        build("selector", {"distinct_reasoning": {"models": ["x"]}}).select(pool, Context())
    for wrong in ({"models": ["x", "x"]}, {"per_prompt": 0}, {"distance": "cosine"}):
        with pytest.raises(ConfigError):
            build("selector", {"distinct_reasoning": wrong})


def test_selector_modulo():
    prompt = Prompt((Message("user", "5+1+2="),))
    done = [completion(prompt, "5+1=0,0+2=2,#2", 0), completion(prompt, "5+1=0,0+2=3,#2", 1)]
    options = {"distinct_reasoning": {"modulus": 6, "finder": "infix"}}
    found = build("selector", options).select(judged(done, [prompt], [1.0, 1.0]), Context())
    assert found.indices.tolist() == [0]
