"""Prefix trees: any order of prefixes gives the logits of whole sequences, and shared beginnings are run once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.generation import PrefixTree, Session, next_logits
from tamis.generation import tree as tree_module
from test_generation import BY_BATCH, IN_ROWS, VOCABULARY, tiny

PROMPT = [3, 9, 14, 5]


def fresh(rng, prefix, seen):
    """Return a child of a prefix that was not run before."""
    while (child := (*prefix, int(rng.integers(3, VOCABULARY)))) in seen:
        pass
    seen.append(child)
    return child


def walked(module, rng, width=1, walks=6, longest=6, **options):
    """Walk down from random places of the tree, `width` paths at a time; compare with whole sequences."""
    tree = PrefixTree(Session(module, PROMPT), **options)
    np.testing.assert_allclose(tree.logits([()]), next_logits(module, [PROMPT]), atol=1e-4)
    seen = [()]
    for _ in range(walks):
        paths = [seen[i] for i in rng.integers(0, len(seen), width)]
        ends = rng.integers(1, longest + 1, width)
        while paths := [p for p, end in zip(paths, ends, strict=False) if len(p) < end or not len(p)]:
            ends = ends[: len(paths)]
            paths = [fresh(rng, p, seen) for p in paths]
            np.testing.assert_allclose(
                tree.logits(paths), next_logits(module, [[*PROMPT, *p] for p in paths]), atol=1e-4
            )
    assert tree.passes == len(seen)
    return tree


@pytest.mark.parametrize("kind", [*IN_ROWS, *BY_BATCH])
def test_walks_have_the_logits_of_whole_sequences(kind):
    walked(tiny(kind, spread=1.5), np.random.default_rng(0))


@given(width=st.integers(1, 4), seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_nothing_is_run_twice(width, seed):
    tree = walked(tiny("llama", spread=1.5), np.random.default_rng(seed), width)
    assert tree.refilled == 0


@given(seed=st.integers(0, 2**16), budget=st.integers(0, 20_000))
@settings(max_examples=15, deadline=None)
def test_short_memory_changes_no_logits(seed, budget):
    tree = walked(tiny("llama", spread=1.5), np.random.default_rng(seed), 2, budget=budget)
    assert tree.budget >= 0
    assert tree.refilled > 0 or budget > 4_000


def test_a_sliding_window_that_is_left_on_the_way():
    walked(tiny("mistral", spread=1.5), np.random.default_rng(1), longest=12)


def test_each_token_is_kept_once():
    tree = walked(tiny("llama", spread=1.5), np.random.default_rng(2), walks=12, budget=2**30)
    own = [kept.tokens[: i + 1] for kept in tree._kept for i in range(kept.start, len(kept.tokens))]
    assert len(own) == len(set(own))


@pytest.mark.parametrize(("one", "other", "same"), [((), (1,), 0), ((1, 2), (1, 2, 3), 2), ((1, 5), (1, 2), 1)])
def test_shared(one, other, same):
    assert tree_module._shared(one, other) == same
