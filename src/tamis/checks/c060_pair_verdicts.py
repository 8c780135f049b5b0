"""Row 60, pairwise verdicts and the knockout: the closed forms, single verdicts at equal errors, and a trained nano judge.

Source: Liu et al. 2025, arXiv 2501.13007. A scripted judge gives each of two candidates its own label with set error rates.
One verdict per candidate ("pointwise") takes a random one of those called right; two verdicts per candidate cost what a
knockout costs. The trained part asks whether the context of a pair lowers the error of a label at all: two nano models of
the same size learn from as many labelled solutions, in pairs or alone, to write the right result and then their labels
(from labels alone neither learns anything in this time). It has no gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import reported
from tamis.evaluators import stats
from tamis.lab import nano
from tamis.lab.worlds import ModularSums
from tamis.selectors.knockout import Match, knockout
from tamis.selectors.knockout import Outcome as Said

if TYPE_CHECKING:
    from tamis.lab.nano import Pair

NAME = "pair-verdicts"
ROW = 60
CLAIM = (
    "A knockout with a pairwise judge of error e per label finds the right candidate as the closed form says, and more often "
    "than one verdict per candidate of the same error, with one right of 16 and of 64. At 16, two verdicts per candidate are "
    "better still where errors are independent: a pair judge is worth it where the pair lowers the error."
)
SEEDS = (50_060, 50_061, 50_062)

RUNS = 3400
"""Tournaments per seed and arm: 10,200 over the seeds."""
ERROR, SHARE = 0.2, 0.3
SWEEP = tuple(round(0.05 * i, 2) for i in range(1, 9))
SINGLE_ERROR = 0.3

WORLD = ModularSums(terms=2)
STEPS, LR, LABELS_PER_STEP, PAIRS, PROBLEMS, CANDIDATES = 500, 2e-3, 64, 600, 200, 8


def flipped(truth: np.ndarray, error: float, rng: np.random.Generator) -> np.ndarray:
    """Return labels that are the truth except for a share `error`, false positives and false negatives alike."""
    return truth != (rng.random(truth.shape) < error)


def won(truth: np.ndarray, error: float, rng: np.random.Generator) -> np.ndarray:
    """Return whether a knockout ends at a right candidate, (R,) float64; `truth` (R, N) bool, no teams, ties by chance."""

    def judge(matches: list[Match]) -> list[Said]:
        at = np.array(matches)
        labels = flipped(truth[at[:, :1], at[:, 1:]], error, rng)
        return [(a, b) for a, b in labels.tolist()]

    rngs = [np.random.default_rng(s) for s in rng.integers(2**63, size=len(truth))]
    brackets = knockout([[None] * truth.shape[1]] * len(truth), judge, rngs)
    return np.array([truth[i, b.winner()] for i, b in enumerate(brackets)], dtype=np.float64)


def pointwise(truth: np.ndarray, error: float, rng: np.random.Generator, verdicts: int = 1) -> np.ndarray:
    """Return whether the candidate called right most often (ties by chance) is right, (R,) float64."""
    votes = sum(flipped(truth, error, rng).astype(float) for _ in range(verdicts))
    best = (votes + rng.random(truth.shape)).argmax(axis=1)
    return truth[np.arange(len(truth)), best].astype(np.float64)


def knockout_theory(share: float, rounds: int, error: float) -> float:
    """Return the share of right winners among 2^rounds independent candidates, a share `share` of them right."""
    for _ in range(rounds):
        share = share**2 + 2 * share * (1 - share) * (1 - error)
    return share


def pointwise_theory(n: int, error: float) -> float:
    """Return how often one verdict per candidate finds the only right one of `n`."""
    return (1 - error) * (1 - (1 - error) ** n) / (n * error) + error * (1 - error) ** (n - 1) / n


@dataclass(frozen=True)
class World:
    """Candidates of known truth, and solutions of sums of which some have a wrong step."""

    seed: int

    def one_of(self, n: int) -> np.ndarray:
        """Return (RUNS, n) bool with one right candidate a row, each in a random place."""
        return np.arange(n) == hashing.rng(self.seed, "place", n).integers(n, size=RUNS)[:, None]

    def independent(self) -> np.ndarray:
        """Return (RUNS, 16) bool, a share 0.3 right."""
        return hashing.rng(self.seed, "independent").random((RUNS, 16)) < SHARE

    @cached_property
    def nano(self) -> "Nano":
        """The two trained judges."""
        return Nano(self.seed)


class Nano:
    """A pair judge and a single judge of the same size, trained on as many labelled solutions."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.pair = self._trained(self._pairs, LABELS_PER_STEP // 2)
        self.single = self._trained(self._singles, LABELS_PER_STEP)

    def solutions(
        self, rng: np.random.Generator, problems: Sequence[str], share: float = 0.5
    ) -> tuple[list[str], np.ndarray]:
        """Return a solution of each problem and whether it is right; a wrong one has one wrong step."""
        n = len(problems)
        right = rng.random(n) < share
        shifts = np.zeros((n, WORLD.terms - 1), dtype=np.int64)
        shifts[np.arange(n), rng.integers(WORLD.terms - 1, size=n)] = rng.integers(1, WORLD.modulus, size=n)
        return WORLD.solutions(problems, WORLD.orders(rng, n), np.where(right[:, None], 0, shifts)), right

    def _pairs(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        problems = WORLD.problems(rng, n)
        (a, a_right), (b, b_right) = self.solutions(rng, problems), self.solutions(rng, problems)
        labels = zip(problems, a_right.tolist(), b_right.tolist(), strict=True)
        answers = [WORLD.answer(p) + "WR"[x] + "WR"[y] for p, x, y in labels]
        return [f"{p}{x};{y}?" for p, x, y in zip(problems, a, b, strict=True)], answers

    def _singles(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        problems = WORLD.problems(rng, n)
        texts, right = self.solutions(rng, problems)
        return [f"{p}{x}?" for p, x in zip(problems, texts, strict=True)], [
            WORLD.answer(p) + "WR"[x] for p, x in zip(problems, right.tolist(), strict=True)
        ]

    def _trained(self, draw: nano.Draw, batch: int) -> "Pair":
        module, tokenizer = nano.nano_module(WORLD.alphabet + ";?RW", 2, 64, self.seed)
        done = {"check_every": STEPS, "max_steps": STEPS}
        nano.pretrain(module, tokenizer, draw, lambda _: 1.0, 1.0, seed=self.seed, lr=LR, batch=batch, **done)
        return module.eval(), tokenizer

    def label_pairs(self, pairs: Sequence[tuple[str, str, str]]) -> list[Said]:
        """Return the pair judge's two labels of each (problem, first, second)."""
        texts = nano.greedy_texts(*self.pair, [f"{p}{a};{b}?" for p, a, b in pairs], 3)
        return [(t[1] == "R", t[2] == "R") if len(t) == 3 and set(t[1:]) <= {"R", "W"} else None for t in texts]

    def scores(self, problems: Sequence[str], solutions: Sequence[str]) -> np.ndarray:
        """Return the single judge's log-odds that each solution is right, (N,) float64."""
        import torch

        module, tokenizer = self.single
        right, wrong = tokenizer("RW", add_special_tokens=False)["input_ids"]
        shown = [f"{p}{s}?" for p, s in zip(problems, solutions, strict=True)]
        thought = [text + said for text, said in zip(shown, nano.greedy_texts(*self.single, shown, 1), strict=True)]
        ids = tokenizer(thought, add_special_tokens=False)
        with torch.inference_mode():
            logits = module(input_ids=torch.tensor(ids["input_ids"])).logits[:, -1]
        return (logits[:, right] - logits[:, wrong]).double().numpy()

    def labels(self) -> dict[str, Outcome]:
        """Return errors per label and right choices of both judges, on the same fresh pairs."""
        rng = hashing.rng(self.seed, "fresh pairs")
        problems = WORLD.problems(rng, PAIRS)
        (a, a_right), (b, b_right) = self.solutions(rng, problems), self.solutions(rng, problems)
        said = self.label_pairs(list(zip(problems, a, b, strict=True)))
        in_pairs = np.array([(False, False) if s is None else s for s in said])
        scores = np.stack([self.scores(problems, a), self.scores(problems, b)], axis=1)
        truth = np.stack([a_right, b_right], axis=1)
        mixed = a_right != b_right
        lead = (in_pairs[:, 0].astype(float) - in_pairs[:, 1]) * np.where(a_right, 1, -1)
        forced = (scores[:, 0] - scores[:, 1]) * np.where(a_right, 1, -1)
        return {
            "pairs": {"error per label": (in_pairs != truth).mean(), "right choice": (0.5 + lead[mixed] / 2).mean()},
            "single": {"error per label": ((scores > 0) != truth).mean(), "right choice": (forced[mixed] > 0).mean()},
        }

    def best_of(self) -> dict[str, np.ndarray]:
        """Return whether each judge finds a right one of 8 candidates, on problems that have one, (P,) float64."""
        rng = hashing.rng(self.seed, "best of")
        problems = WORLD.problems(rng, PROBLEMS)
        repeated = [p for p in problems for _ in range(CANDIDATES)]
        texts, right = self.solutions(rng, repeated, SHARE)
        truth = right.reshape(PROBLEMS, CANDIDATES)

        def judge(matches: list[Match]) -> list[Said]:
            shown = [(problems[i], texts[i * CANDIDATES + a], texts[i * CANDIDATES + b]) for i, a, b in matches]
            return self.label_pairs(shown)

        rngs = [hashing.rng(self.seed, "bracket", i) for i in range(PROBLEMS)]
        winners = [b.winner() for b in knockout([[None] * CANDIDATES] * PROBLEMS, judge, rngs)]
        highest = self.scores(repeated, texts).reshape(truth.shape).argmax(axis=1)
        kept, rows = truth.any(axis=1), np.arange(PROBLEMS)
        return {"pairs": truth[rows, winners][kept].astype(float), "single": truth[rows, highest][kept].astype(float)}


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


def _measured(how: str, n: int, error: float, world: World) -> Outcome:
    truth = world.one_of(n) if n else world.independent()
    rng = hashing.rng(world.seed, how, n, error)
    if how == "knockout":
        return {"score": won(truth, error, rng)}
    return {"score": pointwise(truth, error, rng, verdicts=2 if how == "two verdicts" else 1)}


def _trained(kind: str, world: World) -> Outcome:
    return {"score": world.nano.best_of()[kind], **world.nano.labels()[kind]}


ARMS = {
    "knockout, 16 independent": partial(_measured, "knockout", 0, ERROR),
    **{
        f"{how}, one of {n}": partial(_measured, how, n, ERROR)
        for n in (16, 64)
        for how in ("knockout", "one verdict", "two verdicts")
    },
    **{f"knockout, error {e}": partial(_measured, "knockout", 16, e) for e in SWEEP},
    f"one verdict, error {SINGLE_ERROR}": partial(_measured, "one verdict", 16, SINGLE_ERROR),
    "trained on pairs": partial(_trained, "pairs"),
    "trained on single solutions": partial(_trained, "single"),
}


def verdict(table: Table) -> list[Figure]:
    """Hold the figures against the closed forms and the baselines."""
    agreed = [
        _agrees(table, "knockout, 16 independent", knockout_theory(SHARE, 4, ERROR)),
        _agrees(table, "knockout, one of 16", (1 - ERROR) ** 4),
        _agrees(table, "knockout, one of 64", (1 - ERROR) ** 6),
        _agrees(table, "one verdict, one of 16", pointwise_theory(16, ERROR)),
        _agrees(table, "one verdict, one of 64", pointwise_theory(64, ERROR)),
    ]
    beats = [
        table.gate_above(f"one of {n}: knockout - one verdict", f"knockout, one of {n}", f"one verdict, one of {n}")
        for n in (16, 64)
    ]
    twice = [
        reported(table, f"one of {n}: knockout - two verdicts", f"knockout, one of {n}", f"two verdicts, one of {n}")
        for n in (16, 64)
    ]
    pairs, single = "trained on pairs", "trained on single solutions"
    return [
        *agreed,
        *beats,
        *twice,
        Figure("pair error at which the knockout falls to one verdict of error 0.3", "reported", crossing(table)),
        Figure("nano: error per label, pairs", "reported", table.mean(pairs, "error per label")),
        Figure("nano: error per label, single", "reported", table.mean(single, "error per label")),
        Figure("nano: right choice of two, pairs", "reported", table.mean(pairs, "right choice")),
        Figure("nano: right choice of two, single", "reported", table.mean(single, "right choice")),
        reported(table, "nano: best of 8, knockout - highest single score", pairs, single),
    ]


def _agrees(table: Table, arm: str, theory: float) -> Figure:
    values = np.concatenate(table.values(arm))
    error = float(np.sqrt(theory * (1 - theory) / len(values)))
    mean, low, high = stats.wilson(values.sum(), len(values))
    rule = f"{theory:.4f} within 4 s.e. ({4 * error:.4f})"
    return Figure(arm, "gate", mean, low, high, rule, bool(abs(mean - theory) < 4 * error))


def crossing(table: Table) -> float:
    """Return the pair error, between two of the sweep, at which the knockout is as good as one verdict of error 0.3."""
    level = table.mean(f"one verdict, error {SINGLE_ERROR}")
    heights = [table.mean(f"knockout, error {e}") - level for e in SWEEP]
    for (e, above), (after, below) in pairwise(zip(SWEEP, heights, strict=True)):
        if above > 0 >= below:
            return e + (after - e) * above / (above - below)
    return float("nan")
