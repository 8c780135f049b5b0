"""Row 25, DART: sampling until hard prompts have their share of correct completions mends the bias toward easy ones.

Source: Tong et al. 2024, arXiv 2407.13690. Part "pool" drives the sampler with a scripted solver of known pass rates; part
"tuned" trains a nano model on sums of three visible lengths, on as many rows under every policy.

VRT is plain rejection tuning: as many tries for every prompt, all correct ones kept. Samples are accepted, and answers
measured, by all their steps: modulo 6 a wrong derivation hits the right answer once in six times.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import local, over_seeds, reported
from tamis.context import Context
from tamis.difficulty import difficulty_bias, solve_k
from tamis.evaluators import stats
from tamis.lab import nano
from tamis.lab.scripted import ScriptedModel
from tamis.lab.worlds import ModularSums, SumLevels
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.records import Completion, Law, Message, Prompt, Verdict
from tamis.registry import build
from tamis.training.config import TuneConfig

NAME = "dart"
ROW = 25
CLAIM = (
    "Plain rejection sampling leaves hard prompts with few or no rows; the policies uniform and prop2diff give every prompt "
    "its share, for more tries. A model tuned on as many rows of prop2diff is better on the hardest problems than one tuned "
    "on those of plain rejection sampling, and neither policy is worse over all problems."
)
SEEDS = (50_025, 50_026, 50_027)

K, PROBES, MOST_TRIES, TRIES = 4, 8, 400, 8
CONTROL_TRIES = 32
"""Tries of the controls: so many that their different rows, and their tokens, suffice."""
HARD = 0.1
PLAIN = "VRT"
TARGET, PER_LEVEL, HELDOUT, TEMPERATURE = 0.5, 20, 400, 0.7
TUNE = {"lr": 5e-4, "epochs": 3.0, "batch_size": 16}

Spec = dict[str, dict[str, Any]]


class Stages:
    """The stages sample, judge and select of a recipe, run in memory by the registered components."""

    def __init__(self, prompts: Sequence[Prompt], model: Any, judge: Spec, seed: int, law: dict[str, Any]) -> None:
        self.prompts, self.model, self.seed, self.law = tuple(prompts), model, seed, law
        self.by_id = {p.id: p for p in prompts}
        self.judge = build("judge", judge)
        self.plain = cache(self._plain)

    def verdicts(self, prompts: Mapping[str, Prompt], completions: Sequence[Completion]) -> list[Verdict]:
        """Return the judge's verdict on each completion."""
        return list(self.judge.judge(prompts, completions, Context(self.seed)))

    def sample(self, name: str, **options: Any) -> Pool:
        """Return what a sampler draws, probes included, judged."""
        sampler = build("sampler", {name: {**self.law, **options}})
        ctx = Context(self.seed, self.model, judge=self.verdicts)
        probes: list[Completion] = []
        if hasattr(sampler, "gather"):
            probes = list(sampler.probe(self.prompts, ctx))
            ctx.shared = sampler.gather(self.prompts, probes, self.verdicts(self.by_id, probes))
        made = [*probes, *sampler.sample(self.prompts, ctx)]
        return Pool(self.by_id, made, self.verdicts(self.by_id, made))

    def select(self, name: str, pool: Pool, **options: Any) -> Pool:
        """Return what a selector keeps."""
        kept = build("selector", {name: options}).select(pool, Context(self.seed))
        return pool.take(kept.indices.tolist())

    def dart(self, policy: str, k: int, **options: Any) -> tuple[Pool, Pool]:
        """Return (all tries, kept rows) of a policy: sampler `dart`, then selector `first_accepted`."""
        drawn = self.sample("dart", policy=policy, k=k, n_probe=PROBES, **options)
        return drawn, self.select("first_accepted", drawn, policy=policy, k=k, n_probe=PROBES)

    def _plain(self, tries: int) -> tuple[Pool, Pool]:
        """Return (all tries, kept rows) of plain rejection sampling, which keeps every correct completion."""
        drawn = self.sample("temperature", n=tries)
        return drawn, accepted(drawn)

    def rows(self, kept: Pool) -> np.ndarray:
        """Return the kept completions of each prompt, (N,) int64."""
        return np.array([len(kept.by_prompt.get(p.id, ())) for p in self.prompts])


def accepted(pool: Pool) -> Pool:
    """Return the accepted completions of a pool."""
    return pool.take([i for i in range(len(pool)) if pool.accepted(i)])


