"""Rows put aside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import DataError
from tamis.tasks import spill
from tamis.tasks.spill import Spill

json_value = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.lists(json_value, max_size=12), st.integers(1, 4), st.sampled_from([1, 1 << 20]))
def test_values_come_back_in_order(values, together, in_memory):
    with pytest.MonkeyPatch.context() as patch, Spill() as made:
        patch.setattr(spill, "_TOGETHER", together)
        made._file._max_size = in_memory
        for value in values:
            made.add(value)
        assert list(made) == values
        assert list(made) == values


def test_a_full_disk_is_told_with_its_place():
    made = Spill()
    made._file = open("/dev/full", "wb")  # noqa: SIM115
    made.add("row")
    with made, pytest.raises(DataError, match="TMPDIR"):
        list(made)
