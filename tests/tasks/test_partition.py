"""Fates of rows, against a plain reference that holds everything in dictionaries."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError, DataError
from tamis.tasks import partition, splits
from tamis.tasks.partition import (
    ALSO_HELDOUT,
    DUPLICATE,
    DUPLICATE_ID,
    HELDOUT,
    LEFT_OUT,
    TRAIN,
    Leak,
    Partition,
    Wishes,
)

rows = st.lists(st.tuples(st.sampled_from("aAbBcdefgh"), st.sampled_from([None, 1, 2, 3])), min_size=1, max_size=30)
wishes = st.builds(
    Wishes,
    heldout=st.one_of(st.floats(0, 0.9), st.integers(0, 8)),
    size=st.none() | st.integers(1, 12),
    dedupe=st.sampled_from(["normalised", "exact", "none"]),
    leakage=st.sampled_from(["refuse", "drop", "allow"]),
    seed=st.integers(-3, 3),
)


def settle(sides, found, asked):
    with Partition() as made:
        for side, (text, own) in zip(sides, found, strict=True):
            key, mark = splits.key(text), splits.exact_key(text)
            number = None if own is None else splits.exact_key(str(own))
            made.add(side, key, mark if asked.dedupe == "exact" else None, number)
        fates, several = made.settle(asked, "here")
    return fates.tolist(), several.tolist()


def unique(sides, found, asked):
    """Return what is a duplicate, and the fate that it has then."""
    ids, marks, fates = set(), set(), {}
    for row, (side, (text, own)) in enumerate(zip(sides, found, strict=True)):
        mark = (side, text.lower() if asked.dedupe == "normalised" else text)
        if own is not None and (side, own) in ids:
            fates[row] = DUPLICATE_ID
            continue
        ids.add((side, own))
        if asked.dedupe != "none" and mark in marks:
            fates[row] = DUPLICATE
        marks.add(mark)
    return fates


def greedy(keys, counts, wanted):
    taken = set()
    for key in keys:
        if counts[key] <= wanted:
            taken.add(key)
            wanted -= counts[key]
    return taken


def drawn(counts, wanted, seed):
    from hashlib import blake2b

    salt = seed.to_bytes(16, "big", signed=True)
    order = sorted(counts, key=lambda t: blake2b(splits.key(t), digest_size=16, salt=salt).digest())
    return greedy(order, counts, wanted)


@given(rows, wishes)
def test_data_without_sides(found, asked):
    sides, texts = [""] * len(found), [text.lower() for text, _ in found]
    gone = unique(sides, found, asked)
    counts = Counter(t for row, t in enumerate(texts) if row not in gone)
    taken = set(counts)
    if asked.size is not None:
        share = isinstance(asked.heldout, float)
        taken = drawn(
            counts, round(asked.size / (1 - asked.heldout)) if share else asked.size + asked.heldout, asked.seed
        )
    total = sum(counts[t] for t in taken)
    held = greedy(sorted(taken, key=splits.key), counts, splits.heldout_count(total, asked.heldout))
    if len(held) == len(taken):
        with pytest.raises(DataError, match="none is left to train on"):
            settle(sides, found, asked)
        return
    expected = [HELDOUT if t in held else TRAIN if t in taken else LEFT_OUT for t in texts]
    for row, fate in gone.items():
        if fate == DUPLICATE_ID or expected[row] != LEFT_OUT:
            expected[row] = fate
    fates, several = settle(sides, found, asked)
    assert fates == expected
    staying = Counter(t for t, fate in zip(texts, fates, strict=True) if fate <= HELDOUT)
    assert several == [staying[t] > 1 for t in texts]


@given(rows, wishes, st.data())
def test_data_that_say_their_sides(found, asked, data):
    size = len(found)
    sides = data.draw(st.lists(st.sampled_from(["train", "heldout"]), min_size=size, max_size=size))
    texts = [text.lower() for text, _ in found]
    gone = unique(sides, found, asked)
    counts = {
        side: Counter(t for row, t in enumerate(texts) if row not in gone and sides[row] == side)
        for side in ("train", "heldout")
    }
    if isinstance(asked.heldout, float) and asked.heldout != partition.DEFAULT_SHARE:
        with pytest.raises(ConfigError, match="does nothing"):
            settle(sides, found, asked)
        return
    both = counts["train"].keys() & counts["heldout"].keys()
    if both and asked.leakage == "refuse":
        with pytest.raises(Leak) as caught:
            settle(sides, found, asked)
        assert (caught.value.both, caught.value.heldout) == (len(both), len(counts["heldout"]))
        row = caught.value.row
        assert any(texts[r] == texts[row] and sides[r] != sides[row] for r in range(row))
        return
    held = set(counts["heldout"])
    if isinstance(asked.heldout, int):
        held = greedy(sorted(held, key=splits.key), counts["heldout"], asked.heldout)
    left = Counter({t: n for t, n in counts["train"].items() if asked.leakage != "drop" or t not in held})
    if not left:
        with pytest.raises(DataError, match="no training prompt"):
            settle(sides, found, asked)
        return
    taken = set(left) if asked.size is None else drawn(left, asked.size, asked.seed)
    fates, _ = settle(sides, found, asked)
    for row, fate in enumerate(fates):
        text, training = texts[row], sides[row] == "train"
        if gone.get(row) == DUPLICATE_ID:
            assert fate == DUPLICATE_ID
        elif training and asked.leakage == "drop" and text in held:
            assert fate == ALSO_HELDOUT
        elif text not in (taken if training else held):
            assert fate == LEFT_OUT
        else:
            assert fate == (gone.get(row) or (TRAIN if training else HELDOUT))


def test_no_row_gives_no_fate():
    asked = Wishes(0.2, None, "normalised", "refuse", 0)
    with pytest.raises(DataError):
        settle([], [], asked)


def test_many_keys_lie_on_disk_and_come_back_in_order():
    keys = [splits.exact_key(str(i)) for i in range(300_000)]
    with Partition() as made:
        for key in [*keys, *keys[:1000]]:
            made.add("", key, None, None)
        fates, _ = made.settle(Wishes(1000, None, "normalised", "refuse", 0), "here")
    assert (fates[-1000:] == DUPLICATE).all()
    held = {key for key, fate in zip(keys, fates, strict=False) if fate == HELDOUT}
    assert held == set(sorted(keys)[:1000])
