import re

import pytest

from tamis import registry
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.lab.worlds import ModularSums
from tamis.records import Prompt, from_table, to_table


def prompts(seed=0, **options):
    return list(registry.get("task", "modular_sums").build(options).prompts(Context(seed=seed)))


def test_splits_are_disjoint_and_counted():
    found = prompts(size=300, heldout=100)
    splits = [p.split for p in found]
    assert (splits.count("train"), splits.count("heldout")) == (300, 100)
    assert len({p.id for p in found}) == len({p.text for p in found}) == 400
    assert from_table(to_table(found, Prompt), Prompt) == found


@pytest.mark.parametrize("gold", [False, True])
def test_references_answer_the_problem(gold):
    world = ModularSums(7, 3)
    for p in prompts(size=20, heldout=5, terms=3, modulus=7, gold=gold):
        assert re.findall(r"#(\d+)", p.references[0]) == [p.metadata["answer"]] == [world.answer(p.text)]
        assert world.all_steps_right(p.text, p.references[0]) == gold


def test_whole_space_can_be_used_and_no_more():
    assert len(prompts(size=8, heldout=1, terms=2, modulus=3)) == 9
    with pytest.raises(ConfigError, match="only 9 sums of 2 residues of 3 exist"):
        prompts(size=9, heldout=1, terms=2, modulus=3)


def test_seeded_and_stable_when_it_grows():
    small, large = prompts(size=50), prompts(size=120)
    assert large[: len(small)] == small
    assert prompts(seed=1, size=50) != small == prompts(size=50)
