"""Row 96, priority sampling: tries in the order of the model's confidence find more than as many nucleus samples.

Source: Grubisic et al. 2024, arXiv 2402.18734. A world is a law over the strings of five symbols of at most five tokens,
small enough to enumerate: the next token after every prefix is drawn from a Dirichlet(0.35) law of its own. The hidden quality
of a string is 0.35 log P + N(0, 1); with "flat" in its name, a figure leaves out the term log P.

The exact figures hold the search against enumeration; the controls, reported only, say how much of the lead comes from tries
being different (sampling until N are) and how much from their order (quality without log P).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.priority import PrioritySet, priority_search

NAME = "priority"
ROW = 96
CLAIM = (
    "For every number of tries, the best of as many tries of priority sampling is better than the best of as many nucleus "
    "samples at the best of four temperatures, where the model's confidence says something about quality. The tries are all "
    "different, their coverage is exact, and no completion left out is likelier than the bound."
)
SEEDS = tuple(range(50_096, 50_126))

SYMBOLS, LENGTH, CONCENTRATION, WEIGHT = 5, 5, 0.35, 0.35
END = SYMBOLS
TRIES = (5, 10, 30, 100)
GATED = (10, 30)
TEMPERATURES = (0.3, 0.6, 1.0, 1.4)
TOP_P = 0.95
OURS = "priority"
DISTINCT = "T = 1 until distinct"

String = tuple[int, ...]


class World:
    """The law of each prefix, and the probability and hidden quality of all 3,906 strings (those that end hold END last)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        prefixes = [p for length in range(LENGTH) for p in itertools.product(range(SYMBOLS), repeat=length)]
        self.laws = {p: hashing.rng(seed, "law", p).dirichlet(np.full(SYMBOLS + 1, CONCENTRATION)) for p in prefixes}
        ended = [(*p, END) for p in prefixes]
        strings: list[String] = [*ended, *itertools.product(range(SYMBOLS), repeat=LENGTH)]
        self.logprobs = {s: self.logprob(s) for s in strings}
        noise = hashing.rng(seed, "quality").normal(size=len(strings))
        self.flat = dict(zip(strings, noise.tolist(), strict=True))

    def logprob(self, string: String) -> float:
        """Return log P of a string; it is -inf where a token has underflown."""
        factors = [self.laws[string[:i]][token] for i, token in enumerate(string)]
        return math.fsum(map(math.log, factors)) if all(factors) else -math.inf

    def outcome(self, tries: Sequence[Sequence[String]]) -> Outcome:
        """Return the best quality, the different strings and their probability among the tries of each number in TRIES."""
        found: dict[str, float] = {}
        for count, strings in zip(TRIES, tries, strict=True):
            found[f"best of {count}"] = max(WEIGHT * self.logprobs[s] + self.flat[s] for s in strings)
            found[f"flat best of {count}"] = max(self.flat[s] for s in strings)
            found[f"distinct of {count}"] = len(set(strings))
            found[f"mass of {count}"] = math.fsum(math.exp(self.logprobs[s]) for s in set(strings))
        return found

    @cached_property
    def found(self) -> PrioritySet:
        """What the search gives for the largest number of tries."""
        return priority_search(self.laws.__getitem__, TRIES[-1], END, LENGTH)


def ours(w: World) -> Outcome:
    """Run the search once; hold it against enumeration."""
    return {**w.outcome([w.found.sequences[:count] for count in TRIES]), **_exact(w)}


def _exact(w: World) -> dict[str, float]:
    """Return how far properties a to d, and the log-probabilities, are from true: 0, or a rounding error."""
    found = w.found
    emitted = set(found.sequences)
    walked = {s[:i] for s in emitted for i in range(len(s))}
    taken = {s[:i] for s in emitted for i in range(len(s) + 1)}
    children = {(*p, token) for p in walked for token in range(SYMBOLS + 1)}
    left = math.fsum(math.prod(w.laws[c[:i]][t] for i, t in enumerate(c)) for c in children - taken)
    lowest = np.minimum.accumulate(found.bound)
    position = {s: i for i, s in enumerate(found.sequences)}
    before = [(p, position.get(s, len(lowest))) for s, p in w.logprobs.items()]
    missed = sum(i > 0 and math.exp(p) > lowest[i - 1] * (1 + 1e-9) for p, i in before)
    errors = [abs(w.logprobs[s] - p) for s, p in zip(found.sequences, found.logprobs.tolist(), strict=True)]
    return {
        "_a rise of priorities": float(np.maximum(np.diff(found.priorities), 0).max()),
        "_b repeats": float(len(found.sequences) - len(emitted)),
        "_c mass from 1": abs(float(found.coverage[-1]) + left - 1),
        "_d missed": float(missed),
        "_logprob error": max(errors),
        "_passes from nodes": float(abs(found.forward_passes - len(walked))),
    }


def nucleus(w: World, temperature: float) -> Outcome:
    """Draw as many samples from the nucleus law at a temperature."""
    rng = hashing.rng(w.seed, "nucleus", temperature)
    drawn = [_draw(w, temperature, TOP_P, rng) for _ in range(TRIES[-1])]
    return w.outcome([drawn[:count] for count in TRIES])


