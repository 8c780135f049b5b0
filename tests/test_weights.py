import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tamis.errors import ConfigError
from tamis.weights import merge_weights

shares = st.floats(0, 1)
tensors = st.integers(0, 2**31).map(lambda seed: torch.randn(3, 4, generator=torch.Generator().manual_seed(seed)))


def merged(a, b, t=0.5, how="slerp"):
    return merge_weights({"w": a}, {"w": b}, t, how)["w"]


@given(tensors, tensors, st.sampled_from(["slerp", "linear"]))
def test_the_ends_are_the_models(a, b, how):
    assert torch.allclose(merged(a, b, 0.0, how), a, atol=1e-6)
    assert torch.allclose(merged(a, b, 1.0, how), b, atol=1e-6)
    assert torch.allclose(merged(a, b, 0.3, how), merged(b, a, 0.7, how), atol=1e-6)


@given(tensors, tensors, shares)
def test_on_the_sphere_the_length_stays_and_the_angle_is_shared(a, b, t):
    a, b = a / a.norm(), b / b.norm()
    found = merged(a, b, t).double()
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)
    angle = math.acos(float((a.double() * b.double()).sum().clamp(-1, 1)))
    assert math.acos(min(1.0, float((a.double() * found).sum()))) == pytest.approx(t * angle, abs=2e-3)


def test_right_angles_by_hand():
    found = merged(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]))
    assert found.tolist() == pytest.approx([math.sqrt(2), math.sqrt(0.5)])
    assert merged(torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0]), 0.25, "linear").tolist() == [1.5, 0.25]


@pytest.mark.parametrize("b", [torch.tensor([2.0, 2.0]), torch.tensor([-1.0, -1.0]), torch.zeros(2)])
def test_flat_opposite_and_zero_tensors_are_merged_linearly(b):
    a = torch.ones(2)
    assert torch.allclose(merged(a, b, 0.25), 0.75 * a + 0.25 * b)


def test_dtypes_and_counters_stay():
    a, b = ({"w": torch.randn(4, dtype=torch.bfloat16), "n": torch.tensor(3)} for _ in range(2))
    found = merge_weights(a, b)
    assert (found["w"].dtype, found["n"].item()) == (torch.bfloat16, 3)
    found["n"] += 1
    assert a["n"] == 3


@pytest.mark.parametrize(
    ("a", "b", "options", "says"),
    [
        ({"w": torch.ones(1)}, {"v": torch.ones(1)}, {}, "has the weights 'v'"),
        ({"w": torch.ones(1)}, {"w": torch.ones(2)}, {}, "shapes"),
        ({"n": torch.tensor(1)}, {"n": torch.tensor(2)}, {}, "whole numbers"),
        ({}, {}, {"t": 1.5}, "t is 1.5"),
        ({}, {}, {"how": "cubic"}, "unknown way"),
    ],
)
def test_what_cannot_be_merged(a, b, options, says):
    with pytest.raises(ConfigError, match=says):
        merge_weights(a, b, **options)
