"""Row 88, R-Tuning: a model that was tuned to state its certainty answers less, and is right more often where it answers.

Source: Zhang et al., NAACL 2024, arXiv 2311.09677. Facts are keys of three letters with a digit; the first letter is a domain,
of which a base knows most keys or few. Half of the facts are tuned on, the other half is asked. In a second world nothing
in a key tells whether it is known; there a nano model has no access to its own memory, which is reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from tamis import hashing
from tamis.certainty import answer_entropy, average_precision
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import Spec, exact, local
from tamis.context import Context
from tamis.evaluators import stats
from tamis.evaluators.willing import Answered
from tamis.lab import nano
from tamis.metrics import View
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Verdict
from tamis.registry import build
from tamis.training.config import TuneConfig

NAME = "r-tuning"
ROW = 88
CLAIM = (
    "On questions that were never tuned on, a model tuned to state its certainty is right more often where it is willing to "
    "answer than plain tuning is overall, and than tuning with permuted certainties is; s ranks its answers better."
)
SEEDS = (50_088, 50_089, 50_090)

LETTERS, DIGITS = "abcdefghijklmnop", "0123456789"
FACTS, KNOWN = 800, 0.9
WORDING = {"question": "?", "sure": "s", "unsure": "u"}
WILLING: Spec = {"willing": {**WORDING, "max_new_tokens": 3, "stop": []}}
JUDGE: Spec = {"answer": {"kind": "exact"}}
TUNE: dict[str, Any] = {"lr": 1e-3, "epochs": 6.0, "batch_size": 32, "schedule": "constant"}
RESAMPLES = 4000


@dataclass(frozen=True)
class Facts:
    """All facts as prompts, and which of them the base was taught, (N,) bool."""

    prompts: tuple[Prompt, ...]
    taught: np.ndarray

    @classmethod
    def draw(cls, seed: int, domains: bool) -> "Facts":
        """Return facts of which half are taught: 90 or 10 % of those of a first letter, or half of each (no domains)."""
        rng = hashing.rng(seed, "facts")
        each = FACTS // len(LETTERS)
        tails = [a + b for a in LETTERS for b in LETTERS]
        keys = [first + tails[i] for first in LETTERS for i in rng.permutation(len(tails))[:each]]
        known = rng.permutation(len(LETTERS)) < len(LETTERS) // 2
        shares = np.where(known, KNOWN, 1 - KNOWN) if domains else np.full(len(LETTERS), 0.5)
        taught = np.concatenate([rng.permutation(each) < round(share * each) for share in shares])
        answers = rng.choice(list(DIGITS), len(keys))
        made = [Prompt((Message("user", f"{k}="),), (f"{a}.",)) for k, a in zip(keys, answers, strict=True)]
        return cls(tuple(made), taught)


class Side:
    """A base that knows its taught facts, half of all facts to tune on and the other half to ask."""

    def __init__(self, seed: int, domains: bool) -> None:
        self.seed = seed
        facts = Facts.draw(seed, domains)
        key = ["facts", seed, domains, FACTS, KNOWN, "batch 64"]
        self.base = local(*nano.base(key, lambda: taught(facts, seed)), hashing.digest(nano.VERSION, key))
        order = hashing.rng(seed, "halves").permutation(FACTS)
        halves = [[i for i in order if facts.taught[i] == known] for known in (True, False)]
        train = [i for half in halves for i in half[: len(half) // 2]]
        asked = [i for half in halves for i in half[len(half) // 2 :]]
        self.train = [facts.prompts[i] for i in train]
        self.asked = [replace(facts.prompts[i], split="heldout") for i in asked]
        self.taught = {facts.prompts[i].id: bool(facts.taught[i]) for i in range(FACTS)}
        self.answers = cache(self._answers)

    def context(self, model: LocalModel | None = None) -> Context:
        """Return what a component is handed."""
        return Context(self.seed, model or self.base, self.base.chat)

    def _answers(self) -> Pool:
        """The base's greedy answers to the questions that are tuned on, judged."""
        greedy = {"n": 1, "temperature": 0.0, "max_new_tokens": 3}
        made = list(build("sampler", {"temperature": greedy}).sample(self.train, self.context()))
        return self.judged(self.train, made)

    def judged(self, prompts: Sequence[Prompt], made: list[Any]) -> Pool:
        """Return a pool with a verdict on every answer."""
        by_id = {p.id: p for p in prompts}
        return Pool(by_id, made, list(build("judge", JUDGE).judge(by_id, made, self.context())))

    def tuned(self, spec: Spec, pool: Pool) -> LocalModel:
        """Return the base tuned on what a composer makes of the pool."""
        from tamis.training.loop import fit

        examples: list[Example] = list(build("composer", spec).compose(pool, self.context()))
        module = build("adapter", "full").attach(self.base.module(), self.seed)
        fit(module, examples, build("objective", "sft"), TuneConfig.build(TUNE), seed=self.seed)
        return local(module, self.base.tokenizer, hashing.digest(self.base.identity, [e.id for e in examples]))

    def measured(self, model: LocalModel) -> Outcome:
        """Return per asked fact, in the order of ids: right, s, confidence; and summaries."""
        evaluator = build("evaluator", WILLING)
        (draw,) = evaluator.draws()
        made = list(model.generate(self.asked, draw.law, candidates=[[0]] * len(self.asked), seed=self.seed))
        found: Answered = evaluator.answered(View(self.asked, {draw: self.judged(self.asked, made)}, model))
        known = np.array([self.taught[p.id] for p in found.prompts])
        willing = found.willing
        return {
            "accuracy": found.right,
            "share willing": willing.astype(float),
            "accuracy when willing": float(found.right[willing].mean()) if willing.any() else 0.0,
            "AP by s": average_precision(found.right, found.sure),
            "AP of the mixed score": average_precision(found.right, found.score),
            "AP by c": average_precision(found.right, found.confidence),
            "accuracy on taught facts": float(found.right[known].mean()),
            "_right": found.right,
            "_sure": found.sure,
            "_willing": willing.astype(float),
        }