class Scripted:
    """Part "pool": prompts of known pass rates p ~ Beta(0.6, 0.6), clipped to [0.02, 1]; no two texts are equal."""

    def __init__(self, seed: int, size: int = 400) -> None:
        rng = hashing.rng(seed, "scripted")
        answers = rng.integers(0, 10, size).tolist()
        self.pass_rate = np.clip(rng.beta(0.6, 0.6, size), 0.02, 1.0)
        prompts = [
            Prompt((Message("user", f"problem {i}"),), (f"#{a}",), metadata={"answer": str(a)})
            for i, a in enumerate(answers)
        ]
        rates = dict(zip((p.id for p in prompts), self.pass_rate.tolist(), strict=True))
        solver = ScriptedModel(rates, right=lambda prompt, draw: f"try {draw}, #{prompt.metadata['answer']}")
        self.stages = Stages(prompts, solver, {"answer": {"kind": "regex", "pattern": r"#(\d+)"}}, seed, {})

    def measured(self, drawn: Pool, kept: Pool) -> Outcome:
        """Return rows, tries, and the share of hard prompts that have a row."""
        covered = self.stages.rows(kept)[self.pass_rate < HARD] > 0
        return {"rows": float(len(kept)), "tries": float(len(drawn)), "hard covered": float(covered.mean())}

    def biased(self, drawn: Pool, kept: Pool) -> Outcome:
        """Return the same, and the rank correlation of rows and difficulty."""
        bias = difficulty_bias(self.stages.rows(kept), self.pass_rate)
        return {**self.measured(drawn, kept), "rank correlation": bias.correlation}

    def uniform(self, **options: Any) -> Outcome:
        """Return the same for uniform, and how its rows and tries compare with what they should be."""
        drawn, kept = self.stages.dart("uniform", K, **options)
        rows, met = self.stages.rows(kept), self.stages.rows(accepted(drawn)) >= K
        return {
            **self.measured(drawn, kept),
            "target met": met.astype(np.float64),
            "_exact": float((rows[met] == K).all()),
            "_tries of expected": self.stages.rows(drawn) * self.pass_rate / K,
        }


class Levels:
    """Part "tuned": a base model half-trained on sums of three lengths, training prompts and fresh test problems."""

    def __init__(
        self,
        seed: int,
        sums: SumLevels = SumLevels(),  # noqa: B008
        per_level: int = PER_LEVEL,
        heldout: int = HELDOUT,
        **pretraining: Any,
    ) -> None:
        self.seed, self.sums = seed, sums
        key = [type(sums).__name__, sums, seed, TARGET, pretraining]
        pair = nano.base(key, lambda: nano.trained(sums, TARGET, seed=seed, **pretraining))
        self.base = local(*pair, hashing.digest(nano.VERSION, key))
        rng = hashing.rng(seed, "levels")
        train = [problems(level, rng, per_level, set()) for level in sums.levels]
        self.heldout = [
            problems(level, rng, heldout, {p.text for p in used}, distinct=False)
            for level, used in zip(sums.levels, train, strict=True)
        ]
        self.longest = sums.levels[-1].solution_length + 1
        law = {"temperature": TEMPERATURE, "top_p": 1.0, "max_new_tokens": self.longest}
        judge: Spec = {"answer": {"kind": "python", "callable": f"{__name__}:all_steps_right"}}
        self.stages = Stages([p for level in train for p in level], self.base, judge, seed, law)
        self.drawn = cache(self._drawn)

    def _drawn(self, policy: str) -> tuple[Pool, Pool]:
        """Return (all tries, kept rows) of a policy; k is such that about K rows a prompt are wanted."""
        if policy == PLAIN:
            return self.stages.plain(TRIES)
        k = K if policy == "uniform" else solve_k(self._pass_rate(), "prop2diff", K * len(self.stages.prompts))
        return self.stages.dart(policy, k, max_tries=MOST_TRIES)

    def _pass_rate(self) -> np.ndarray:
        drawn, kept = self.stages.plain(PROBES)
        return self.stages.rows(kept) / self.stages.rows(drawn)

    @property
    def equal_rows(self) -> int:
        """Rows of every arm: those of the policy that has fewest."""
        return min(len(self.drawn(policy)[1]) for policy in (PLAIN, "uniform", "prop2diff"))

    def equal(self, kept: Pool) -> Pool:
        """Return as many rows as every arm has, drawn at random."""
        return self.stages.select("random", kept, k=self.equal_rows)

    def tuned(self, rows: Pool, tries: int) -> Outcome:
        """Return what the base tuned on the rows does on fresh problems, and what the rows are."""
        from tamis.training.loop import fit

        ctx = Context(self.seed, self.base, self.base.chat)
        examples = list(build("composer", {"accepted_sft": {"dedup": "none"}}).compose(rows, ctx))
        module = build("adapter", "full").attach(self.base.module(), self.seed)
        done = fit(module, examples, build("objective", "sft"), TuneConfig.build(TUNE), seed=self.seed)
        hardest = [rows.prompt(i).metadata["terms"] == self.sums.terms[-1] for i in range(len(rows))]
        return {
            **self.measured(local(module, self.base.tokenizer, "tuned")),
            "rows": float(len(examples)),
            "hardest rows": float(sum(hardest)),
            "prompts with rows": float(len(rows.by_prompt)),
            "trained tokens": float(done.trained_tokens),
            "tries": float(tries),
        }

    def measured(self, model: LocalModel) -> Outcome:
        """Return for every fresh problem whether the greedy solution has all steps right, all together and by level."""
        law = Law(temperature=0.0, max_new_tokens=self.longest)
        scores = []
        for prompts in self.heldout:
            drawn = model.generate(prompts, law, candidates=[[0]] * len(prompts), seed=self.seed)
            scores.append([float(all_steps_right(c.text, p)) for p, c in zip(prompts, drawn, strict=True)])
        names = (f"{terms - 1} additions" for terms in self.sums.terms)
        return {"score": np.concatenate(scores), **dict(zip(names, map(np.array, scores), strict=True))}


