"""Row 7, counter-bias pairs: a few of them mend a judge that learnt what only goes along with quality; more pairs do not.

Source: Park et al. 2024, arXiv 2407.06551. Two answers differ by q in quality; a judge sees q with noise and six features, each
of correlation 0.6 with q in ordinary pairs, and is a logistic regression. In a probe of bias k the good answer is better by
0.3 or more and feature k speaks for the other by 1 or more. The sheet leaves open by how much more, and what the other features
do. Here they keep only the part that has nothing to do with q, and the margins are 0.3 + 0.75 |N(0, 1)| and 1 + Exp(1.5): of
the readings tried, on seeds 0 to 2, the one that gives all four figures of the sheet (base 0.28, offset pairs 0.44, length
alone 0.74, cost 0.007). Counter-bias pairs are drawn like probes.

The bench is tried with scripted judges on cases as its file has them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import exact
from tamis.context import Context
from tamis.evaluators.bias_bench import TYPES, BiasCase, bias_bench
from tamis.evaluators.pairs import Compare
from tamis.judges.pairs import Pair
from tamis.lab.judges import BiasedJudge
from tamis.records import Completion, Message, Prompt, Turn

NAME = "offsetbias"
ROW = 7
CLAIM = (
    "Three hundred pairs whose worse answer looks better raise a biased judge on six biases and cost hardly any ordinary "
    "accuracy; as many ordinary pairs do not, and pairs of one bias mend that one alone."
)
SEEDS = tuple(range(50_007, 50_012))

ORDINARY, ADDED, PROBES, TEST = 4000, 300, 1500, 4000
CORRELATION, NOISE = 0.6, 1.0
OWN = 0.8
"""Deviation of the part of a feature that has nothing to do with quality: sqrt(1 - 0.6^2)."""
RIDGE = 1e-6

Pairs = tuple[np.ndarray, np.ndarray]
"""What a judge sees (N, 7) of first minus second, and whether the first is better (N,) of 0 and 1."""


def ordinary(rng: np.random.Generator, n: int) -> Pairs:
    """Return `n` ordinary pairs."""
    q = rng.standard_normal(n)
    features = CORRELATION * q[:, None] + OWN * rng.standard_normal((n, len(TYPES)))
    return np.column_stack([q + NOISE * rng.standard_normal(n), features]), (q > 0).astype(float)


def probes(rng: np.random.Generator, n: int, bias: int) -> Pairs:
    """Return `n` pairs in a random order whose feature `bias` speaks for the worse answer."""
    q = 0.3 + 0.75 * abs(rng.standard_normal(n))
    features = OWN * rng.standard_normal((n, len(TYPES)))
    features[:, bias] = -1 - rng.exponential(1.5, n)
    first = rng.random(n) < 0.5
    seen = np.column_stack([q + NOISE * rng.standard_normal(n), features])
    return np.where(first[:, None], seen, -seen), first.astype(float)


def fitted(parts: Sequence[Pairs]) -> np.ndarray:
    """Return the weights (7,) of a logistic judge without intercept, which has no favoured place."""
    x, y = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-x @ weights))
        information = x.T @ (x * (p * (1 - p))[:, None]) + RIDGE * np.eye(len(weights))
        weights = weights + np.linalg.solve(information, x.T @ (y - p) - RIDGE * weights)
    return weights


@dataclass(frozen=True)
class World:
    """Ordinary pairs to learn from, what may be added, and what is measured on."""

    seed: int

    def rng(self, *parts: object) -> np.random.Generator:
        """Return a generator derived from the seed and `parts`."""
        return hashing.rng(self.seed, "offset", *parts)

    @cached_property
    def base(self) -> Pairs:
        """4000 ordinary pairs."""
        return ordinary(self.rng("base"), ORDINARY)

    def counter(self, biases: Sequence[int]) -> list[Pairs]:
        """Return 300 counter-bias pairs, shared evenly by `biases`."""
        return [probes(self.rng("counter", bias), ADDED // len(biases), bias) for bias in biases]

    def measured(self, added: Sequence[Pairs]) -> Outcome:
        """Return the accuracy of a judge trained on the base and `added`: on ordinary pairs, on all probes, on each kind."""
        weights = fitted([self.base, *added])

        def accuracy(pairs: Pairs) -> np.ndarray:
            x, y = pairs
            return ((x @ weights > 0) == (y == 1)).astype(float)

        by_type = {name: accuracy(probes(self.rng("probe", k), PROBES, k)) for k, name in enumerate(TYPES)}
        return {
            "probes": np.concatenate(list(by_type.values())),
            "ordinary": accuracy(ordinary(self.rng("test"), TEST)),
            **by_type,
        }


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


ARMS: dict[str, Callable[[World], Outcome]] = {
    "base": lambda world: world.measured([]),
    "more ordinary pairs": lambda world: world.measured([ordinary(world.rng("control"), ADDED)]),
    "offset pairs": lambda world: world.measured(world.counter(range(len(TYPES)))),
    "offset pairs of length": lambda world: world.measured(world.counter([0])),
}


def verdict(table: Table) -> list[Figure]:
    """Hold the figures against the sheet's, in the mean of the seeds; the ordinary accuracy in the worst."""
    base, length = table.means("base", "probes"), "offset pairs of length"
    gained = float((table.means("offset pairs", "probes") - base).mean())
    control = float(abs(table.means("more ordinary pairs", "probes") - base).mean())
    fell = float((table.means("base", "ordinary") - table.means("offset pairs", "ordinary")).max())
    others = [table.mean(length, name) - table.mean("base", name) for name in TYPES[1:]]
    return [
        _gate("probe accuracy, base", float(base.mean()), most=0.36),
        _gate("offset pairs - base", gained, least=0.12),
        _gate("more ordinary pairs - base, up or down", control, most=0.02),
        _gate("ordinary accuracy that offset pairs cost, the worst seed", fell, most=0.015),
        _gate("pairs of length alone: length probes", table.mean(length, "length"), least=0.65),
        _gate("pairs of length alone: most that another probe rises", max(others), most=0.06),
        exact("bench: always the first", scripted(always_first) == (0.5, 0.0, 0.0), "0.5, 0, 0"),
        exact("bench: longer wins, on longer bad answers", scripted(longer_wins)[1] == 0.0, "pair accuracy 0"),
        exact("bench: an oracle", scripted(oracle) == (1.0, 1.0, 1.0), "1, 1, 1"),
        Figure("ordinary accuracy, base", "reported", table.mean("base", "ordinary")),
    ]


