"""Worlds with a known truth: seeded generators of problems and solutions, and exact verifiers.

Sums of residues, written out step by step: the problem "1+5+4=" (modulus 6) has the solution "1+5=0,0+4=4,#4", and as many
more as there are orders of its operands. Text is one character per token for the models of `tamis.lab.nano`. Generators
are vectorised; verifiers read a text as it stands and never evaluate it.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tamis.errors import ConfigError, DataError

STEP = re.compile(r"([0-9])\+([0-9])=([0-9]),")
SOLUTION = re.compile(rf"(?:{STEP.pattern})*#([0-9])")


class World(Protocol):
    """What pre-training and checks need of a world: its characters, its texts and its verifier."""

    @property
    def alphabet(self) -> str:
        """All characters of problems and solutions, each once."""
        ...

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems and a solution of each, drawn from the world's own law."""
        ...

    def all_steps_right(self, problem: str, text: str) -> bool:
        """Whether `text` is a complete solution of `problem` without any wrong step."""
        ...


@dataclass(frozen=True)
class ModularSums:
    """Sums of `terms` residues of `modulus` (2 to 10, one digit each), solved step by step in any operand order.

    Row 1's world: "a+b+c+d=" with steps "s+x=t," and the answer "#t". Raises ConfigError for sizes out of range.
    """

    modulus: int = 6
    terms: int = 4

    def __post_init__(self) -> None:
        if not 2 <= self.modulus <= 10 or not 2 <= self.terms <= 12:
            raise ConfigError(
                f"modular sums need a modulus of 2 to 10 and 2 to 12 terms, not modulus {self.modulus} and {self.terms} terms"
            )

    @property
    def alphabet(self) -> str:
        """The digits below the modulus and the signs + = , #."""
        return "0123456789"[: self.modulus] + "+=,#"

    @property
    def solution_length(self) -> int:
        """Characters of every solution."""
        return 6 * (self.terms - 1) + 2

    def problem(self, rng: np.random.Generator) -> str:
        """Return one problem, uniform over all modulus^terms."""
        return self.problems(rng, 1)[0]

    def problems(self, rng: np.random.Generator, n: int) -> list[str]:
        """Return `n` independent problems, uniform over all modulus^terms."""
        return self.write(rng.integers(0, self.modulus, (n, self.terms)))

    def write(self, operands: np.ndarray) -> list[str]:
        """Return the problems of integer operands (n, terms)."""
        rows = np.full((len(operands), 2 * self.terms), ord("+"), dtype=np.uint8)
        rows[:, ::2] = ord("0") + operands
        rows[:, -1] = ord("=")
        return _strings(rows)

    def operands(self, problem: str) -> tuple[int, ...]:
        """Return the operands of a problem. Raises DataError when the text is none of this world's problems."""
        parts = problem[:-1].split("+")
        known = set("0123456789"[: self.modulus])
        if not problem.endswith("=") or len(parts) != self.terms or not known.issuperset(parts):
            raise DataError(
                f"{problem!r} is not a sum of {self.terms} residues of {self.modulus}",
                hint=f"A problem looks like {self.write(np.arange(self.terms)[None] % self.modulus)[0]!r}.",
            )
        return tuple(map(int, parts))

    def answer(self, problem: str) -> str:
        """Return the sum modulo `modulus` as one digit."""
        return str(sum(self.operands(problem)) % self.modulus)

    def solution(self, problem: str, order: Sequence[int] | None = None) -> str:
        """Return the right solution that takes the operands in `order` (a permutation; None: left to right)."""
        if order is not None and sorted(order) != list(range(self.terms)):
            raise ConfigError(f"order must be a permutation of 0..{self.terms - 1}, not {list(order)}")
        orders = np.arange(self.terms) if order is None else np.array(order)
        return self.solutions([problem], orders[None])[0]

    def solutions(self, problems: Sequence[str], orders: np.ndarray, shifts: np.ndarray | None = None) -> list[str]:
        """Return one solution per problem, operands taken in `orders` (n, terms).

        `shifts` (n, terms - 1) is added to each step's result: a shift that is not 0 modulo `modulus` makes the step wrong,
        and later steps go on from its result.
        """
        values = np.array([self.operands(problem) for problem in problems], dtype=np.int64).reshape(-1, self.terms)
        taken = np.take_along_axis(values, orders, axis=1)
        moved = taken.copy()
        if shifts is not None:
            moved[:, 1:] += shifts
        totals = np.cumsum(moved, axis=1) % self.modulus
        rows = np.tile(np.frombuffer(b"s+x=t," * (self.terms - 1) + b"#t", dtype=np.uint8), (len(values), 1))
        rows[:, 0:-2:6] = ord("0") + totals[:, :-1]
        rows[:, 2:-2:6] = ord("0") + taken[:, 1:]
        rows[:, 4:-2:6] = ord("0") + totals[:, 1:]
        rows[:, -1] = ord("0") + totals[:, -1]
        return _strings(rows)

    def orders(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """Return `n` independent uniform operand orders, int64 (n, terms)."""
        return rng.permuted(np.tile(np.arange(self.terms), (n, 1)), axis=1)

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems and a right solution of each in a random operand order."""
        problems = self.problems(rng, n)
        return problems, self.solutions(problems, self.orders(rng, n))

    def all_steps_right(self, problem: str, text: str) -> bool:
        """Whether `text` is exactly a solution: every step right and chained, each operand used once, the answer theirs."""
        if not SOLUTION.fullmatch(text):
            return False
        steps = [tuple(map(int, step)) for step in STEP.findall(text)]
        if len(steps) != self.terms - 1:
            return False
        used = sorted([steps[0][0], *(x for _, x, _ in steps)])
        chained = all(step[2] == after[0] for step, after in itertools.pairwise(steps))
        right = all((s + x) % self.modulus == t for s, x, t in steps)
        return right and chained and used == sorted(self.operands(problem)) and int(text[-1]) == steps[-1][2]

    def right_answer(self, problem: str, text: str) -> bool:
        """Whether the last "#t" of `text` gives the right answer, whatever the steps."""
        found = re.findall(r"#([0-9]+)", text)
        return bool(found) and found[-1] == self.answer(problem)

    def equations(self, text: str) -> list[str]:
        """Return the steps "s+x=t" that `text` states, in order, right or wrong."""
        return [f"{s}+{x}={t}" for s, x, t in STEP.findall(text)]

    def distinct_key(self, text: str) -> str:
        """Return the ordered equations joined by "|": what makes two solutions the same path (row 1, step 4)."""
        return "|".join(self.equations(text))


@dataclass(frozen=True)
class StyledSums(ModularSums):
    """Modular sums whose solutions open with a style: "A" (careful) or "B" (careless); row 93's world.

    `share` of the texts are of style A. A text of style A has one wrong step with probability `error_a`, one of style B with
    `error_b`; which step is uniform, and later steps go on from its result.
    """

    share: float = 0.65
    error_a: float = 0.1
    error_b: float = 0.5

    @property
    def alphabet(self) -> str:
        """The characters of modular sums and the two styles."""
        return super().alphabet + "AB"

    @property
    def solution_length(self) -> int:
        """Characters of every solution."""
        return super().solution_length + 1

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems and a text of each: style, then steps in a random order, one of them wrong now and then."""
        problems = self.problems(rng, n)
        careful = rng.random(n) < self.share
        wrong = rng.random(n) < np.where(careful, self.error_a, self.error_b)
        shifts = np.zeros((n, self.terms - 1), dtype=np.int64)
        shifts[np.arange(n), rng.integers(0, self.terms - 1, n)] = rng.integers(1, self.modulus, n) * wrong
        bodies = self.solutions(problems, self.orders(rng, n), shifts)
        return problems, ["BA"[a] + body for a, body in zip(careful.tolist(), bodies, strict=True)]

    def style(self, text: str) -> str:
        """Return "A", "B", or "" for a text of neither style."""
        return text[:1] if text[:1] in ("A", "B") else ""

    def all_steps_right(self, problem: str, text: str) -> bool:
        """Whether `text` is a style followed by exactly a right solution."""
        return bool(self.style(text)) and super().all_steps_right(problem, text[1:])


@dataclass(frozen=True)
class SumLevels:
    """Modular sums of several visible difficulties, mixed evenly; row 25's world: 2, 4 and 6 additions.

    `terms` gives the operands of each level. Problems of different levels differ in length.
    """

    modulus: int = 6
    terms: tuple[int, ...] = (3, 5, 7)

    @property
    def levels(self) -> tuple[ModularSums, ...]:
        """The world of each level, in the order of `terms`."""
        return tuple(ModularSums(self.modulus, terms) for terms in self.terms)

    @property
    def alphabet(self) -> str:
        """The characters of modular sums."""
        return self.levels[0].alphabet

    def level(self, problem: str) -> int:
        """Return the index of a problem's level. Raises DataError for a problem of no level."""
        try:
            return self.terms.index(problem.count("+") + 1)
        except ValueError:
            raise DataError(f"{problem!r} has none of the {self.terms} operands of this world's levels") from None

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems of uniformly drawn levels and a right solution of each in a random operand order."""
        drawn = rng.integers(0, len(self.terms), n)
        made = [
            iter(zip(*world.batch(rng, int((drawn == i).sum())), strict=True)) for i, world in enumerate(self.levels)
        ]
        pairs = [next(made[i]) for i in drawn]
        return [problem for problem, _ in pairs], [solution for _, solution in pairs]

    def answer(self, problem: str) -> str:
        """Return the sum modulo `modulus` as one digit."""
        return self.levels[self.level(problem)].answer(problem)

    def all_steps_right(self, problem: str, text: str) -> bool:
        """Whether `text` is exactly a solution of `problem` (see `ModularSums.all_steps_right`)."""
        return self.levels[self.level(problem)].all_steps_right(problem, text)


def _strings(rows: np.ndarray) -> list[str]:
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}")[:, 0].astype(str).tolist() if len(rows) else []