def problems(
    level: ModularSums, rng: np.random.Generator, n: int, used: set[str], *, distinct: bool = True
) -> list[Prompt]:
    """Return `n` random problems of a level that are not in `used`, all different if `distinct`."""
    found: list[str] = []
    while len(found) < n:
        problem = level.problem(rng)
        if problem not in used:
            found.append(problem)
            if distinct:
                used = used | {problem}
    size = {"modulus": level.modulus, "terms": level.terms}
    return [Prompt((Message("user", p),), (f"#{level.answer(p)}",), metadata=size) for p in found]


def all_steps_right(text: str, prompt: Prompt) -> bool:
    """Whether `text` solves a sum without any wrong step; what the judge `answer` calls."""
    return ModularSums(prompt.metadata["modulus"], prompt.metadata["terms"]).all_steps_right(prompt.text, text)


@dataclass(frozen=True)
class World:
    """Both parts."""

    pool: Scripted
    levels: Levels


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(Scripted(seed), Levels(seed))


def pool_plain(w: World) -> Outcome:
    """Eight tries for every prompt."""
    return w.pool.biased(*w.pool.stages.plain(TRIES))


def pool_uniform(w: World, **options: Any) -> Outcome:
    """The sampler with equal targets."""
    return w.pool.uniform(**options)


def pool_prop2diff(w: World) -> Outcome:
    """The sampler with targets in proportion to the fail rate."""
    return w.pool.biased(*w.pool.stages.dart("prop2diff", K, max_tries=MOST_TRIES))


def base(w: World) -> Outcome:
    """The half-trained model."""
    return w.levels.measured(w.levels.base)


def tuned(w: World, policy: str) -> Outcome:
    """The base tuned on the rows of a policy, equally many under each."""
    drawn, kept = w.levels.drawn(policy)
    return w.levels.tuned(w.levels.equal(kept), len(drawn))


def tuned_plain_distinct(w: World) -> Outcome:
    """Control: as many rows of plain sampling that are all different."""
    drawn, _ = w.levels.stages.plain(CONTROL_TRIES)
    kept = w.levels.stages.select("first_accepted", drawn, policy="uniform", k=CONTROL_TRIES)
    return w.levels.tuned(w.levels.equal(kept), len(drawn))


def tuned_plain_equal_tokens(w: World) -> Outcome:
    """Control: more rows of plain sampling, as many as fit into the tokens of prop2diff's rows."""
    drawn, kept = w.levels.stages.plain(CONTROL_TRIES)
    budget = tokens(w.levels.equal(w.levels.drawn("prop2diff")[1])).sum()
    order = w.levels.stages.select("random", kept, k=len(kept))
    return w.levels.tuned(order.take(np.flatnonzero(np.cumsum(tokens(order)) <= budget).tolist()), len(drawn))


def tokens(pool: Pool) -> np.ndarray:
    """Return the sampled tokens of each completion, (N,) int64."""
    return np.array([len(c.token_ids) for c in pool.completions])


