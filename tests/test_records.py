import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis import hashing
from tamis.records import (
    Completion,
    Cost,
    Example,
    Law,
    Message,
    Prompt,
    Target,
    Turn,
    Verdict,
    from_table,
    to_table,
    total_cost,
)

text = st.text(max_size=20)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text), max_size=3).map(tuple)
ids = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
floats = st.lists(st.floats(-50, 0, width=32), max_size=5).map(tuple)
targets = st.builds(Target, messages, st.booleans(), ids, ids, floats)
prompts = st.builds(
    Prompt, messages, st.lists(text, max_size=2).map(tuple), text, st.dictionaries(text, json_value, max_size=2)
)
completions = st.builds(
    Completion,
    prompt_id=text,
    turns=st.lists(st.builds(Turn, text, text, st.sampled_from(["model", "world"])), max_size=2).map(tuple),
    index=st.integers(0, 9),
    token_ids=ids,
    logprobs=floats,
    raw_logprobs=floats,
    law=st.builds(Law, st.floats(0, 2), st.floats(0, 1), st.integers(0, 9), stop=st.lists(text, max_size=2).map(tuple)),
    seed=st.integers(0, 2**62),
    cost=st.builds(Cost, st.integers(0, 9), st.integers(0, 9)),
)
verdicts = st.builds(
    Verdict, text, st.lists(text, min_size=1, max_size=2).map(tuple), text, st.none() | st.floats(0, 1), text
)
examples = st.builds(
    Example,
    kind=st.sampled_from(["sft", "preference", "rollout", "distill"]),
    prompt_id=text,
    target=targets,
    rejected=st.none() | targets,
    margin=st.none() | st.floats(0, 1),
    teacher_ids=st.lists(ids, max_size=2).map(tuple),
    teacher_logprobs=st.lists(floats, max_size=2).map(tuple),
    metadata=st.dictionaries(text, json_value, max_size=2),
)


@given(st.lists(prompts | completions | verdicts | examples, max_size=4))
def test_arrow_round_trip_gives_the_same_records(records):
    for kind in (Prompt, Completion, Verdict, Example):
        own = [r for r in records if isinstance(r, kind)]
        table = to_table(own, kind)
        assert table.schema == kind.schema
        assert from_table(table, kind) == own


def test_an_empty_table_has_the_full_schema():
    assert to_table([], Example).schema == Example.schema


def test_ids_are_content_hashes():
    one = Prompt(messages=(Message("user", "hi"),), source="a:1", split="train")
    same = Prompt(messages=(Message("user", "hi"),), source="b:7", split="heldout")
    other = Prompt(messages=(Message("user", "ho"),))
    assert one.id == same.id != other.id
    first = Completion(prompt_id=one.id, turns=(Turn("assistant", "x"),), index=0)
    second = Completion(prompt_id=one.id, turns=(Turn("assistant", "x"),), index=1)
    assert first.id != second.id


def test_ids_are_the_same_in_another_process():
    code = "from tamis.records import *; print(Prompt(messages=(Message('user', 'hé'),), metadata={'b': 1, 'a': [2.5]}).id)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": str(seed)}
        ).stdout.strip()
        for seed in (1, 2)
    }
    assert found == {Prompt(messages=(Message("user", "hé"),), metadata={"a": [2.5], "b": 1}).id}


def test_costs_add():
    total = total_cost(
        [Prompt(messages=(), cost=Cost(1, 2, 3, 4, 0.5)), Prompt(messages=(), cost=Cost(1, 1, 1, 1, 0.5))]
    )
    assert total == Cost(2, 3, 4, 5, 1.0)


def test_records_are_frozen():
    with pytest.raises(AttributeError):
        Prompt(messages=()).task = "x"  # type: ignore[misc]


@given(json_value)
def test_canonical_json_does_not_depend_on_key_order(value):
    wrapped = {"a": value, "b": 1}
    assert hashing.digest(wrapped) == hashing.digest(dict(reversed(wrapped.items())))


def test_digest_knows_numpy_and_refuses_what_has_no_content():
    assert hashing.digest(np.int64(3), np.arange(2)) == hashing.digest(3, [0, 1])
    with pytest.raises(TypeError, match="canonical"):
        hashing.digest(object())


def test_derived_generators_are_independent_of_order():
    draws = [hashing.rng(0, i).random() for i in range(4)]
    assert [hashing.rng(0, i).random() for i in reversed(range(4))] == draws[::-1]
    assert len(set(draws)) == 4


def test_schemas_hold_arrow_types_only():
    assert all(isinstance(f.type, pa.DataType) for kind in (Prompt, Completion, Verdict, Example) for f in kind.schema)
