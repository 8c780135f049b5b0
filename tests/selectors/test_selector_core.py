from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.selectors import core

SIZES = st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any)


@st.composite
def shares(draw):
    sizes = draw(SIZES)
    return draw(st.integers(0, sum(sizes))), np.array(sizes)


@given(shares())
def test_largest_remainder_equals_the_definition(case):
    total, sizes = case
    exact = [Fraction(total * int(n), int(sizes.sum())) for n in sizes]
    quotas = [int(q) for q in exact]
    for i in sorted(range(len(sizes)), key=lambda i: (-(exact[i] - quotas[i]), i))[: total - sum(quotas)]:
        quotas[i] += 1
    found = core.largest_remainder(total, sizes)
    assert found.tolist() == quotas
    assert found.sum() == total
    assert (found <= sizes).all()


def test_largest_remainder_ties_and_large_numbers():
    assert core.largest_remainder(2, np.array([5, 5, 5])).tolist() == [1, 1, 0]
    big = core.largest_remainder(5_000_000, np.full(1000, 10_000))
    assert big.sum() == 5_000_000
    with pytest.raises(ValueError, match="cannot share 4"):
        core.largest_remainder(4, np.array([1, 2]))


@given(shares(), st.integers(0, 4))
def test_minimum_comes_first(case, minimum):
    total, sizes = case
    first = np.minimum(minimum, sizes)
    if first.sum() > total:
        with pytest.raises(ValueError, match="takes"):
            core.quotas_with_minimum(total, sizes, minimum)
        return
    quotas = core.quotas_with_minimum(total, sizes, minimum)
    assert quotas.sum() == total
    assert ((quotas >= first) & (quotas <= sizes)).all()
    assert (quotas - first).tolist() == core.largest_remainder(total - first.sum(), sizes - first).tolist()


@given(shares())
def test_even_quotas_equal_dealing_one_by_one(case):
    total, sizes = case
    dealt = np.zeros_like(sizes)
    while dealt.sum() < total:
        for i in range(len(sizes)):
            if dealt[i] < sizes[i] and dealt.sum() < total:
                dealt[i] += 1
    assert core.even_quotas(total, sizes).tolist() == dealt.tolist()


@given(st.lists(st.integers(-3, 3), max_size=30))
def test_falling_breaks_ties_to_the_lower_index(score):
    expected = sorted(range(len(score)), key=lambda i: (-score[i], i))
    assert core.falling(np.array(score, dtype=float)).tolist() == expected
    assert core.falling(np.array(score, dtype=np.int64)).tolist() == expected


def test_falling_names_the_first_nan():
    with pytest.raises(ValueError, match="score 2 is NaN"):
        core.falling(np.array([1, 2, np.nan, np.nan]))
    with pytest.raises(ValueError, match="one-dimensional"):
        core.falling(np.ones((2, 2)))
    assert core.falling(np.array([0, 3, 2], dtype=np.uint8)).tolist() == [1, 2, 0]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.data())
def test_best_of_groups_equals_a_loop(labels, data):
    labels = np.array(labels)
    order = np.array(data.draw(st.permutations(range(len(labels)))))
    quotas = np.array(data.draw(st.lists(st.integers(0, 6), min_size=5, max_size=5)))
    left, expected = quotas.copy(), []
    for i in order:
        if left[labels[i]] > 0:
            left[labels[i]] -= 1
            expected.append(i)
    assert core.best_of_groups(labels, order, quotas).tolist() == expected


def test_budget():
    assert core.budget(3, None, 10) == (3, "")
    assert core.budget(None, 0.25, 10) == (3, "")
    assert core.budget(None, 0.01, 10) == (1, "")
    k, reason = core.budget(20, None, 10)
    assert k == 10
    assert "20" in reason
    assert core.budget(2, None, 0) == (0, core.NOTHING_ACCEPTED)
    for wrong in ((None, None), (1, 0.5)):
        with pytest.raises(ValueError, match="either"):
            core.check_budget(*wrong)
