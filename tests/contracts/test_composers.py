"""What holds for every registered composer."""

import pytest

from composers.pools import context, pool_of, prompt, sampled
from tamis import registry

composers = pytest.mark.parametrize("component", registry.components("composer"), ids=lambda c: c.name)


@composers
def test_it_is_documented(component):
    assert component.about.endswith(".")
    assert all(option["about"] for option in component.options())
    assert component.row is None or component.paper


@composers
def test_an_empty_pool_gives_nothing(component):
    assert list(component.build().compose(pool_of([], []), context())) == []


@composers
def test_heldout_prompts_are_never_trained(component):
    held = [prompt(k, ("gold",), split="heldout") for k in range(3)]
    done = [sampled(p, f"answer {j}", j, sampler="prefix:structure") for p in held for j in range(2)]
    pool = pool_of(held, done, [1.0, 0.0] * 3)
    options = {"prefix_tokens": 4} if component.name == "prefix" else {}
    assert list(component.build(options).compose(pool, context())) == []
