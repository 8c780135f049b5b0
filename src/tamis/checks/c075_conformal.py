"""Row 75, conformal sets: the promised risk over repeated calibrations, with true risks on fresh prompts.

Source: Quach et al., ICLR 2024, arXiv 2306.10193. A prompt's answers are right at its own rate 0.8 * Beta(2, 2); quality is
sigmoid(2.2 * (right - 0.5) + N(0, 1)); right answers are near-duplicates (similarity about 0.9), wrong ones fall into five
clusters. The baseline takes the cheapest rule whose risk on the optimisation part is at most eps, without any test.
Components: six per prompt, right with 0.6, scored 1.5 * right + N(0, 1). An abstention has risk 0 and all draws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from scipy.stats import binom

from tamis import conformal, conformal_components, hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.conformal import Abstain, CLMConfig, Rule, SetScore
from tamis.evaluators import stats

NAME = "conformal"
ROW = 75
CLAIM = (
    "Calibrated sets leave at most the promised share of prompts without an acceptable answer in 95% of calibrations; sets "
    "that stop by quality (max, sum) need fewer draws than a fixed number (first_k); a rule chosen without the test breaks "
    "the promise often; filtered components are all right at the asked rate."
)
SEEDS = tuple(range(50_075, 50_085))

K, EPS, DELTA, N_GRID = 12, 0.2, 0.05, 8
N_OPT, N_CAL, FRESH, TRIALS = 100, 200, 20_000, 10
PARTS, PART_PROMPTS, PART_TRIALS = 6, 150, 20
CLUSTERS, ALIKE, UNLIKE, SPREAD = 5, 0.9, 0.2, 0.05
SCORES: tuple[SetScore, ...] = ("first_k", "max", "sum")
PROMISED = [f"calibrated, {s}" for s in SCORES]


@dataclass(frozen=True)
class Draws:
    """Draws of n prompts: scores and labels (n, K), similarities (n, K, K)."""

    scores: np.ndarray
    sims: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, n: int, rng: np.random.Generator) -> "Draws":
        """Return the draws of `n` new prompts."""
        labels = rng.random((n, K)) < 0.8 * rng.beta(2, 2, (n, 1))
        scores = 1 / (1 + np.exp(-(2.2 * (labels - 0.5) + rng.standard_normal((n, K)))))
        cluster = np.where(labels, CLUSTERS, rng.integers(CLUSTERS, size=(n, K)))
        same = cluster[:, :, None] == cluster[:, None, :]
        noise = np.tril(SPREAD * rng.standard_normal((n, K, K)), -1)
        sims = np.clip(np.where(same, ALIKE, UNLIKE) + noise + noise.swapaxes(1, 2), 0, 1)
        return cls(scores, sims, labels)

    def take(self, at: np.ndarray) -> "Draws":
        """Return the draws of some prompts."""
        return Draws(self.scores[at], self.sims[at], self.labels[at])

    def metrics(self, rule: Rule | CLMConfig) -> dict[str, float]:
        """Return the metrics of a rule on these prompts."""
        return conformal.clm_metrics(conformal.build(rule, self.scores, self.sims), self.labels)


def components(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return scores and labels of the components of `n` new prompts, both (n, PARTS)."""
    labels = rng.random((n, PARTS)) < 0.6
    return 1.5 * labels + rng.standard_normal((n, PARTS)), labels


@dataclass(frozen=True)
class World:
    """Prompts to calibrate on, several times over, and fresh ones."""

    seed: int

    def trial(self, number: int) -> Draws:
        """Return the prompts of one calibration."""
        return Draws.of(N_OPT + N_CAL, hashing.rng(self.seed, "trial", number))

    @cached_property
    def fresh(self) -> Draws:
        """Prompts that no calibration saw."""
        return Draws.of(FRESH, hashing.rng(self.seed, "fresh"))


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


