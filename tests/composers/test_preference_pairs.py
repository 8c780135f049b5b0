import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from composers.pools import completion, context, pool_of, prompt, sampled
from tamis import registry
from tamis.composers.preference_pairs import PreferencePairs, pick, vote_margins
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Example, Verdict, from_table, to_table
from tokenizers_made import chat


def compose(pool, ctx=None, **options):
    ctx = ctx or context()
    return list(PreferencePairs(**options).compose(pool, ctx)), ctx


def pairs(examples):
    return [(e.target.messages[-1].content, e.rejected.messages[-1].content, e.margin) for e in examples]


def scored(texts_and_scores):
    asked = prompt(1)
    done = [sampled(asked, text, i) for i, (text, _) in enumerate(texts_and_scores)]
    return pool_of([asked], done, [s for _, s in texts_and_scores])


def test_best_against_worst():
    pool = scored([("mid", 0.5), ("best", 1.0), ("worst", 0.25), ("none", None)])
    examples, ctx = compose(pool)
    assert pairs(examples) == [("best", "worst", 0.75)]
    assert ctx.counts["completions without a score"] == 1
    (example,) = examples
    assert len(example.sources) == 4
    made = chat("chatml")
    assert made.trained_text(example.target)[-1] == ("best<|im_end|>", True)
    assert made.trained_text(example.rejected)[-1] == ("worst<|im_end|>", True)
    assert from_table(to_table(examples, Example), Example) == examples


def test_all_pairs_and_margins():
    pool = scored([("a", 0.0), ("b", 1.0), ("c", 0.25)])
    assert pairs(compose(pool, pairing="all")[0]) == [("b", "a", 1.0), ("b", "c", 0.75), ("c", "a", 0.25)]
    examples, ctx = compose(pool, pairing="all", min_margin=0.5)
    assert pairs(examples) == [("b", "a", 1.0), ("b", "c", 0.75)]
    assert ctx.counts["pairs below min_margin"] == 1
    assert pairs(compose(pool, pairing="all", max_pairs=1)[0]) == [("b", "a", 1.0)]
    assert pairs(compose(pool, pairing="all", threshold=0.5)[0]) == [("b", "a", 1.0), ("b", "c", 0.75)]


def test_best_worst_takes_no_text_twice():
    pool = scored([("a", 1.0), ("b", 0.0), ("c", 0.75), ("d", 0.5)])
    assert pairs(compose(pool, max_pairs=5)[0]) == [("a", "b", 1.0), ("c", "d", 0.25)]


def test_ties_and_equal_texts_make_no_pair():
    examples, ctx = compose(scored([("a", 1.0), ("b", 1.0)]))
    assert examples == []
    assert ctx.counts["ties"] == 1
    assert ctx.counts["prompts without a pair"] == 1
    assert compose(scored([("same", 1.0), ("same", 0.0)]), pairing="all")[0] == []
    doubled = scored([("a", 1.0), ("a", 1.0), ("b", 0.0), ("b", 0.0)])
    assert pairs(compose(doubled, pairing="all")[0]) == [("a", "b", 1.0)]


def test_random_pairs_depend_on_seed_and_prompt_only():
    pool = scored([(f"text {k}", k / 10) for k in range(6)])
    drawn = [pairs(compose(pool, context(seed=s), pairing="random", max_pairs=3)[0]) for s in (0, 0, 1, 2)]
    assert drawn[0] == drawn[1]
    assert len({tuple(d) for d in drawn}) == 3
    assert all(len(d) == 3 and all(margin > 0 for *_, margin in d) for d in drawn)
    with pytest.raises(ConfigError, match="max_pairs"):
        registry.build("composer", {"preference_pairs": {"pairing": "random"}})


def pairwise(asked, first, second, label):
    return Verdict(asked.id, (first.id, second.id), "pairwise", label=label)


