"""What checks on modular sums share: a pre-trained base, its prompts, and the stages of a recipe run in memory.

Every stage is the registered component itself; only what stands between stages (folders, shards) is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Table
from tamis.context import Context
from tamis.evaluators import stats
from tamis.lab import nano
from tamis.lab.worlds import ModularSums
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.records import Example, Law, Prompt
from tamis.registry import build
from tamis.training.config import TuneConfig

if TYPE_CHECKING:
    from tamis.training.loop import FitResult

Spec = Mapping[str, Mapping[str, Any]]
"""A component as a recipe writes it: {name: {option: value}}."""

ROWS = 256
"""Rows sampled together: nano models are fastest there."""

JUDGE: Spec = {"answer": {"kind": "regex", "pattern": r"#(\d+)"}}


@dataclass(frozen=True)
class Tuned:
    """A tuned model and what its training did."""

    model: LocalModel
    fit: "FitResult"


@dataclass(frozen=True)
class Bench:
    """A world, a model pre-trained on it, and prompts to train on and to measure on (no problem is in both)."""

    world: ModularSums
    seed: int
    base: LocalModel
    train: tuple[Prompt, ...]
    heldout: tuple[Prompt, ...]

    @property
    def longest(self) -> int:
        """Tokens of a whole solution with its end."""
        return self.world.solution_length + 1

    def context(self, model: LocalModel | None = None, shared: Mapping[str, Any] | None = None) -> Context:
        """Return what a component is handed; the model is the base unless another is given."""
        return Context(self.seed, model or self.base, self.base.chat, shared=shared or {})

    def sample(self, spec: Spec, prompts: Sequence[Prompt], model: LocalModel | None = None) -> Pool:
        """Return what a sampler draws for `prompts`, not judged."""
        sampler = build("sampler", spec)
        shared = sampler.gather(prompts, [], []) if hasattr(sampler, "gather") else {}
        return Pool({p.id: p for p in prompts}, list(sampler.sample(prompts, self.context(model, shared))))

    def judge(self, pool: Pool) -> Pool:
        """Return the pool with a verdict on every completion's final answer."""
        judge = build("judge", JUDGE)
        return Pool(pool.prompts, pool.completions, list(judge.judge(pool.prompts, pool.completions, self.context())))

    def select(self, spec: Spec, pool: Pool) -> Pool:
        """Return what a selector keeps of the pool."""
        kept = build("selector", spec).select(pool, self.context())
        return pool.take(kept.indices.tolist(), kept.weights)

    def compose(self, spec: Spec, pool: Pool) -> list[Example]:
        """Return the examples a composer makes of the pool."""
        return list(build("composer", spec).compose(pool, self.context()))

    def tune(self, examples: Sequence[Example], **options: Any) -> Tuned:
        """Return the base fine-tuned on `examples` (all weights, objective sft, `options` of TuneConfig)."""
        from tamis.training.loop import fit

        config = TuneConfig.build(options)
        module = build("adapter", "full").attach(self.base.module(), self.seed)
        done = fit(module, examples, build("objective", "sft"), config, seed=self.seed)
        identity = hashing.digest(self.base.identity, [e.id for e in examples], config.mathematics())
        return Tuned(local(module, self.base.tokenizer, identity), done)

    def scores(self, model: LocalModel, temperature: float = 0.0) -> np.ndarray:
        """Return for each held-out prompt whether one completion has all steps right, (N,) float64 of 0 and 1."""
        law = Law(temperature, max_new_tokens=self.longest)
        drawn = model.generate(self.heldout, law, candidates=[[0]] * len(self.heldout), seed=self.seed)
        right = self.world.all_steps_right
        return np.array([right(p.text, c.text) for p, c in zip(self.heldout, drawn, strict=True)], dtype=np.float64)


def bench(
    world: ModularSums, seed: int, target: float, *, size: int, heldout: int, gold: bool = False, vocab: str = ""
) -> Bench:
    """Return a bench whose base is pre-trained (once, then cached) to the greedy accuracy `target`.

    `size` train and `heldout` prompts, all different; with `gold` their references are whole left-to-right solutions.
    `vocab` defaults to the world's alphabet.
    """
    key = [type(world).__name__, world, seed, target, vocab]
    pair = nano.base(key, lambda: nano.trained(world, target, seed=seed, vocab=vocab))
    options = {"size": size, "heldout": heldout, "terms": world.terms, "modulus": world.modulus, "gold": gold}
    prompts = list(build("task", {"modular_sums": options}).prompts(Context(seed)))
    train, measured = (tuple(p for p in prompts if p.split == split) for split in ("train", "heldout"))
    return Bench(world, seed, local(*pair, hashing.digest(nano.VERSION, key)), train, measured)


def local(module: Any, tokenizer: Any, identity: str) -> LocalModel:
    """Return a module in memory as a model."""
    return LocalModel.from_module(module, tokenizer, "nano", identity, batch_rows=ROWS)


def reported(table: Table, label: str, arm: str, other: str, name: str = "score") -> Figure:
    """Return the paired difference arm - other, pooled over seeds, as a figure without a rule."""
    return Figure(label, "reported", *table.difference(arm, other, name))


def over_seeds(table: Table, label: str, arm: str, other: str, name: str = "score") -> Figure:
    """Return the paired difference with an interval that also resamples seeds, as a figure without a rule."""
    pairs = np.stack(table.values(arm, name)) - np.stack(table.values(other, name))
    return Figure(label, "reported", *stats.clustered_bootstrap(pairs, rng=hashing.rng(table.row, arm, other, name)))


def exact(label: str, passed: bool, rule: str) -> Figure:
    """Return an exact statement as a gate: 1.0 where it is true, else 0.0."""
    return Figure(label, "gate", float(passed), rule=rule, holds=bool(passed))
