"""Row 1, RFT: a model's own distinct correct paths are worth more than the same steps on its gold solutions.

Source: Yuan et al. 2023, arXiv 2308.01825.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import Bench, Tuned, bench, exact, over_seeds, reported
from tamis.context import Context
from tamis.equations import check_equations
from tamis.lab.worlds import ModularSums
from tamis.pool import Pool
from tamis.records import Completion, Example, Message, Prompt, Turn, Verdict
from tamis.registry import build
from tamis.scaling import data_law_interval, fit_data_law, fit_headroom_law, nested_subsets
from tamis.selectors.distinct_reasoning import distinct_reasoning, levenshtein

NAME = "rft"
ROW = 1
CLAIM = (
    "Tuning the base on gold solutions and on its SFT model's own distinct correct paths beats SFT at equal steps, and as "
    "many rows with one path repeated. That is so where gold problems are few (60 here): the curve over N shows where the "
    "control at equal steps comes level. SFT accuracy rises with the logarithm of the gold data (at equal epochs, so that "
    "steps grow, too)."
)
SEEDS = (50_001, 50_002, 50_003)

TARGET = 0.5
GOLD, SIZES, CURVE = 60, (15, 30, 60, 120, 240), (15, 30, 120, 240)
HELDOUT, SAMPLES, TEMPERATURE = 1000, 16, 0.7
TUNE = {"lr": 5e-4, "epochs": 3.0, "batch_size": 16}


class World:
    """The base, nested sets of gold problems, and the SFT models and samples that several arms share."""

    def __init__(self, on: Bench, sizes: Sequence[int] = SIZES) -> None:
        self.on = on
        ids = [p.id for p in on.train]
        subsets = map(set, nested_subsets(ids, [n / len(ids) for n in sizes], on.seed))
        self.gold = {n: [p for p in on.train if p.id in chosen] for n, chosen in zip(sizes, subsets, strict=True)}
        self.sft, self.drawn, self.examples = cache(self._sft), cache(self._drawn), cache(self._examples)

    def _sft(self, n: int) -> Tuned:
        return self.on.tune(self.gold_examples(n), **TUNE)

    def gold_examples(self, n: int) -> list[Example]:
        """Return the gold solutions of `n` problems as examples."""
        return self.on.compose({"accepted_sft": {}}, self.on.sample({"gold": {}}, self.gold[n]))

    def _drawn(self, n: int) -> Pool:
        """Completions of the `n` gold problems by the model tuned on them, judged."""
        options = {"n": SAMPLES, "temperature": TEMPERATURE, "max_new_tokens": self.on.longest}
        return self.on.judge(self.on.sample({"temperature": options}, self.gold[n], self.sft(n).model))

    def paths(self, n: int) -> Pool:
        """Return the distinct correct paths among the completions."""
        return self.on.select({"distinct_reasoning": {"modulus": self.on.world.modulus}}, self.drawn(n))

    def _examples(self, n: int) -> list[Example]:
        """Gold solutions and distinct paths."""
        return self.on.compose({"accepted_sft": {"gold": "always"}}, self.paths(n))

    def measured(self, tuned: Tuned, rows: int) -> Outcome:
        """Return what an arm's model does greedily, its rows and its steps."""
        return {"score": self.on.scores(tuned.model), "rows": float(rows), "steps": float(tuned.fit.steps)}


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(bench(ModularSums(), seed, TARGET, size=SIZES[-1], heldout=HELDOUT, gold=True))


def base(w: World) -> Outcome:
    """The pre-trained model."""
    return {"score": w.on.scores(w.on.base)}


def sft(w: World, n: int) -> Outcome:
    """The base tuned on gold solutions."""
    return w.measured(w.sft(n), n)


def sft_equal_steps(w: World, n: int) -> Outcome:
    """The base tuned on gold solutions for as many steps as RFT takes."""
    return w.measured(w.on.tune(w.gold_examples(n), **TUNE, max_steps=rft_steps(w, n)), n)


