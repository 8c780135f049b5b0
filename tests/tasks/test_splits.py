"""Which prompts are the same and which are held out."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError
from tamis.tasks import splits

texts = st.lists(st.text(max_size=8), unique=True, max_size=40)


@pytest.mark.parametrize(
    ("a", "b"),
    [("What is 2+2?", "what  is 2+2"), ("Café", "Cafe\u0301"), ("Hello, world.", "hello world"), ("a−b", "a-b")],
)
def test_the_same_prompt(a, b):
    assert splits.key(a) == splits.key(b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("2+2", "2-2"),
        ("3.5", "35"),
        (".5", "5"),
        ("5!", "5"),
        ("x²", "x2"),
        ("f'(x)", "f(x)"),
        ("3:4", "34"),
        ("(a)", "a"),
    ],
)
def test_another_prompt(a, b):
    assert splits.key(a) != splits.key(b)


@given(st.text(max_size=40))
def test_keys_have_16_bytes(text):
    text = text.encode(errors="ignore").decode()
    assert len(splits.key(text)) == len(splits.exact_key(text)) == 16


@given(texts, st.one_of(st.floats(0, 0.99), st.integers(0, 50)))
def test_held_out_count_is_exact_and_smallest_keys_come_first(lines, heldout):
    rows = {splits.exact_key(t): 1 for t in lines}
    count = splits.heldout_count(len(rows), heldout)
    assert count == (min(len(rows), heldout) if isinstance(heldout, int) else round(heldout * len(rows)))
    assert splits.heldout_keys(rows, count) == set(sorted(rows)[:count])


@given(texts, texts)
def test_added_rows_only_displace_the_largest_held_out_keys(old, new):
    before = {splits.exact_key(t): 1 for t in old}
    after = before | {splits.exact_key(t): 1 for t in new}
    kept = splits.heldout_keys(after, 10) & before.keys()
    assert kept <= splits.heldout_keys(before, 10)


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.integers(0, 30))
def test_groups_stay_whole(lines, count):
    rows = Counter(splits.exact_key(t) for t in lines)
    chosen = splits.heldout_keys(rows, count)
    assert sum(rows[k] for k in chosen) <= count


@pytest.mark.parametrize("heldout", [1.0, -0.1, -1, 3.5])
def test_impossible_shares_are_refused(heldout):
    with pytest.raises(ConfigError):
        splits.check_heldout(heldout, "here")
