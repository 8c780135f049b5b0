"""What holds for every registered selector, third-party ones included.

A selector with required options names example values in the class attribute `contract` (a mapping of options).
"""

import numpy as np
import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError, TamisError
from tamis.pool import Pool, Selection
from tamis.records import Completion, Cost, Message, Prompt, Turn, Verdict

SELECTORS = {c.name: c for c in registry.components("selector")}
every_selector = pytest.mark.parametrize("component", SELECTORS.values(), ids=SELECTORS)


def example(component):
    return component.build(getattr(component.cls, "contract", {}))


def count_tokens(texts):
    return np.array([len(t.split()) for t in texts], dtype=np.int64)


def embed(texts):
    return np.array([[len(t) % 7, t.count("1"), t.count("2")] for t in texts], dtype=np.float32)


def make_pool(order=range(12), scored=True):
    """Twelve prompts with four tries each; a third is wrong, some have no score, one is empty, one repeats a text."""
    prompts, completions, verdicts = {}, [], []
    for i in order:
        prompt = Prompt((Message("user", f"What is {i} + 3?"),), (str(i + 3),), task=f"t{i % 2}")
        prompts[prompt.id] = prompt
        for j in range(4):
            text = (
                "" if (i, j) == (3, 1) else f"{i}+3={i + 3}" if j == 2 else f"try {j}: {i} + 3 = {i + 3} " + "so " * i
            )
            done = Completion(prompt.id, (Turn("assistant", text),), index=j, cost=Cost(sampled_tokens=5))
            completions.append(done)
            score = None if (i + j) % 11 == 0 else float((i * j) % 3 != 1)
            verdicts.append(Verdict(prompt.id, (done.id,), "j", score, "unparseable_answer" if score is None else ""))
    return Pool(prompts, completions, verdicts if scored else [], embed=embed, count_tokens=count_tokens)


def chosen(pool, selection):
    return sorted(pool.completions[i].id for i in selection.indices)


@every_selector
def test_is_documented(component):
    assert component.about.endswith(".")
    assert len(component.page) > len(component.about), "say more than one line"
    assert all(o["about"] for o in component.options()), "every option needs its meaning"


@every_selector
def test_unknown_options_are_refused(component):
    with pytest.raises(ConfigError, match="unknown option 'no_such_option'"):
        component.build({"no_such_option": 1})


@every_selector
def test_indices_are_in_range_and_counted(component):
    pool = make_pool()
    selector = example(component)
    found = selector.select(pool, Context(seed=1))
    assert isinstance(found, Selection)
    assert found.indices.dtype == np.int64
    assert len(found.indices) > 0
    assert found.indices.min() >= 0
    assert found.indices.max() < len(pool)
    if found.weights is not None:
        assert found.weights.shape == found.indices.shape
        assert np.isfinite(found.weights).all()
    k = getattr(selector, "k", None)
    if k is not None and hasattr(selector, "fraction"):
        assert len(found.indices) == k
    assert all(isinstance(v, int | float | str) for v in found.notes.values())


@every_selector
def test_keeps_nothing_that_was_rejected(component):
    pool = make_pool()
    for index in example(component).select(pool, Context(seed=1)).indices:
        assert pool.score(index) is not None
        if "threshold" in {o["name"] for o in component.options()}:
            assert pool.accepted(index)


@every_selector
def test_is_seeded(component):
    runs = [example(component).select(make_pool(), Context(seed=5)) for _ in range(2)]
    assert runs[0].indices.tolist() == runs[1].indices.tolist()
    assert runs[0].notes == runs[1].notes


@every_selector
def test_does_not_depend_on_the_order_of_prompts(component):
    if getattr(component.cls, "ordered", False):
        pytest.skip("says that it depends on stream order")
    selector = example(component)
    pools = [make_pool(), make_pool(range(11, -1, -1)), make_pool([5, 0, 11, 3, 8, 1, 10, 2, 9, 4, 7, 6])]
    assert len({tuple(chosen(p, selector.select(p, Context(seed=2)))) for p in pools}) == 1


@every_selector
def test_leaves_the_pool_as_it_was(component):
    pool = make_pool()
    before = [c.id for c in pool.completions], [v.id for v in pool.verdicts]
    example(component).select(pool, Context())
    assert before == ([c.id for c in pool.completions], [v.id for v in pool.verdicts])


def attempt(call):
    """Return (result, None), or (None, error) for an error that is meant for the user."""
    try:
        return call(), None
    except TamisError as error:
        return None, error


@every_selector
def test_an_empty_pool_gives_an_empty_selection_or_a_clear_error(component):
    pool = Pool({}, [], embed=embed, count_tokens=count_tokens)
    found, error = attempt(lambda: example(component).select(pool, Context()))
    if error:
        assert str(error)
    else:
        assert len(found.indices) == 0
        assert found.indices.dtype == np.int64


@every_selector
def test_a_pool_without_verdicts_works_or_says_what_is_missing(component):
    found, error = attempt(lambda: example(component).select(make_pool(scored=False), Context()))
    assert error.hint if error else len(found.indices)


@every_selector
def test_without_embedder_and_tokenizer_works_or_says_what_is_missing(component):
    pool = make_pool()
    pool.embed = pool.count_tokens = None
    found, error = attempt(lambda: example(component).select(pool, Context()))
    assert error.hint if error else len(found.indices)


@every_selector
def test_fewer_than_asked_has_a_reason(component):
    if "fraction" not in {o["name"] for o in component.options()}:
        pytest.skip("takes a number per prompt")
    options = {**getattr(component.cls, "contract", {}), "k": 1000}
    found = component.build(options).select(make_pool(), Context())
    assert 0 < len(found.indices) < 1000
    assert "1000" in found.reason