def rft_steps(w: World, n: int) -> int:
    """Return the optimizer steps of RFT on `n` gold problems."""
    return int(TUNE["epochs"]) * -(-len(w.examples(n)) // int(TUNE["batch_size"]))


def rft_repeated(w: World, n: int) -> Outcome:
    """The base tuned on RFT's rows, each self-made path replaced by the first one of its problem."""
    pool, made = w.paths(n), [e for e in w.examples(n) if e.metadata["origin"] != "gold"]
    at = {c.id: i for i, c in enumerate(pool.completions)}
    first = {e.prompt_id: at[e.sources[0]] for e in reversed(made)}
    return _rft(w, w.on.compose({"accepted_sft": {"gold": "always"}}, pool.take([first[e.prompt_id] for e in made])), n)


def rft_all(w: World, n: int) -> Outcome:
    """The base tuned on gold solutions and on every correct sample, repeats and all."""
    return _rft(w, w.on.compose({"accepted_sft": {"gold": "always", "dedup": "none"}}, w.drawn(n)), n)


def rft_distinct(w: World, n: int) -> Outcome:
    """The base tuned on gold solutions and distinct correct paths."""
    return _rft(w, w.examples(n), n)


def _rft(w: World, examples: list[Example], n: int) -> Outcome:
    tuned = w.on.tune(examples, **TUNE)
    return {**w.measured(tuned, len(examples)), "paths": len(w.paths(n)) / n}


ARMS: dict[str, Callable[[World], Outcome]] = {
    "base": base,
    "sft": partial(sft, n=GOLD),
    "sft at equal steps": partial(sft_equal_steps, n=GOLD),
    "rft, one path repeated": partial(rft_repeated, n=GOLD),
    "rft, all correct": partial(rft_all, n=GOLD),
    "rft, distinct": partial(rft_distinct, n=GOLD),
}
for _arm, _make in {"sft": sft, "sft at equal steps": sft_equal_steps, "rft, distinct": rft_distinct}.items():
    ARMS |= {f"{_arm}, N={n}": partial(_make, n=n) for n in CURVE}


def verdict(table: Table) -> list[Figure]:
    """Return the figures: the two gated differences, the data law, the exact parts, the curve over N."""
    ours, equal, repeated = "rft, distinct", "sft at equal steps", "rft, one path repeated"
    return [
        table.gate_above("distinct - SFT at equal steps", ours, equal),
        table.gate_above("distinct - one path repeated", ours, repeated),
        data_law(table),
        *exact_figures(),
        over_seeds(table, "distinct - SFT at equal steps, seeds resampled", ours, equal),
        over_seeds(table, "distinct - one path repeated, seeds resampled", ours, repeated),
        reported(table, "distinct - SFT", ours, "sft"),
        reported(table, "distinct - all correct", ours, "rft, all correct"),
        *(reported(table, f"distinct - SFT at equal steps, N={n}", f"{ours}, N={n}", f"{equal}, N={n}") for n in CURVE),
        headroom(table),
    ]


def data_law(table: Table) -> Figure:
    """Return the gate on b, the SFT accuracy gained per doubling of the gold data; seeds are resampled."""
    arms = ["sft" if n == GOLD else f"sft, N={n}" for n in SIZES]
    accuracy = np.stack([table.means(arm) for arm in arms], axis=1)
    sizes = np.array(SIZES, dtype=np.float64)
    low, high = data_law_interval(sizes, accuracy, hashing.rng(table.row, "data law"))
    slope = fit_data_law(sizes, accuracy.mean(axis=0))[1]
    return Figure("data law: SFT accuracy per doubling", "gate", slope, low, high, "lower bound > 0", low > 0)


def headroom(table: Table) -> Figure:
    """Return the slope of the gain of RFT over the base against the base's accuracy (paper: negative)."""
    before = table.means("base")
    line = fit_headroom_law(before, table.means("rft, distinct") - before)
    return Figure("headroom law: gain per base accuracy", "reported", line.slope, line.low, line.high)


TEXTS = ("<<1+2=3>>", "<<2+1=3>>", "<<1 + 2=3>> and more")
WRONG = "<<1+2=4>>"


def exact_figures() -> list[Figure]:
    """Return the exact parts: order of equations, the collision rule, and rejected arithmetic."""
    first, second, third = TEXTS
    return [
        exact("two slots, the third text in place of the first", distinct_reasoning([*TEXTS]) == [2, 1], "[2, 1]"),
        exact("its distance to the other slot", levenshtein(third, second) == 13, "13"),
        exact("the first text's distance", levenshtein(first, second) == 2, "2"),
        exact("wrong arithmetic is rejected", not check_equations(WRONG) and all(map(check_equations, TEXTS)), "true"),
        exact("the registered selector keeps the same", _kept_texts() == [third, second], "true"),
    ]


def _kept_texts() -> list[str]:
    """Return what the selector keeps of the three texts and the wrong one, all accepted by a judge."""
    prompt = Prompt((Message("user", "1+2"),))
    made = [Completion(prompt.id, (Turn("assistant", t),), index=i) for i, t in enumerate((*TEXTS, WRONG))]
    verdicts = [Verdict(prompt.id, (c.id,), "answer", 1.0, "correct") for c in made]
    pool = Pool({prompt.id: prompt}, made, verdicts)
    selector = build("selector", {"distinct_reasoning": {}})
    return [made[i].text for i in selector.select(pool, Context()).indices]
