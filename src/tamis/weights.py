"""Weights of two models of the same shape, put together in weight space. Pure, on state dicts.

Row 7 (OffsetBias, Park et al. 2024, arXiv 2407.06551): a reward model tuned on more data is merged with its base.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from tamis.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FLAT = 1e-6
"""Sine of the angle between two tensors below which they are merged linearly."""


def merge_weights(
    a: "Mapping[str, Tensor]", b: "Mapping[str, Tensor]", t: float = 0.5, how: Literal["slerp", "linear"] = "slerp"
) -> "dict[str, Tensor]":
    """Return the state dict between `a` (t = 0) and `b` (t = 1), tensor by tensor, each of the dtype that it has in `a`.

    linear: (1 - t) a + t b. slerp: [sin((1 - t) w) a + sin(t w) b] / sin w, w the angle between the flattened tensors, and
    linear where sin w < 1e-6 or one is all zero. Computed in float64. Integer tensors (counters) must be equal and stay.

    Raises ConfigError for other names or shapes, integers that differ, a t outside [0, 1] and another `how`.
    """
    if not 0 <= t <= 1:
        raise ConfigError(f"t is {t}; it must lie in [0, 1]", hint="0 is the first model, 1 the second.")
    if how not in ("slerp", "linear"):
        raise ConfigError(f"unknown way to merge '{how}'", hint="Known: slerp, linear.")
    lacking = sorted(a.keys() ^ b.keys())
    if lacking:
        raise ConfigError(
            f"only one of the models has the weights '{lacking[0]}' ({len(lacking)} such)",
            hint="Merge models of one kind.",
        )
    return {name: _merged(name, a[name], b[name], t, how == "slerp") for name in a}


def _merged(name: str, a: "Tensor", b: "Tensor", t: float, spherical: bool) -> "Tensor":
    import torch

    if a.shape != b.shape:
        raise ConfigError(f"shapes {tuple(a.shape)} and {tuple(b.shape)} cannot be merged", where=name)
    if not a.is_floating_point():
        if not torch.equal(a, b):
            raise ConfigError("the models hold different whole numbers here, which cannot be merged", where=name)
        return a.clone()
    first, second = a.double(), b.double()
    shares = (1 - t, t)
    length = float(first.norm() * second.norm())
    if spherical and length:
        angle = torch.acos(((first * second).sum() / length).clamp(-1, 1))
        sine = torch.sin(angle)
        if sine >= FLAT:
            shares = (float(torch.sin((1 - t) * angle) / sine), float(torch.sin(t * angle) / sine))
    return (shares[0] * first + shares[1] * second).to(a.dtype)
