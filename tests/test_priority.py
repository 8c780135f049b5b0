"""Priority search against brute force: a heap of all branches over an enumerated tree."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ConfigError, ModelError
from tamis.priority import PrioritySearch, priority_search

SYMBOLS, LENGTH, EOS = 3, 3, 3


class Tree:
    """A law of every prefix of up to three of three symbols; laws may have zeros and ties. Counts what is asked."""

    def __init__(self, seed, coarse=False):
        rng = np.random.default_rng(seed)
        prefixes = [p for n in range(LENGTH) for p in itertools.product(range(SYMBOLS), repeat=n)]
        drawn = rng.dirichlet(np.full(SYMBOLS + 1, 0.5), len(prefixes))
        if coarse:
            drawn = rng.multinomial(4, np.full(SYMBOLS + 1, 0.25), len(prefixes)) / 4
        self.laws = dict(zip(prefixes, drawn, strict=True))
        self.asked = []

    def __call__(self, prefix):
        self.asked.append(prefix)
        return self.laws[prefix]

    def logprob(self, tokens):
        return sum((math.log(p) if (p := self.laws[tokens[:i]][t]) else -math.inf) for i, t in enumerate(tokens))

    def strings(self):
        whole = itertools.product(range(SYMBOLS), repeat=LENGTH)
        return [s for s in (*((*p, EOS) for p in self.laws), *whole) if self.logprob(s) > -math.inf]


def ended(tokens):
    return len(tokens) == LENGTH or EOS in tokens


def eager(tree, n, priority="path", branch_k=None, allowed=None):
    """The sheet's algorithm: all branches pushed at once. Returns [(tokens or None, priority)], branches left."""
    heap, tries = [(0.0, 0, ())], []
    while heap and len(tries) < n:
        heap.sort()
        order, _, tokens = heap.pop(0)
        while not ended(tokens):
            law = tree.laws[tokens]
            usable = [t for t in range(SYMBOLS + 1) if law[t] > 0 and (allowed is None or allowed(tokens, t))]
            ranked = sorted(usable, key=lambda t, law=law: (-law[t], t))[:branch_k]
            if not ranked:
                break
            for t in ranked[1:]:
                value = tree.logprob((*tokens, t)) if priority == "path" else math.log(law[t])
                heap.append((-value, len(tokens) + 1, (*tokens, t)))
            tokens = (*tokens, ranked[0])
        whole = ended(tokens) and (EOS in tokens or allowed is None or allowed(tokens, EOS))
        tries.append((tokens if whole else None, -order))
    return tries, len(heap)


SETTINGS = {
    "priority": st.sampled_from(["path", "token"]),
    "branch_k": st.sampled_from([None, 1, 2, 3]),
    "n": st.integers(1, 50),
    "seed": st.integers(0, 10_000),
    "coarse": st.booleans(),
}


@given(**SETTINGS, modulus=st.sampled_from([None, 2, 3]))
@settings(max_examples=150, deadline=None)
def test_the_lazy_heap_emits_what_a_heap_of_all_does(priority, branch_k, n, seed, coarse, modulus):
    tree = Tree(seed, coarse)

    def allowed(prefix, token):
        return sum(prefix) % modulus == 0 if token == EOS else True

    constraint = allowed if modulus else None
    tries, left = eager(tree, n, priority, branch_k, constraint)
    found = priority_search(tree, n, EOS, LENGTH, constraint, priority=priority, branch_k=branch_k)
    wanted = [(tokens, order) for tokens, order in tries if tokens is not None]
    assert found.sequences == [tokens for tokens, _ in wanted]
    np.testing.assert_allclose(found.priorities, [order for _, order in wanted], atol=1e-12)
    np.testing.assert_allclose(found.logprobs, [tree.logprob(s) for s in found.sequences], atol=1e-12)
    assert found.dropped == len(tries) - len(wanted)
    assert found.exhausted == (left == 0 and len(wanted) < n)
    assert len(set(tree.asked)) == len(tree.asked) == found.forward_passes, "no node is evaluated twice"