def until_distinct(w: World) -> Outcome:
    """Draw from the model's own law until as many samples are different."""
    rng = hashing.rng(w.seed, "distinct")
    strings, law = list(w.logprobs), np.exp(list(w.logprobs.values()))
    drawn: dict[String, None] = {}
    needed: dict[int, int] = {}
    draws = 0
    while len(drawn) < TRIES[-1]:
        for index in rng.choice(len(strings), 10_000, p=law / law.sum()).tolist():
            drawn[strings[index]] = None
            draws += 1
            needed.setdefault(len(drawn), draws)
    return {
        **w.outcome([list(drawn)[:count] for count in TRIES]),
        **{f"draws for {count}": float(needed[count]) for count in TRIES},
    }


def heaviest(w: World) -> Outcome:
    """Take the likeliest strings, which no sampler knows."""
    ordered = sorted(w.logprobs, key=lambda s: -w.logprobs[s])
    return w.outcome([ordered[:count] for count in TRIES])


def _draw(w: World, temperature: float, top_p: float, rng: np.random.Generator) -> String:
    string: String = ()
    while len(string) < LENGTH and END not in string:
        string = (*string, int(rng.choice(SYMBOLS + 1, p=truncated(w.laws[string], temperature, top_p))))
    return string


def truncated(law: np.ndarray, temperature: float, top_p: float) -> np.ndarray:
    """Return a law (V,) at a temperature, cut to the least set of tokens that holds `top_p`."""
    with np.errstate(divide="ignore"):
        logits = np.log(law) / temperature
    heated = np.exp(logits - logits.max())
    heated /= heated.sum()
    order = np.argsort(-heated, kind="stable")
    before = np.cumsum(heated[order]) - heated[order]
    kept = np.zeros_like(heated)
    inside = order[before < top_p]
    kept[inside] = heated[inside]
    return kept / kept.sum()


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


ARMS: dict[str, Callable[[World], Outcome]] = {
    OURS: ours,
    **{f"nucleus, T = {t:g}": partial(nucleus, temperature=t) for t in TEMPERATURES},
    DISTINCT: until_distinct,
    "heaviest": heaviest,
}
NUCLEUS = [name for name in ARMS if name.startswith("nucleus")]


def verdict(table: Table) -> list[Figure]:
    """Return the exact figures, the leads, and the controls."""
    return [*_exact_gates(table), *_leads(table), *_distinct(table), *_controls(table)]


def _exact_gates(table: Table) -> list[Figure]:
    bounds = {
        "_a rise of priorities": ("a: rise of the priorities", 1e-12),
        "_b repeats": ("b: repeated completions", 0.0),
        "_c mass from 1": ("c: coverage + mass of the branches left, from 1", 1e-9),
        "_d missed": ("d: completions above the bound not emitted", 0.0),
        "_logprob error": ("log-probabilities, from the enumerated ones", 1e-9),
        "_passes from nodes": ("forward passes, from the nodes walked", 0.0),
    }
    return [_at_most(label, table.means(OURS, name).max(), bound) for name, (label, bound) in bounds.items()]


def _at_most(label: str, worst: float, bound: float) -> Figure:
    return Figure(label, "gate", float(worst), rule=f"<= {bound:g} in every world", holds=bool(worst <= bound))


def _leads(table: Table) -> list[Figure]:
    """Hold the search against the temperature that is best for each number of tries."""
    figures = []
    for count in TRIES:
        name = f"best of {count}"
        other = best_nucleus(table, name)
        label = f"{name}: priority - {other}"
        if count in GATED:
            figures.append(table.gate_above(label, OURS, other, name))
        else:
            found = table.difference(OURS, other, name)
            figures.append(Figure(label, "gate", *found, "mean > 0", bool(found.value > 0)))
    return figures


def best_nucleus(table: Table, name: str) -> str:
    """Return the nucleus arm with the highest mean of a field."""
    return max(NUCLEUS, key=lambda arm: table.mean(arm, name))


def _distinct(table: Table) -> list[Figure]:
    fewest = min(float((table.means(OURS, f"distinct of {count}") / count).min()) for count in TRIES)
    return [
        Figure("priority: different tries / tries", "gate", fewest, rule="1 in every world", holds=bool(fewest == 1)),
        *(
            Figure(f"{what} of {count}: {arm}", "reported", table.mean(arm, f"{what} of {count}"))
            for count in TRIES
            for what in ("distinct", "mass")
            for arm in (best_nucleus(table, f"{what} of {count}"),)
        ),
    ]


def _controls(table: Table) -> list[Figure]:
    figures = []
    for name in [f"{kind}best of {count}" for kind in ("", "flat ") for count in TRIES]:
        others = [DISTINCT] if not name.startswith("flat") else [best_nucleus(table, name), DISTINCT]
        for other in others:
            found = table.difference(OURS, other, name)
            figures.append(Figure(f"{name}: priority - {other}", "reported", *found))
    return figures