def calibrated(set_score: SetScore, data: Draws, number: int) -> CLMConfig | None:
    """Return what the method finds; None where it abstains."""
    share = N_OPT / (N_OPT + N_CAL)
    found = conformal.calibrate(data.scores, data.sims, data.labels, EPS, DELTA, set_score, N_GRID, share, number)
    return None if isinstance(found, Abstain) else found


def untested(set_score: SetScore, data: Draws, number: int) -> Rule | None:
    """Return the cheapest rule whose risk on the optimisation part is at most eps."""
    part = data.take(conformal.parts(len(data.scores), N_OPT / (N_OPT + N_CAL), number)[0])
    front = conformal.pareto_front(part.scores, part.sims, part.labels, set_score, N_GRID)
    able = [rule for rule in front if part.metrics(rule)["loss"] <= EPS]
    return able[-1] if able else None


def _sets(choose: Callable[[Draws, int], Rule | CLMConfig | None], world: World) -> Outcome:
    rows: list[dict[str, float]] = []
    for number in range(TRIALS):
        rule = choose(world.trial(number), number)
        none = {"loss": 0.0, "size": 0.0, "draws": float(K), "excess draws": 0.0, "worst stratified loss": 0.0}
        rows.append({"abstained": float(rule is None), **(world.fresh.metrics(rule) if rule else none)})
    found = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    return {"violation": (found["loss"] > EPS).astype(np.float64), **found}


def _components(world: World) -> Outcome:
    fresh = components(FRESH, hashing.rng(world.seed, "fresh components"))
    rows = []
    for number in range(PART_TRIALS):
        scores, labels = components(PART_PROMPTS, hashing.rng(world.seed, "components", number))
        gamma = conformal_components.calibrate_components(list(scores), list(labels), EPS, DELTA)
        kept = conformal_components.filter_components(fresh[0], gamma)
        loss, recall = (kept & ~fresh[1]).any(axis=1).mean(), (kept & fresh[1]).sum() / fresh[1].sum()
        rows.append((loss > EPS, loss, kept.mean(), recall))
    violation, loss, kept, recall = np.array(rows, dtype=np.float64).T
    return {"violation": violation, "loss": loss, "kept": kept, "recall": recall}


ARMS = {
    **{arm: partial(_sets, partial(calibrated, s)) for arm, s in zip(PROMISED, SCORES, strict=True)},
    "untested, max": partial(_sets, partial(untested, "max")),
    "components": _components,
}


def verdict(table: Table) -> list[Figure]:
    """Hold violations against the binomial bound, and the rest against the gates of the sheet."""
    first_k, *others = PROMISED
    breaks = np.concatenate(table.values("untested, max", "violation"))
    rate = stats.wilson(breaks.sum(), len(breaks))
    kept = table.mean("components", "kept")
    return [
        *(_violations(table, arm) for arm in (*PROMISED, "components")),
        *(_risk(table, arm) for arm in PROMISED),
        *(table.gate_above(f"draws: first_k - {arm}", first_k, arm, "draws") for arm in others),
        Figure("violations, untested", "gate", *rate, "> 0.2", bool(rate.value > 0.2)),
        Figure("share of components kept", "gate", kept, None, None, "> 0.1", bool(kept > 0.1)),
        *(Figure(f"size: first_k - {arm}", "reported", *table.difference(first_k, arm, "size")) for arm in others),
        Figure("abstentions", "reported", float(np.sum([table.mean(arm, "abstained") for arm in PROMISED]))),
    ]


def _violations(table: Table, arm: str) -> Figure:
    found = np.concatenate(table.values(arm, "violation"))
    most = int(binom.ppf(0.999, len(found), DELTA))
    rule = f"at most {most} of {len(found)} (99.9% quantile at {DELTA:g})"
    return Figure(f"violations: {arm}", "gate", *stats.wilson(found.sum(), len(found)), rule, bool(found.sum() <= most))


def _risk(table: Table, arm: str) -> Figure:
    risk = table.mean(arm, "loss")
    return Figure(f"mean risk: {arm}", "gate", risk, None, None, f"in (0.08, {EPS:g})", bool(0.08 < risk < EPS))
