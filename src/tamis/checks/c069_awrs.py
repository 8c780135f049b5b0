"""Row 69, AWRS: tokens under a constraint with unbiased weights, at a cost that does not grow with the vocabulary.

Source: Lipkin et al. 2025, arXiv 2504.05410. Part "token" holds both estimators against an enumerated law; part "dead end"
holds SMC, and locally constrained decoding, against an enumerated posterior in which the likely beginning leads nowhere;
part "calls" counts constraint evaluations on a vocabulary of 50,000.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.constrained import AWRS, smc

NAME = "awrs"
ROW = 69
CLAIM = (
    "Adaptive weighted rejection gives every token the weight that makes its expectation the model's probability under the "
    "constraint; with these weights SMC comes near the true posterior where locally constrained decoding is led astray, and "
    "a token costs 1 + 1/z constraint evaluations where a share z of tokens is allowed, not one per token of the vocabulary."
)
SEEDS = (50_069, 50_070, 50_071)

DRAWS, SMALL, ALLOWED = 60_000, 12, 0.4
SYMBOLS, LENGTH = (0.55, 0.25, 0.15, 0.05), 6
PARTICLES, RUNS = 100, 200
VOCABULARY, COUNTED = 50_000, 200
SHARES = (0.9, 0.5, 0.1, 0.01)
A, B, C, D, END = range(5)

Method = Literal["recursive", "geometric"]


@dataclass(frozen=True)
class World:
    """The seed, and what part "token" draws from: probabilities and which tokens are allowed, the likeliest never."""

    seed: int

    def rng(self, *parts: Any) -> np.random.Generator:
        """Return a generator of its own for each arm."""
        return hashing.rng(self.seed, "awrs", *parts)

    @cached_property
    def token(self) -> tuple[np.ndarray, np.ndarray]:
        """Return p (12,) ~ Dirichlet(0.5) and allowed (12,) bool, at least one of them."""
        rng = self.rng("token")
        p = rng.dirichlet(np.full(SMALL, 0.5))
        while True:
            allowed = rng.random(SMALL) < ALLOWED
            allowed[p.argmax()] = False
            if allowed.any():
                return p, allowed


def token(w: World, method: Method) -> Outcome:
    """Draw 60,000 tokens; how far is the mean of w 1(x = t) from p(t) C(t), in standard errors?

    The standard error takes the second moment as no less than p(t) Z, which Jensen's inequality makes a lower bound of the
    true one: a token that was hardly drawn does not look certain.
    """
    p, allowed = w.token
    sampler = AWRS(lambda tokens: bool(allowed[tokens[-1]]), lambda tokens: bool(allowed[0]), (0,), method=method)
    rng = w.rng("draws", method)
    drawn = [sampler.draw(p, (), rng) for _ in range(DRAWS)]
    tokens, weights = np.array([d.token for d in drawn]), np.exp([d.log_weight for d in drawn])
    total = float(p[allowed].sum())
    first, second = (np.bincount(tokens, weights**power, SMALL) / DRAWS for power in (1, 2))
    error = np.sqrt((np.maximum(second, p * total) - p**2) / DRAWS)
    return {
        "largest deviation (s.e.)": float((np.abs(first - p) / error)[allowed].max()),
        "mean weight": float(weights.mean()),
        "Z": total,
        "_forbidden": float(first[~allowed].sum()),
        "calls": float(np.mean([d.n_calls for d in drawn])),
    }


class Symbols:
    """A model of independent symbols a, b, c, d that ends after six of them; its sessions give logits as any model's."""

    name = "symbols"

    def session(self, prompt_ids: Sequence[int]) -> Any:
        """Return a session of the empty text."""
        return _Session()


