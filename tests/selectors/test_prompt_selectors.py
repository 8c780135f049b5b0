import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict
from tamis.registry import build
from tamis.selectors.top_k import top_k


def pool_of(scores, texts=None):
    """`scores[p][j]` is the score of try j of prompt p."""
    prompts = [Prompt((Message("user", f"q{p}"),)) for p in range(len(scores))]
    done, verdicts = [], []
    for p, row in enumerate(scores):
        for j, score in enumerate(row):
            text = texts[p][j] if texts else f"{p}-{j}"
            done.append(Completion(prompts[p].id, (Turn("assistant", text),), index=j, cost=Cost(sampled_tokens=5)))
            verdicts.append(Verdict(prompts[p].id, (done[-1].id,), "j", score, "l"))
    return Pool({p.id: p for p in prompts}, done, verdicts)


def select(spec, pool, ctx=None):
    return build("selector", spec).select(pool, ctx or Context())


def test_first_k():
    pool, ctx = pool_of([[0, 1, 1, 1], [0, 0], [1, None]]), Context()
    found = select({"first_k": {"k": 2}}, pool, ctx)
    assert found.indices.tolist() == [1, 2, 6]
    assert ctx.counts["prompts without an accepted completion"] == 1
    assert select({"first_k": {"k": 1, "threshold": 2}}, pool).reason
    assert select("first_k", pool_of([[0]])).reason


def test_first_k_without_verdicts_accepts_all():
    pool = pool_of([[0, 0], [0]])
    pool.verdicts.clear()
    assert select("first_k", pool).indices.tolist() == [0, 2]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.data())
def test_top_k_equals_sorting(score, data):
    k = data.draw(st.integers(1, len(score)))
    expected = sorted(range(len(score)), key=lambda i: (-score[i], i))[:k]
    assert top_k(np.array(score, dtype=float), k).tolist() == expected


def test_top_k_selector():
    pool, ctx = pool_of([[0.1, 0.9, 0.9], [None, 0.2]]), Context()
    assert select("top_k", pool, ctx).indices.tolist() == [1, 4]
    assert ctx.dropped[0]["label"] == "l"
    assert select({"top_k": {"k": 2, "per": "pool"}}, pool).indices.tolist() in ([1, 2], [2, 1])
    many = select({"top_k": {"k": 9, "per": "pool"}}, pool)
    assert len(many.indices) == 4
    assert many.reason == "9 were asked for, only 4 have a score"
    pool.verdicts.clear()
    with pytest.raises(ConfigError, match="needs scores"):
        select("top_k", pool)


def test_first_accepted_uniform_drops_duplicates_and_tells_who_fell_short():
    pool = pool_of([[1, 1, 0, 1, 1], [0, 1]], [["a", "a", "b", "c", "d"], ["x", "y"]])
    found = select({"first_accepted": {"k": 2}}, pool)
    assert [pool.completions[i].text for i in found.indices] == ["a", "c", "y"]
    assert found.reason == "1 of 2 prompts fell short of their target"
    assert found.notes == {"tries": 7, "correct": 5, "target": 4, "unmet_prompts": 1, "sampled_tokens": 35}
    both = select({"first_accepted": {"k": 2, "dedup": "none"}}, pool)
    assert [pool.completions[i].text for i in both.indices] == ["a", "a", "y"]


def test_first_accepted_prop2diff_takes_targets_from_the_probe():
    # pass rates over 4 probes: 1, 1/2, 0 -> targets of k = 4: 1, 2, 4
    pool = pool_of([[1] * 6, [1, 0, 1, 0, 1, 1], [0, 0, 0, 0] + [1] * 8])
    found = select({"first_accepted": {"policy": "prop2diff", "k": 4, "n_probe": 4}}, pool)
    assert [pool.completions[i].text for i in found.indices] == ["0-0", "1-0", "1-2", "2-4", "2-5", "2-6", "2-7"]
    assert found.notes["target"] == 7
    assert found.reason == ""
