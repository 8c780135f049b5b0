"""What makes the sampling engine fast and bounded: spans, auto batch, halving when memory runs out, events."""

import bisect
import itertools
import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ModelError
from tamis.generation import engine, memory
from tamis.generation.forward import Forward
from tamis.generation.rows import Row, Rows
from tamis.records import Law
from test_generation import CONFIGS, drawn, greedy_reference, requests_for, tiny, uneven

SPANNED = ("llama", "qwen2", "gpt2", "deepseek")


@pytest.fixture
def short_spans(monkeypatch):
    monkeypatch.setattr(engine, "span_rows", lambda device: 2)


def out_of_memory_above(monkeypatch, rows: int, after: int = 0):
    """Make a step of more than `rows` rows fail as the CPU allocator does, from step number `after` on."""
    step, steps = Forward.step, []

    def failing(self, tokens, *rest):
        steps.append(len(tokens))
        if len(tokens) > rows and len(steps) > after:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.")
        return step(self, tokens, *rest)

    monkeypatch.setattr(Forward, "step", failing)
    return steps


# --- spans


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "bloom", "deepseek"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attending_by_spans_equals_transformers_generate(kind, attention, short_spans):
    module = tiny(kind)
    if attention == "eager" or kind != "bloom":
        module.set_attn_implementation(attention)
    before = module.config._attn_implementation
    prompts = uneven(14, seed=3)
    out = drawn(module, requests_for(prompts), Law(temperature=0), batch_rows=7)
    assert [out[i, 0].token_ids for i in range(14)] == [greedy_reference(module, p, 12) for p in prompts]
    assert module.config._attn_implementation == before


@pytest.mark.parametrize("kind", SPANNED)
def test_spans_change_no_draw_and_no_logprob(kind, monkeypatch):
    module = tiny(kind, spread=1.5)
    requests = requests_for(uneven(9, seed=6), candidates=3)
    runs = []
    for span in (1, 3, 2**16):
        monkeypatch.setattr(engine, "span_rows", lambda device, span=span: span)
        runs.append(drawn(module, requests, Law(temperature=1.1), batch_rows=8))
    for key, one in runs[0].items():
        for run in runs[1:]:
            assert run[key].token_ids == one.token_ids
            np.testing.assert_allclose(run[key].raw_logprobs, one.raw_logprobs, atol=1e-6)


def test_attention_is_put_back_after_a_failure(short_spans, monkeypatch):
    module = tiny()

    def fail(*args, **options):
        raise ValueError("broken")

    monkeypatch.setattr("tamis.generation.attention.sdpa_attention_forward", fail)
    with pytest.raises(ValueError, match="broken"):
        drawn(module, requests_for(uneven(6)), Law(), batch_rows=6)
    assert module.config._attn_implementation == "sdpa"


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 5), st.lists(st.integers(1, 40), min_size=1, max_size=17))
def test_removing_rows_keeps_spans_in_order_of_length(data, span, lengths):
    """Whatever ends: nobody is lost, the tensors follow, and no row is longer than one of an earlier span."""
    size = len(lengths)
    rows = Rows(size, 3, Law(), (), None, torch.device("cpu"), span)
    rows.live = [Row(n, 0, 0, length, 3, 0) for n, length in enumerate(lengths)]
    rows.last[:] = torch.arange(size)
    while rows.live:
        numbers = range(len(rows.live))
        gone = data.draw(st.sets(st.sampled_from(numbers), min_size=1))
        left = {row.request for n, row in enumerate(rows.live) if n not in gone}
        cache = [row.request for row in rows.live]
        sources, targets = rows.remove(list(gone))
        held = list(cache)
        for source, target in zip(sources, targets, strict=True):
            held[target] = cache[source]
        names = [row.request for row in rows.live]
        assert set(names) == left
        assert len(names) == len(left)
        assert held[: len(names)] == names == rows.last[: len(names)].tolist()
        parts = [[rows.live[n].prompt_length for n in range(len(names))[part]] for part, _ in rows.spans]
        assert all(min(a) >= max(b) for a, b in itertools.pairwise(parts))
        assert [width for _, width in rows.spans] == [max(part) + 1 for part in parts]