class _Session:
    def __init__(self) -> None:
        self.length, self.passes = 0, 1
        self._set(1)

    def extend(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        self.length, self.passes = self.length + 1, self.passes + len(parents)
        self._set(len(parents))

    def _set(self, rows: int) -> None:
        import torch

        going = [math.log(q) for q in SYMBOLS] + [-math.inf]
        self.logits = torch.tensor([going if self.length < LENGTH else [-math.inf] * 4 + [0.0]] * rows)


def completable(tokens: Sequence[int]) -> bool:
    """Whether a text begins so: first a and then only d, or first b or c and then no d."""
    if not tokens:
        return True
    first, rest = tokens[0], tokens[1:]
    fits = set(rest) <= {D} if first == A else first in (B, C) and D not in rest
    return fits and len(tokens) <= LENGTH


def complete(tokens: Sequence[int]) -> bool:
    """Whether a text is allowed."""
    return len(tokens) == LENGTH and completable(tokens)


def truth() -> dict[tuple[int, ...], float]:
    """Return the probability of every allowed text under the model: 487 texts, 0.30951 in all."""
    every = itertools.product(range(4), repeat=LENGTH)
    return {text: math.prod(SYMBOLS[s] for s in text) for text in every if complete(text)}


def dead_end(w: World, proper: bool) -> Outcome:
    """Run SMC 200 times; how far is the law of all weighted texts from the posterior?"""
    sampler = AWRS(completable, complete, (END,), proper_weights=proper)
    rng = w.rng("dead end", proper)
    runs = [smc(Symbols(), (), sampler, max_tokens=LENGTH + 1, rng=rng, n_particles=PARTICLES) for _ in range(RUNS)]
    posterior = truth()
    whole = sum(posterior.values())
    found = dict.fromkeys(posterior, 0.0)
    for run in runs:
        for tokens, weight in zip(run.contexts, np.exp(run.log_weights + run.log_ml), strict=True):
            if weight > 0:
                found[tokens[:-1]] += weight
    total = sum(found.values())
    return {
        "TV": sum(abs(found[t] / total - posterior[t] / whole) for t in posterior) / 2,
        "share of first a": sum(found[t] for t in posterior if t[0] == A) / total,
        "Z": np.exp([run.log_ml for run in runs]),
    }


class RandomSet:
    """Allows each token with probability `share`, decided when it is first asked for."""

    def __init__(self, rng: np.random.Generator, share: float) -> None:
        self.rng, self.share = rng, share
        self.allowed: dict[int, bool] = {}

    def __call__(self, tokens: Sequence[int]) -> bool:
        if tokens[-1] not in self.allowed:
            self.allowed[tokens[-1]] = bool(self.rng.random() < self.share)
        return self.allowed[tokens[-1]]


def calls(w: World, share: float, method: Method) -> Outcome:
    """Count the tests of 200 draws from p(t) ~ 1/t, a new random set of allowed tokens for each."""
    p = 1 / np.arange(1, VOCABULARY + 2)
    p[-1] = 0
    p /= p.sum()
    rng, luck = w.rng("draws", share, method), w.rng("sets", share, method)
    counts = []
    for _ in range(COUNTED):
        sampler = AWRS(RandomSet(luck, share), lambda tokens: False, (VOCABULARY,), method=method)
        counts.append(sampler.draw(p, (), rng).n_calls)
    return {"calls": np.array(counts, dtype=np.float64)}


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


ARMS: dict[str, Callable[[World], Outcome]] = {
    "token: recursive": partial(token, method="recursive"),
    "token: geometric": partial(token, method="geometric"),
    "dead end: SMC": partial(dead_end, proper=True),
    "dead end: locally constrained": partial(dead_end, proper=False),
    **{f"calls: recursive, {z:g} allowed": partial(calls, share=z, method="recursive") for z in SHARES},
    **{f"calls: geometric, {z:g} allowed": partial(calls, share=z, method="geometric") for z in SHARES},
}


def verdict(table: Table) -> list[Figure]:
    """Return the figures of all parts; where seeds are worlds of their own, the worst of them is held to the rule."""
    far = {m: table.means(f"token: {m}", "largest deviation (s.e.)").max() for m in ("recursive", "geometric")}
    refused = max(table.means(f"token: {m}", "_forbidden").max() for m in far)
    ratio = table.means("dead end: SMC", "TV") / table.means("dead end: locally constrained", "TV")
    most = _pooled(table, f"calls: recursive, {SHARES[-1]:g} allowed", "calls").mean
    return [
        *(_worst(f"token: {m}, largest deviation in s.e. of any token", value, "<", 4) for m, value in far.items()),
        _worst("token: weight of forbidden tokens", refused, "<=", 0),
        _worst("dead end: TV of SMC / TV of locally constrained", ratio.max(), "<", 0.5),
        _near("dead end: mean of exp(log_ml)", _pooled(table, "dead end: SMC", "Z"), sum(truth().values())),
        *(
            _near(f"calls: {z:g} allowed", _pooled(table, f"calls: recursive, {z:g} allowed", "calls"), 1 + 1 / z)
            for z in SHARES
        ),
        _worst(f"calls of one masking pass / calls, {SHARES[-1]:g} allowed", VOCABULARY / most, ">", 400),
        *(
            Figure(
                f"calls of the geometric estimator, {z:g} allowed",
                "reported",
                table.mean(f"calls: geometric, {z:g} allowed", "calls"),
            )
            for z in SHARES
        ),
    ]


def _pooled(table: Table, arm: str, name: str) -> Any:
    values = np.concatenate(table.values(arm, name))
    return SimpleNamespace(mean=float(values.mean()), error=float(values.std(ddof=1) / len(values) ** 0.5))


def _near(label: str, found: Any, expected: float) -> Figure:
    rule = f"{expected:.5g} within 4 s.e. ({4 * found.error:.3g})"
    low, high = found.mean - 1.96 * found.error, found.mean + 1.96 * found.error
    return Figure(label, "gate", found.mean, low, high, rule, bool(abs(found.mean - expected) < 4 * found.error))


def _worst(label: str, value: float, sign: Literal["<", "<=", ">"], bound: float) -> Figure:
    holds = {"<": value < bound, "<=": value <= bound, ">": value > bound}[sign]
    return Figure(label, "gate", float(value), rule=f"{sign} {bound:g}", holds=bool(holds))
