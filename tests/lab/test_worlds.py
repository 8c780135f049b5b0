import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tamis.errors import ConfigError, DataError
from tamis.lab.worlds import ModularSums, StyledSums, SumLevels


def rng(*parts):
    return np.random.default_rng(parts)


def brute_solutions(modulus, operands):
    """Every right solution, written out naively over all orders."""
    found = set()
    for order in itertools.permutations(operands):
        total, text = order[0], ""
        for x in order[1:]:
            text += f"{total}+{x}={(total + x) % modulus},"
            total = (total + x) % modulus
        found.add(f"{text}#{total}")
    return found


sizes = st.tuples(st.integers(2, 10), st.integers(2, 5))


@given(sizes, st.integers(0, 10**6))
@settings(max_examples=60)
def test_generator_and_verifier_agree_with_enumeration(size, seed):
    world = ModularSums(*size)
    (problem,), (text,) = world.batch(rng(seed), 1)
    right = brute_solutions(world.modulus, world.operands(problem))
    assert text in right
    assert len(text) == world.solution_length
    assert set(problem + text) <= set(world.alphabet)
    assert all(world.all_steps_right(problem, solution) for solution in right)
    assert {world.solution(problem, order) for order in itertools.permutations(range(world.terms))} == right
    assert all(world.right_answer(problem, solution) for solution in right)


@given(sizes, st.integers(0, 10**6), st.data())
@settings(max_examples=150)
def test_corrupted_solutions_are_told_from_right_ones(size, seed, data):
    world = ModularSums(*size)
    (problem,), (text,) = world.batch(rng(seed), 1)
    place = data.draw(st.integers(0, len(text) - 1))
    edit = data.draw(st.sampled_from(["", *world.alphabet, "7", " ", "x", text[place] * 2]))
    corrupted = text[:place] + edit + text[place + 1 :]
    expected = corrupted in brute_solutions(world.modulus, world.operands(problem))
    assert world.all_steps_right(problem, corrupted) == expected


def test_verifier_on_named_faults():
    world = ModularSums(6, 3)
    assert world.all_steps_right("1+5+4=", "1+5=0,0+4=4,#4")
    for fault in [
        "",
        "#4",
        "1+5=0,#0",
        "1+5=0,0+4=4,",
        "1+5=0,0+4=4,#3",
        "1+5=1,1+4=5,#5",
        "1+5=0,5+5=4,#4",
        "1+1=2,2+2=4,#4",
        "1+5=0,0+4=4,4+0=4,#4",
        "1+5=0,0+4=4,#4\n",
        "1+5=0,0+4=4,#4#4",
        "A1+5=0,0+4=4,#4",
        "١+5=0,0+4=4,#4",
    ]:
        assert not world.all_steps_right("1+5+4=", fault)
    assert world.right_answer("1+5+4=", "1+1=2,#4")
    assert not world.right_answer("1+5+4=", "#4,#44")
    assert not world.right_answer("1+5+4=", "")


def test_known_texts_and_keys():
    world = ModularSums(6, 4)
    assert world.solution("1+2+3+4=") == "1+2=3,3+3=0,0+4=4,#4"
    assert world.solution("1+2+3+4=", (3, 0, 2, 1)) == "4+1=5,5+3=2,2+2=4,#4"
    assert world.distinct_key("1+2=3,3+3=1,#1") == "1+2=3|3+3=1"
    assert world.distinct_key("#4") == ""
    assert world.answer("5+5+5+5=") == "2"
    assert world.solutions([], world.orders(rng(0), 0)) == []


def test_problems_and_orders_are_uniform():
    world = ModularSums(3, 2)
    problems, texts = world.batch(rng(1), 9000)
    shares = np.array([problems.count(p) for p in sorted(set(problems))]) / 9000
    assert len(shares) == 9
    assert np.abs(shares - 1 / 9).max() < 0.015
    swapped = np.mean([t[0] != p[0] for p, t in zip(problems, texts, strict=True) if p[0] != p[2]])
    assert swapped == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("text", ["1+2+3=", "1+2+3+4", "1+2+3+9=", "1+2+3+=", "one", "", "1+2+3+44=", "1+2+3+4=="])
def test_foreign_problems_are_refused(text):
    with pytest.raises(DataError, match="not a sum of 4 residues of 6"):
        ModularSums().operands(text)


def test_sizes_and_orders_are_checked():
    for size in [(1, 3), (11, 3), (6, 1), (6, 13)]:
        with pytest.raises(ConfigError, match="modulus"):
            ModularSums(*size)
    with pytest.raises(ConfigError, match="permutation"):
        ModularSums().solution("1+2+3+4=", (0, 1, 1, 2))


def test_styled_sums_follow_their_law():
    world = StyledSums()
    problems, texts = world.batch(rng(2), 8000)
    styles = np.array([world.style(text) for text in texts])
    wrong = np.array([not world.all_steps_right(p, t) for p, t in zip(problems, texts, strict=True)])
    assert (styles == "A").mean() == pytest.approx(0.65, abs=0.02)
    assert wrong[styles == "A"].mean() == pytest.approx(0.1, abs=0.02)
    assert wrong[styles == "B"].mean() == pytest.approx(0.5, abs=0.03)
    assert {len(text) for text in texts} == {world.solution_length}
    assert set("".join(texts)) <= set(world.alphabet)
    faults = [
        sum((int(e[0]) + int(e[2])) % 6 != int(e[4]) for e in world.equations(text))
        for text, bad in zip(texts, wrong, strict=True)
        if bad
    ]
    assert set(faults) == {1}
    assert world.style("1+2") == ""
    assert not world.all_steps_right("1+2+3+4=", world.solution("1+2+3+4="))
    assert not world.all_steps_right("1+2+3+4=", "")


def test_levels():
    world = SumLevels()
    problems, texts = world.batch(rng(3), 600)
    levels = [world.level(p) for p in problems]
    assert np.bincount(levels) == pytest.approx([200] * 3, abs=50)
    assert [p.count("+") for p in problems] == [(2, 4, 6)[i] for i in levels]
    assert all(world.all_steps_right(p, t) for p, t in zip(problems, texts, strict=True))
    assert all(t[-1] == world.answer(p) for p, t in zip(problems, texts, strict=True))
    with pytest.raises(DataError, match="operands"):
        world.level("1+2=")


def test_same_seed_same_texts():
    for world in (ModularSums(), StyledSums(), SumLevels()):
        assert world.batch(rng(4), 20) == world.batch(rng(4), 20) != world.batch(rng(5), 20)