def test_weights_changed_in_place_are_seen_at_the_next_call():
    module = tiny()
    requests = requests_for(uneven(5))
    drawn(module, requests, Law(temperature=0))
    with torch.no_grad():
        module.lm_head.weight.copy_(module.lm_head.weight.flip(0))
        module.model.layers[0].self_attn.q_proj.weight.mul_(-1)
    out = drawn(module, requests, Law(temperature=0))
    assert [out[i, 0].token_ids for i in range(5)] == [greedy_reference(module, r.tokens, 12) for r in requests]


# --- memory


@pytest.mark.parametrize("after", [0, 3, 15])
def test_rows_are_halved_when_memory_runs_out_and_draws_stay_the_same(after, monkeypatch):
    module, requests = tiny(spread=1.5), requests_for(uneven(9, seed=6), candidates=3)
    whole = drawn(module, requests, Law(), batch_rows=16)
    steps = out_of_memory_above(monkeypatch, rows=5, after=after)
    events = []
    halved = drawn(module, requests, Law(), batch_rows=16, on_event=events.append)
    assert [e["rows"] for e in events if e["event"] == "memory"] == [8, 4]
    assert {k: s.token_ids for k, s in halved.items()} == {k: s.token_ids for k, s in whole.items()}
    assert max(steps) > 5
    assert sum(e["tokens"] for e in events if e["event"] == "sampled") == sum(len(s.token_ids) for s in whole.values())
    assert sum(e["event"] == "sampled" for e in events) == 27


def test_models_that_go_by_batches_are_halved_too(monkeypatch):
    module, requests = tiny("mamba"), requests_for(uneven(4, seed=2, longest=4), candidates=6)
    whole = drawn(module, requests, Law(temperature=0))
    last = Forward.last

    def failing(self, sequences, cache=None):
        if len(sequences) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return last(self, sequences, cache)

    monkeypatch.setattr(Forward, "last", failing)
    out = drawn(module, requests, Law(temperature=0), batch_rows=8)
    assert {k: s.token_ids for k, s in out.items()} == {k: s.token_ids for k, s in whole.items()}


def test_memory_for_not_even_one_row_is_said_and_halving_is_logged(monkeypatch, caplog):
    out_of_memory_above(monkeypatch, rows=0)
    with caplog.at_level(logging.WARNING), pytest.raises(ModelError, match="one sequence of up to"):
        drawn(tiny(), requests_for(uneven(3)), Law(), batch_rows=2)
    assert [r.message for r in caplog.records] == ["out of memory in sampling: going on with 1 rows"]


def test_other_failures_are_not_taken_for_a_lack_of_memory(monkeypatch):
    def broken(self, *rest):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Forward, "step", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        drawn(tiny(), requests_for(uneven(3)), Law())


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_batch_is_chosen_from_free_memory(kind, monkeypatch):
    """Free memory for just n rows (half of it is used) gives n, between 1 and the bound; a longer row costs more."""
    forward = Forward(tiny(kind, dtype=torch.float32))

    def fit(free, longest=40, limit=12):
        monkeypatch.setattr(memory, "free_bytes", lambda device: free)
        return memory.rows_that_fit(forward, longest, limit)

    assert fit(2**40) == memory.MOST_ROWS_CPU
    assert fit(0) == 1
    some = bisect.bisect_left(range(2**30), 7, key=fit)
    assert fit(some) == 7
    assert fit(2 * some) == 14
    assert fit(some, longest=4000) <= 7


def test_what_a_row_keeps_is_measured():
    forward = Forward(tiny("llama", dtype=torch.float32))
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, bytes
    assert memory._cache_bytes(forward, 1) == per_token
    assert memory._cache_bytes(forward, 2) == 2 * per_token


def test_batch_rows_left_out_draws_the_same():
    module, requests = tiny(spread=1.5), requests_for(uneven(9, seed=6), candidates=3)
    fixed, free = drawn(module, requests, Law(), batch_rows=5), drawn(module, requests, Law())
    assert {k: s.token_ids for k, s in fixed.items()} == {k: s.token_ids for k, s in free.items()}