ARMS: dict[str, Callable[[World], Outcome]] = {
    "pool: VRT": pool_plain,
    "pool: uniform": partial(pool_uniform, max_tries=MOST_TRIES),
    "pool: prop2diff": pool_prop2diff,
    "pool: uniform, one try a round": partial(pool_uniform, max_tries=5000, round_cap=1),
    "base": base,
    "tuned: VRT": partial(tuned, policy=PLAIN),
    "tuned: uniform": partial(tuned, policy="uniform"),
    "tuned: prop2diff": partial(tuned, policy="prop2diff"),
    "tuned: VRT, distinct": tuned_plain_distinct,
    "tuned: VRT, equal tokens": tuned_plain_equal_tokens,
}


def verdict(table: Table) -> list[Figure]:
    """Return the figures of both parts; those of the pool are held against their rule on the worst seed."""
    return [*_pool_gates(table), *_tuned_gates(table), *_only_reported(table)]


def _pool_gates(table: Table) -> list[Figure]:
    exact = np.array(
        [*table.means("pool: uniform", "_exact"), *table.means("pool: uniform, one try a round", "_exact")]
    )
    covered = {arm: table.means(f"pool: {arm}", "hard covered") for arm in (PLAIN, "uniform", "prop2diff")}
    correlation = {arm: table.means(f"pool: {arm}", "rank correlation") for arm in (PLAIN, "prop2diff")}
    off = [abs(v.mean() - 1) / (v.std(ddof=1) / len(v) ** 0.5) for v in _shares(table)]
    return [
        _every("rows and difficulty, rank correlation: VRT", correlation[PLAIN], "<", -0.8),
        _every("rows and difficulty, rank correlation: prop2diff", correlation["prop2diff"], ">", 0.85),
        _every("uniform: prompts that met their target have exactly 4 rows", exact, ">=", 1.0),
        _every("hard prompts (p < 0.1) with a row: uniform", covered["uniform"], ">=", 0.97),
        _every("hard prompts (p < 0.1) with a row: prop2diff", covered["prop2diff"], ">=", 0.97),
        _every("hard prompts (p < 0.1) with a row: VRT", covered[PLAIN], "<", 0.6),
        _every("one try a round: tries * p / k from 1, in standard errors", np.array(off), "<", 4.0),
    ]


def _shares(table: Table) -> list[np.ndarray]:
    """Return tries * p / k of each prompt, (N,) per seed: its expectation is 1 when every try is one round."""
    return table.values("pool: uniform, one try a round", "_tries of expected")


def _tuned_gates(table: Table) -> list[Figure]:
    ours, plain = "tuned: prop2diff", f"tuned: {PLAIN}"
    return [
        table.gate_above("hardest problems: prop2diff - VRT", ours, plain, _hardest(table)),
        _not_worse("all problems: uniform - VRT", table.difference("tuned: uniform", plain)),
        _not_worse("all problems: prop2diff - VRT", table.difference(ours, plain)),
    ]


def _only_reported(table: Table) -> list[Figure]:
    ours, plain, hardest = "tuned: prop2diff", f"tuned: {PLAIN}", _hardest(table)
    price = table.means("pool: uniform", "tries") / table.means(f"pool: {PLAIN}", "tries")
    return [
        over_seeds(table, "hardest: prop2diff - VRT, seeds resampled", ours, plain, hardest),
        reported(table, "hardest: uniform - VRT", "tuned: uniform", plain, hardest),
        reported(table, "hardest: prop2diff - uniform", ours, "tuned: uniform", hardest),
        reported(table, "hardest: prop2diff - VRT of different rows", ours, f"{plain}, distinct", hardest),
        reported(table, "hardest: prop2diff - VRT of equal tokens", ours, f"{plain}, equal tokens", hardest),
        reported(table, "all problems: VRT - base", plain, "base"),
        reported(table, "all problems: prop2diff - VRT of equal tokens", ours, f"{plain}, equal tokens"),
        Figure("tries of uniform / tries of VRT", "reported", float(price.mean())),
    ]


def _hardest(table: Table) -> str:
    """Return the field with the scores of the longest sums, the last level measured."""
    return [name for name in table.cells[table.seeds[0]]["base"] if name.endswith("additions")][-1]


COMPARE = {"<": operator.lt, ">": operator.gt, ">=": operator.ge}


def _every(name: str, by_seed: np.ndarray, sign: str, bound: float) -> Figure:
    """Return the gate that every seed keeps the rule; its value is the worst seed's."""
    worst = float(by_seed.max() if sign == "<" else by_seed.min())
    return Figure(name, "gate", worst, rule=f"{sign} {bound:g} on every seed", holds=COMPARE[sign](worst, bound))


def _not_worse(name: str, found: stats.Interval) -> Figure:
    return Figure(name, "gate", *found, "value >= -0.01", found.value >= -0.01)