def taught(facts: Facts, seed: int) -> "nano.Pair":
    """Return a nano model that is trained on the taught facts until it knows 99 % of them."""
    module, tokenizer = nano.nano_module(LETTERS + DIGITS + "=.?su", 2, 96, seed)
    known = [p for p, t in zip(facts.prompts, facts.taught, strict=True) if t]

    def batch(rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        drawn = [known[i] for i in rng.choice(len(known), n, replace=False)]
        return [p.text for p in drawn], [p.references[0] for p in drawn]

    def accuracy(module: Any) -> float:
        texts = nano.greedy_texts(module, tokenizer, [p.text for p in known], 3)
        return float(np.mean([text == p.references[0] for p, text in zip(known, texts, strict=True)]))

    nano.pretrain(module, tokenizer, batch, accuracy, 0.99, seed=seed, batch=64, check_every=25)
    return module, tokenizer


class World:
    """The world with domains and the one without."""

    def __init__(self, seed: int) -> None:
        self.domains, self.hidden = Side(seed, domains=True), Side(seed, domains=False)


world = World


def vanilla(side: Side) -> Outcome:
    """Tuning on the gold answers alone."""
    pool = Pool({p.id: p for p in side.train}, [])
    return side.measured(side.tuned({"accepted_sft": {"gold": "always"}}, pool))


def r_tuning(side: Side) -> Outcome:
    """R-Tuning, form sure."""
    return side.measured(side.tuned({"refusal_rows": WORDING}, side.answers()))


def shuffled(side: Side) -> Outcome:
    """R-Tuning with certainties that are permuted among the questions."""
    pool = side.answers()
    order = hashing.rng(side.seed, "shuffled").permutation(len(pool))
    verdicts = [_scored(pool.verdicts[i], pool.verdicts[j]) for i, j in enumerate(order)]
    mixed = Pool(pool.prompts, pool.completions, verdicts)
    return side.measured(side.tuned({"refusal_rows": {**WORDING, "known": "score"}}, mixed))


def _scored(own: Verdict, other: Verdict) -> Verdict:
    return replace(own, score=1.0 if other.score == 1 else 0.0, id="")


ARMS: dict[str, Callable[[World], Outcome]] = {
    "base": lambda w: w.domains.measured(w.domains.base),
    "vanilla": lambda w: vanilla(w.domains),
    "R-Tuning": lambda w: r_tuning(w.domains),
    "shuffled": lambda w: shuffled(w.domains),
    "no domains, vanilla": lambda w: vanilla(w.hidden),
    "no domains, R-Tuning": lambda w: r_tuning(w.hidden),
}


def selective(table: Table, arm: str, other: str, all_of_other: bool) -> stats.Interval:
    """Return accuracy when willing of `arm` minus that of `other` (or its accuracy on all), facts pooled over seeds.

    Facts are resampled, the same for both.
    """
    right, willing, base = (
        np.concatenate(table.values(*at)) for at in ((arm, "_right"), (arm, "_willing"), (other, "_right"))
    )
    chosen = np.ones(len(base)) if all_of_other else np.concatenate(table.values(other, "_willing"))
    parts = np.stack([right * willing, willing, base * chosen, chosen], axis=1)
    counts = hashing.rng(table.row, arm, other).multinomial(len(parts), np.full(len(parts), 1 / len(parts)), RESAMPLES)
    return _interval(_gap(parts.sum(axis=0)), _gap(counts @ parts))


def _gap(sums: np.ndarray) -> np.ndarray:
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1) - sums[..., 2] / np.maximum(sums[..., 3], 1))


