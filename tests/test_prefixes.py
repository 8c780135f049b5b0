import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError, DataError
from tamis.prefixes import (
    DEFAULT_TASK_SENTENCE,
    prefix_consistency,
    rollout_accuracy,
    structure_split,
    suggest_length,
    with_task_sentence,
)
from tamis.records import Completion, Law, Message, Prompt, Turn, Verdict


@given(st.sets(st.text(max_size=5), min_size=1, max_size=40), st.floats(0, 1), st.integers(0, 3))
def test_the_split_has_the_right_size_and_follows_ids_not_order(ids, ratio, seed):
    found = structure_split(sorted(ids), ratio, seed)
    assert found == structure_split(sorted(ids, reverse=True), ratio, seed)
    assert found <= ids
    wanted = math.floor(ratio * len(ids) + 0.5)
    assert len(found) == (max(wanted, 1) if ratio > 0 else 0)


@pytest.mark.parametrize(("n", "ratio", "size"), [(25, 0.1, 3), (24, 0.1, 2), (3, 0.1, 1), (3, 0.0, 0), (5, 0.5, 3)])
def test_the_size_rounds_half_up(n, ratio, size):
    assert len(structure_split(map(str, range(n)), ratio, 0)) == size


def test_the_split_is_uniform_over_seeds():
    ids = [str(k) for k in range(20)]
    counts = dict.fromkeys(ids, 0)
    for seed in range(2000):
        for i in structure_split(ids, 0.1, seed):
            counts[i] += 1
    assert all(150 < n < 250 for n in counts.values())


def test_the_split_refuses_bad_input():
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        structure_split(["a"], 1.5, 0)
    with pytest.raises(DataError, match="more than once"):
        structure_split(["a", "b", "a"], 0.5, 0)
    with pytest.raises(DataError, match="no prompt"):
        structure_split([], 0.5, 0)


def test_the_task_sentence_goes_to_the_last_user_message():
    messages = (Message("system", "s"), Message("user", "one"), Message("assistant", "a"), Message("user", "two"))
    assert with_task_sentence(messages) == (*messages[:3], Message("user", f"two\n{DEFAULT_TASK_SENTENCE}"))
    with pytest.raises(DataError, match="no user message"):
        with_task_sentence([Message("system", "s")])


def test_consistency_of_known_traces():
    traces = [[[1, 2, 3], [1, 2, 4], [1, 5], [6]], [[7], [7], [7], [7]]]
    rows = prefix_consistency(traces)
    assert [row["t"] for row in rows] == [1, 2]
    assert rows[0] == {"t": 1, "distinct": 1.5, "coverage": (2 + 4) / 2, "top_share": (0.75 + 1) / 2}
    assert rows[1] == {"t": 2, "distinct": 2, "coverage": (4 / 3 + 4) / 2, "top_share": (0.5 + 1) / 2}
    assert suggest_length(rows) == 2
    with pytest.raises(DataError, match="at least one trace"):
        prefix_consistency([[[1]], []])
    with pytest.raises(ConfigError, match="at least 1"):
        prefix_consistency([[[1]]], [0])


@given(
    st.lists(
        st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=6), min_size=1, max_size=3
    )
)
def test_coverage_never_rises_with_length(traces):
    rows = prefix_consistency(traces, range(1, 7))
    for before, after in pairwise(rows):
        assert after["coverage"] <= before["coverage"]
        assert after["top_share"] <= before["top_share"]
        assert after["distinct"] >= before["distinct"]


class Letters:
    """A text model over letters (token = code point): it ends in "!" when the text so far holds an error "x", else in ".".

    Its continuation of a prefix of t letters is right exactly when the prefix holds no "x".
    """

    name = identity = "letters"

    @property
    def chat(self):
        return self

    def decode(self, ids):
        return "".join(map(chr, ids))

    def generate(self, prompts, law, *, candidates, seed, sampler="temperature"):
        for asked, wanted in zip(prompts, candidates, strict=True):
            assert asked.messages[-1].role == "assistant"
            end = "!" if "x" in asked.messages[-1].content else "."
            for j in wanted:
                yield Completion(asked.id, (Turn("assistant", "more" + end),), index=j, law=law, sampler=sampler)


def judge(prompts, completions):
    for done in completions:
        assert done.prompt_id in prompts
        assert "more" in done.text
        yield Verdict(done.prompt_id, (done.id,), "letters", None if "?" in done.text else float(done.text[-1] == "."))


def test_rollout_accuracy_finds_where_errors_come():
    asked = Prompt((Message("user", "q"),))
    texts, right = ["aaaa", "aaxa", "abbb"], [True, False, True]
    traces = [
        Completion(asked.id, (Turn("assistant", t),), index=i, token_ids=tuple(map(ord, t)))
        for i, t in enumerate(texts)
    ]
    rows = rollout_accuracy(
        Letters(), [asked], [traces], [right], lambda p, c: list(judge(p, c)), [1, 2, 3, 4], law=Law()
    )
    assert [(r["acc_right"], r["acc_wrong"]) for r in rows] == [(1, 1), (1, 1), (1, 0), (1, 0)]
    assert [r["gap"] for r in rows] == [0, 0, 1, 1]
    assert all(r["unparsed"] == 0 for r in rows)
    assert suggest_length([], rows) == 2
    (only_right,) = rollout_accuracy(Letters(), [asked], [traces[:1]], [[True]], lambda p, c: list(judge(p, c)), [1])
    assert only_right["acc_wrong"] is None
    assert only_right["gap"] is None
    assert suggest_length([], [only_right]) is None


def test_rollout_accuracy_counts_what_has_no_score():
    asked = Prompt((Message("user", "q"),))
    trace = Completion(asked.id, (Turn("assistant", "a?cc"),), token_ids=tuple(map(ord, "a?cc")))
    (row,) = rollout_accuracy(Letters(), [asked], [[trace]], [[True]], lambda p, c: list(judge(p, c)), [2], n=3)
    assert row["acc_right"] == 0
    assert row["unparsed"] == 1
    with pytest.raises(DataError, match="right flags"):
        rollout_accuracy(Letters(), [asked], [[trace]], [[]], judge, [1])
