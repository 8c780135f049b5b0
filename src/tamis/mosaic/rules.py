"""What the rules of a mosaic do: orders of the responses, masks over the instructions, and how many rows a mosaic has.

An order maps instructions to a permutation of their indices, a mask to the indices that stay. Both are pure functions of
(instructions, rng). "Odd" and "even" count from 1. Of equals, the earlier instruction comes first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

Method = Callable[[Sequence[str], np.random.Generator], list[int]]
Strategy = Literal["format", "order", "mask"]
Version = Literal["both", "format", "order", "mask"]
Sizes = Literal["uniform", "fix", "max", "exponential", "pareto", "lognormal", "logistic"]

STRATEGIES: Mapping[str, tuple[Strategy, ...]] = {
    "both": ("format", "order", "mask"),
    "format": ("format",),
    "order": ("format", "order"),
    "mask": ("format", "mask"),
}
"""Strategies of each version, equally likely."""


def words(instruction: str) -> int:
    """Return the number of words, split at white space."""
    return len(instruction.split())


def _by(key: Callable[[str], Any], *, reverse: bool = False) -> Method:
    def order(instructions: Sequence[str], rng: np.random.Generator) -> list[int]:
        return sorted(range(len(instructions)), key=lambda i: key(instructions[i]), reverse=reverse)

    return order


def _fixed(instructions: Sequence[str], rng: np.random.Generator) -> list[int]:
    return rng.permutation(len(instructions)).tolist()


def _every_second(*starts: int) -> Method:
    def chosen(instructions: Sequence[str], rng: np.random.Generator) -> list[int]:
        return [i for start in starts for i in range(start, len(instructions), 2)]

    return chosen


def _reverse(instructions: Sequence[str], rng: np.random.Generator) -> list[int]:
    return list(range(len(instructions)))[::-1]


ORDERS: Mapping[str, Method] = {
    "fixed": _fixed,
    "reverse": _reverse,
    "alphabetical": _by(str.casefold),
    "reverse_alphabetical": _by(str.casefold, reverse=True),
    "fewest_words": _by(words),
    "most_words": _by(words, reverse=True),
    "fewest_characters": _by(len),
    "most_characters": _by(len, reverse=True),
    "odd_first": _every_second(0, 1),
    "even_first": _every_second(1, 0),
}
"""In which order the responses come; each returns a permutation of 0..n-1."""


def _without(first: Method) -> Method:
    """Leave out r = max(floor(n * rho), 1) instructions, the first of an order; rho ~ U(0.1, 0.5)."""

    def kept(instructions: Sequence[str], rng: np.random.Generator) -> list[int]:
        n = len(instructions)
        ignored = set(first(instructions, rng)[: max(int(n * rng.uniform(0.1, 0.5)), 1)])
        return [i for i in range(n) if i not in ignored]

    return kept


MASKS: Mapping[str, Method] = {
    "fixed": _without(_fixed),
    "longest": _without(_by(words, reverse=True)),
    "shortest": _without(_by(words)),
    "odd": _every_second(1),
    "even": _every_second(0),
}
"""Which instructions stay when some are ignored (at least one does, of two or more); the key names what is ignored."""

_TAILS: Mapping[str, Callable[[np.random.Generator], float]] = {
    "exponential": lambda rng: rng.exponential(),
    "pareto": lambda rng: rng.pareto(1.0),
    "lognormal": lambda rng: rng.lognormal(),
    "logistic": lambda rng: rng.logistic(scale=2.0),
}


def draw_size(sizes: Sizes, most: int, rng: np.random.Generator) -> int | None:
    """Return how many rows a mosaic wants; None: as many as fit ("max").

    uniform: U{1..most}. fix: most. Others: most - int(z), z >= 0 from an exponential(1), a Pareto(1) less 1, a lognormal(0, 1)
    or a logistic of scale 2 (z > 0), drawn again until z < most.
    """
    if sizes == "max":
        return None
    if sizes == "fix":
        return most
    if sizes == "uniform":
        return int(rng.integers(1, most + 1))
    while True:
        z = _TAILS[sizes](rng)
        if 0 < z < most:
            return most - int(z)