def test_pairwise_verdicts_are_votes():
    asked = prompt(1)
    a, b, c = done = [sampled(asked, t, i) for i, t in enumerate("abc")]
    votes = [
        pairwise(asked, a, b, "A"),
        pairwise(asked, b, a, "B"),
        pairwise(asked, b, c, "A"),
        pairwise(asked, c, b, "tie"),
        pairwise(asked, a, c, "A"),
        pairwise(asked, c, a, "A"),
        pairwise(asked, a, c, "unparseable_verdict"),
    ]
    pool = Pool({asked.id: asked}, done, votes)
    examples, ctx = compose(pool, pairing="all")
    assert pairs(examples) == [("a", "b", 1.0), ("b", "c", 0.5)]
    assert ctx.counts["ties"] == 1
    assert ctx.counts["pairwise verdicts without a preference"] == 1
    assert examples[0].sources == (a.id, b.id, votes[0].id, votes[1].id)
    assert pairs(compose(pool)[0]) == [("a", "b", 1.0)]


def test_cut_completions_and_heldout_prompts():
    asked, held = prompt(1), prompt(2, split="heldout")
    done = [sampled(asked, "good", 0), sampled(asked, "cut", 1, ended=False)]
    secret = [completion(held, "x", 0), completion(held, "y", 1)]
    pool = pool_of([asked, held], done + secret, [1.0, 0.0, 1.0, 0.0])
    none, ctx = compose(pool)
    assert none == []
    assert ctx.counts["dropped: cut at the length limit"] == 1
    ((example,), _) = compose(pool, truncated="prefix")
    assert example.target.ended
    assert not example.rejected.ended


def test_weights_and_repeats_of_a_selector():
    pool = scored([("a", 1.0), ("b", 0.0)]).take([0, 0, 1], np.array([3.0, 3.0, 1.0]))
    examples, _ = compose(pool, pairing="all")
    assert [e.weight for e in examples] == [2.0]


def test_no_verdicts_and_no_completions():
    asked = prompt(1)
    assert compose(pool_of([], []))[0] == []
    assert compose(pool_of([asked], []))[0] == []
    with pytest.raises(ConfigError, match="no verdict"):
        compose(pool_of([asked], [completion(asked, "a")]))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abcd")), max_size=7),
    st.sampled_from(["best_worst", "all", "random"]),
    st.one_of(st.none(), st.integers(1, 4)),
    st.integers(0, 5),
)
def test_pick_against_enumeration(rows, pairing, limit, seed):
    scores, texts = np.array([float(s) for s, _ in rows]), [t for _, t in rows]
    margins = scores[:, None] - scores[None, :] if rows else np.zeros((0, 0))
    found = pick(margins, texts, pairing, limit, np.random.default_rng(seed))
    allowed = {
        (texts[a], texts[b])
        for a in range(len(rows))
        for b in range(len(rows))
        if scores[a] > scores[b] and texts[a] != texts[b]
    }
    named = [(texts[a], texts[b]) for a, b in found]
    assert set(named) <= allowed
    assert len(named) == len(set(named))
    assert all(scores[a] > scores[b] for a, b in found)
    size = 1 if pairing == "best_worst" and limit is None else limit
    if pairing != "best_worst":
        assert len(named) == min(len(allowed), limit or len(allowed))
    else:
        assert len(named) <= size
        assert len({t for pair in named for t in pair}) == 2 * len(named)
    if allowed and pairing != "random":
        widest = max(scores[a] - scores[b] for a in range(len(rows)) for b in range(len(rows)) if texts[a] != texts[b])
        assert scores[found[0][0]] - scores[found[0][1]] == widest


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from(["A", "B", "tie", "?"])), max_size=20))
def test_vote_margins_against_counting(rows):
    ids = ["w", "x", "y", "z"]
    rows = [(a, b, label) for a, b, label in rows if a != b]
    margins = vote_margins(ids, [Verdict("p", (ids[a], ids[b]), "j", label=lab) for a, b, lab in rows], context())
    for i in range(4):
        for j in range(4):
            won = sum((a, b, lab) in ((i, j, "A"), (j, i, "B")) for a, b, lab in rows)
            lost = sum((a, b, lab) in ((i, j, "B"), (j, i, "A")) for a, b, lab in rows)
            votes = sum({a, b} == {i, j} and lab != "?" for a, b, lab in rows)
            assert margins[i, j] == ((won - lost) / votes if votes else 0)