def _interval(value: np.ndarray | float, drawn: np.ndarray) -> stats.Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return stats.Interval(float(value), float(low), float(high))


def precision_gap(table: Table, arm: str, other: str) -> stats.Interval:
    """Return average precision by s of `arm` minus that of `other`, mean over seeds; facts are resampled within each seed."""
    drawn, values = [], []
    for seed in table.seeds:
        one, two = (table.cells[seed][name] for name in (arm, other))
        sides = [(np.asarray(side["_right"]), np.asarray(side["_sure"])) for side in (one, two)]
        n, rng = len(sides[0][0]), hashing.rng(table.row, seed, arm, other)
        values.append(_ap_gap(sides, np.arange(n)))
        drawn.append([_ap_gap(sides, at) for at in rng.integers(0, n, (RESAMPLES // 4, n))])
    return _interval(float(np.mean(values)), np.mean(drawn, axis=0))


def _ap_gap(sides: list[tuple[np.ndarray, np.ndarray]], at: np.ndarray) -> float:
    first, second = (average_precision(right[at], sure[at]) for right, sure in sides)
    return first - second


def verdict(table: Table) -> list[Figure]:
    """Return the figures: the gates of the world with domains, exact values, and what is reported."""
    share = table.mean("R-Tuning", "share willing")
    example = average_precision(np.array([1, 0, 1, 1]), np.array([4.0, 3.0, 2.0, 1.0]))
    entropies = [round(answer_entropy(list(answers)), 4) for answers in ("aabcc", "aaaaa", "abcde")]
    positive, zero = "lower bound > 0", "= 1.0549, 0, 1.6094"
    gaps = {
        "accuracy when willing: R-Tuning - vanilla's on all": selective(table, "R-Tuning", "vanilla", True),
        "accuracy when willing: R-Tuning - shuffled": selective(table, "R-Tuning", "shuffled", False),
        "AP by s: R-Tuning - shuffled": precision_gap(table, "R-Tuning", "shuffled"),
    }
    hidden = selective(table, "no domains, R-Tuning", "no domains, vanilla", True)
    mixed = table.mean("R-Tuning", "AP of the mixed score") - table.mean("vanilla", "AP by c")
    return [
        *(Figure(label, "gate", *found, rule=positive, holds=found.low > 0) for label, found in gaps.items()),
        Figure("share willing: R-Tuning", "gate", share, rule="in (0.3, 0.8)", holds=0.3 < share < 0.8),
        exact("entropy of aabcc, aaaaa, abcde in nats", entropies == [1.0549, 0.0, 1.6094], zero),
        exact("average precision of 1, 0, 1, 1", round(example, 4) == 0.8056, "= 0.8056"),
        Figure("AP of R-Tuning's mixed score - vanilla's by c", "reported", mixed),
        Figure("no domains: accuracy when willing - vanilla's on all", "reported", *hidden),
        Figure("no domains: share willing", "reported", table.mean("no domains, R-Tuning", "share willing")),
    ]