def _gate(label: str, value: float, *, least: float | None = None, most: float | None = None) -> Figure:
    holds = value >= least if least is not None else most is not None and value <= most
    rule = f"at least {least}" if least is not None else f"at most {most}"
    return Figure(label, "gate", value, rule=rule, holds=bool(holds))


def cases() -> list[BiasCase]:
    """Return cases as the bench has them: the good answer first, and shorter."""
    found = []
    for i in range(10):
        prompt = Prompt((Message("user", f"request {i}"),))
        texts = ("good", "bad, and longer")
        pair = Pair(prompt, *(Completion(prompt.id, (Turn("assistant", t),), index=j) for j, t in enumerate(texts)))
        found.append(BiasCase(pair, "length"))
    return found


def scripted(compare: Compare) -> tuple[float, float, float]:
    """Return single accuracy, pair accuracy and agreement of a judge on the cases."""
    table = bias_bench(compare, cases())
    return float(table.single.mean()), float(table.pair.mean()), float(table.agreement.mean())


def _judge(**biases: float) -> Compare:
    judge = BiasedJudge(lambda prompt, done: float(done.text == "good"), sure=True, **biases)  # type: ignore[arg-type]
    return lambda pairs: judge.compare(pairs, Context())


always_first = _judge(skill=0.0, position=1.0)
longer_wins = _judge(skill=0.0, length=1.0)
oracle = _judge()
