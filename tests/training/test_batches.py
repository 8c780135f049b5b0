from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.records import Example, Target
from tamis.training.batches import EpochSource, Row, admit, collate, keeps_packed_apart, split


def row(length, trained=1, name="x"):
    weights = np.zeros(length, dtype=np.float32)
    weights[length - trained :] = 1
    return Row(Example("sft", name, Target(())), np.arange(length, dtype=np.int32) % 24, weights)


def example(ids, weights, weight=1.0):
    return Example("sft", "p", Target((), token_ids=tuple(ids), weights=tuple(weights)), weight=weight)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (example([], []), "not rendered"),
        (example([1, 2], [0.0, 0.0]), "no trained token"),
        (example([1, 2], [0.0, 1.0], weight=0.0), "no trained token"),
        (example([1, 2, 3], [0.0, 1.0]), "differ in length"),
        (example([1, 2], [1.0, 1.0]), "first token has a weight"),
        (example([1, 2], [0.0, float("nan")]), "not finite"),
        (example([1] * 9, [0.0] + [1.0] * 8), "longer than 8"),
        (example([1, 24], [0.0, 1.0]), "outside the model's vocabulary"),
        (example([-1, 2], [0.0, 1.0]), "outside the model's vocabulary"),
    ],
)
def test_bad_examples_are_refused_with_a_reason(bad, reason):
    good = example([1, 23], [0.0, 1.0], weight=0.5)
    rows, refused = admit([bad, good], max_length=8, vocabulary=24)
    assert [r.example for r in rows] == [good]
    assert rows[0].weights.tolist() == [0.0, 0.5]
    assert [r.example_id for r in refused] == [bad.id]
    assert reason in refused[0].reason


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30),
    tokens=st.integers(1, 120),
    batching=st.sampled_from(["bucket", "pack"]),
)
def test_split_keeps_every_row_and_the_token_limit(lengths, tokens, batching):
    rows = [row(n, name=str(i)) for i, n in enumerate(lengths)]
    groups = split(rows, tokens=tokens, batching=batching)
    assert Counter(r.example.prompt_id for g in groups for r in g) == Counter(r.example.prompt_id for r in rows)
    for group in groups:
        size = sum(map(len, group)) if batching == "pack" else len(group) * max(map(len, group))
        assert size <= tokens or len(group) == 1
        batch = collate(group, packed=batching == "pack")
        assert batch.input_ids.numel() == size
        assert batch.weights.sum() == len(group)


@given(st.lists(st.integers(2, 20), min_size=1, max_size=12), st.booleans())
def test_spans_find_each_example(lengths, packed):
    rows = [row(n) for n in lengths]
    batch = collate(rows, packed=packed)
    for given_row, (line, start, stop) in zip(rows, batch.spans, strict=True):
        assert batch.input_ids[line, start:stop].tolist() == given_row.ids.tolist()
        assert batch.position_ids[line, start:stop].tolist() == list(range(len(given_row)))
    if batch.attention_mask is not None:
        assert batch.attention_mask.sum() == sum(lengths)


def test_padding_is_never_trained():
    batch = collate([row(3, 2), row(6, 2)], packed=False)
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert (batch.weights * (1 - batch.attention_mask)).sum() == 0


def test_rows_of_one_length_need_no_mask():
    assert collate([row(4), row(4)], packed=False).attention_mask is None


def test_packing_fills_rows_better_than_first_come():
    rows = [row(n) for n in (6, 5, 4, 3, 2)]
    assert sorted(sum(map(len, g)) for g in split(rows, tokens=10, batching="pack")) == [10, 10]


@settings(max_examples=40)
@given(n=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 99))
def test_each_epoch_has_every_row_once_in_an_order_of_its_own(n, batch, seed):
    source = EpochSource([row(3, name=str(i)) for i in range(n)], batch, 2, seed)
    drawn = [[r.example.prompt_id for r in source.draw(step)] for step in range(source.steps)]
    half = len(drawn) // 2
    for epoch in (drawn[:half], drawn[half:]):
        assert sorted(name for window in epoch for name in window) == sorted(str(i) for i in range(n))
        assert [len(window) for window in epoch[:-1]] == [batch] * (half - 1)
    assert [[r.example.prompt_id for r in source.draw(s)] for s in reversed(range(source.steps))] == drawn[::-1]
    if n > 12:
        assert drawn[:half] != drawn[half:]


@pytest.mark.parametrize(
    ("epochs", "max_steps", "steps"), [(2, None, 14), (0.5, None, 4), (0.01, None, 1), (2, 100, 100), (1.1, None, 8)]
)
def test_length_of_training(epochs, max_steps, steps):
    assert EpochSource([row(3)] * 20, 3, epochs, 0, max_steps).steps == steps


def test_packed_logits_equal_separate_logits(architecture):
    module = architecture().eval()
    rows = [row(n) for n in (7, 4, 9, 2)]
    packed = collate(rows, packed=True)
    with torch.no_grad():
        together = module(**packed.inputs()).logits
        for given_row, (line, start, stop) in zip(rows, packed.spans, strict=True):
            alone = module(**collate([given_row], packed=True).inputs()).logits[0]
            assert (together[line, start:stop] - alone).abs().max() < 1e-5


def test_padded_logits_equal_separate_logits(architecture):
    module = architecture().eval()
    rows = [row(n) for n in (7, 4, 9, 2)]
    padded = collate(rows, packed=False)
    with torch.no_grad():
        together = module(**padded.inputs()).logits
        for given_row, (line, start, stop) in zip(rows, padded.spans, strict=True):
            alone = module(**collate([given_row], packed=False).inputs()).logits[0]
            assert (together[line, start:stop] - alone).abs().max() < 1e-5


@pytest.mark.parametrize("change", [{"attention_mask": True}, {"use_cache": True}])
def test_one_argument_more_and_packed_examples_leak(llama, change):
    module = llama(initializer_range=0.3).eval()
    rows = [row(n) for n in (7, 4, 9, 2)]
    packed = collate(rows, packed=True)
    if "attention_mask" in change:
        change = {"attention_mask": torch.ones_like(packed.input_ids)}
    with torch.no_grad():
        right = module(**packed.inputs()).logits
        wrong = module(**{**packed.inputs(), **change}).logits
    assert (right - wrong).abs().max() > 1e-2


def test_architectures_that_keep_packed_examples_apart_are_found(architecture):
    module = architecture().train()
    assert keeps_packed_apart(module)
    assert module.training


def test_an_architecture_that_ignores_positions_is_found(llama):
    module = llama()
    forward = module.forward
    module.forward = lambda position_ids=None, **given: forward(**given)
    assert not keeps_packed_apart(module)
    module.forward = lambda input_ids, use_cache: forward(input_ids=input_ids, use_cache=use_cache)
    assert not keeps_packed_apart(module)