@given(n=st.integers(1, 50), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_properties_of_path_priority(n, seed):
    tree = Tree(seed)
    found = priority_search(tree, n, EOS, LENGTH)
    assert (np.diff(found.priorities) <= 1e-12).all()
    assert len(set(found.sequences)) == len(found.sequences)
    np.testing.assert_allclose(found.coverage, np.cumsum(np.exp(found.logprobs)), atol=1e-12)
    taken = {s[:i] for s in found.sequences for i in range(len(s) + 1)}
    left = {(*p, t) for p in tree.asked for t in range(SYMBOLS + 1)} - taken
    assert found.coverage[-1] + sum(math.exp(tree.logprob(b)) for b in left) == pytest.approx(1, abs=1e-12)
    for count, bound in enumerate(found.bound.tolist(), 1):
        likelier = {s for s in tree.strings() if math.exp(tree.logprob(s)) > bound * (1 + 1e-9)}
        assert likelier <= set(found.sequences[:count])
    assert found.branch_depth[0] == 0


def test_the_whole_tree():
    tree = Tree(1)
    found = priority_search(tree, 1000, EOS, LENGTH)
    assert found.exhausted
    assert set(found.sequences) == set(tree.strings())
    assert found.coverage[-1] == pytest.approx(1)
    assert found.bound[-1] == 0


@given(frontier=st.integers(1, 8), n=st.integers(1, 50), seed=st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_frontier_changes_the_order_and_nothing_else(frontier, n, seed):
    tree = Tree(seed)
    found = priority_search(tree, n, EOS, LENGTH, frontier=frontier)
    assert len(set(found.sequences)) == len(found.sequences) == min(n, len(tree.strings()))
    assert len(set(tree.asked)) == len(tree.asked)
    for count, bound in enumerate(found.bound.tolist(), 1):
        likelier = {s for s in tree.strings() if math.exp(tree.logprob(s)) > bound * (1 + 1e-9)}
        assert likelier <= set(found.sequences[:count])


def test_under_a_constraint_priorities_stay_the_models_own():
    tree = Tree(3)
    found = priority_search(tree, 1000, EOS, LENGTH, lambda prefix, token: token != 0)
    permitted = {s for s in tree.strings() if 0 not in s}
    assert set(found.sequences) == permitted
    assert found.coverage[-1] == pytest.approx(sum(math.exp(tree.logprob(s)) for s in permitted))
    assert found.coverage[-1] < 1


def test_dead_ends_are_counted():
    found = priority_search(Tree(3), 5, EOS, LENGTH, lambda prefix, token: len(prefix) < 1 and token == 1)
    assert (found.sequences, found.dropped, found.exhausted) == ([], 1, True)


def test_long_completions_do_not_underflow():
    law = np.array([0.0, *[1 / 999] * 999])
    found = priority_search(lambda prefix: law, 3, 0, 300)
    np.testing.assert_allclose(found.logprobs, -300 * math.log(999))
    assert found.sequences == [(1,) * 300, (2, *[1] * 299), (3, *[1] * 299)]
    assert found.bound[0] == pytest.approx(1 / 999)
    assert found.forward_passes == 900 - 2


def test_it_stops_at_a_mass_and_yields_each_as_it_comes():
    tree = Tree(4)
    search = PrioritySearch(lambda prefixes: map(tree, prefixes), 1000, EOS, LENGTH, stop_mass=0.6)
    coverage = [f.coverage for f in search]
    assert coverage[-1] >= 0.6
    assert all(c < 0.6 for c in coverage[:-1])
    tree.asked.clear()
    next(iter(search))
    assert len(tree.asked) <= LENGTH


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "n is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"branch_k": 0}, "branch_k is 0"),
        ({"frontier": 0}, "frontier is 0"),
        ({"priority": "sum"}, "no priority 'sum'"),
        ({"stop_mass": 0.0}, "stop_mass is 0"),
    ],
)
def test_settings_out_of_range(options, said):
    with pytest.raises(ConfigError, match=said):
        priority_search(Tree(0), **{"n": 3, "eos": EOS, "max_new_tokens": LENGTH, **options})


@pytest.mark.parametrize("law", [[0.5, 0.4, 0.0, 0.0], [np.nan, 0.5, 0.5, 0.0], [1.2, -0.2, 0.0, 0.0]])
def test_what_is_not_a_law(law):
    with pytest.raises(ModelError, match="must be a law"):
        priority_search(lambda prefix: np.array(law), 1, EOS, LENGTH)
