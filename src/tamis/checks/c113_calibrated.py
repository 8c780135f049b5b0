"""Row 113, calibrated judges: single ratings and a proper score calibrate a judge, divided advantages spoil it.

Source: Li et al. 2025, arXiv 2510.00263. A pair is the difference x of two answers, the share of raters that prefers the first
is sigmoid(w.x). The judge states one of 21 values around sigmoid(theta.x + b); it begins overconfident and in favour of the
first place. It learns from one rating a pair by the policy gradient of a scoring rule, or from the shares of ten raters by
imitation, for the same number of ratings. The tabular part has a free judge of six pairs.

What is measured is the mean of the stated values, as the sheet's own first step has it; its figures of the start (mse 0.032,
positional bias 0.13, ece 0.16) are those of mu itself. The sheet gives no rate for imitation; `IMITATION` (chosen before any
run) is used for both kinds of targets.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from tamis import hashing
from tamis.calibration import Rule, calibration_report, centred_advantages, proper_score
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import exact

NAME = "calibrated-judge"
ROW = 113
CLAIM = (
    "Trained by a proper score on single ratings, or on shares of raters, a judge's probabilities come to meet the shares, and "
    "its bias to a place shrinks; with advantages divided by their deviation, or majority labels, it stays miscalibrated."
)
SEEDS = (50_113, 50_114, 50_115)

DIMENSIONS, STRENGTH, PAIRS, TEST, REORDERED = 6, 1.5, 6000, 2000, 0.8
VALUES, WIDTH = np.linspace(0, 1, 21), 0.08
OVERCONFIDENCE, FAVOUR = 3.0, 0.8
GROUP, BATCH, EPOCHS, RATE = 8, 64, 8, 1.5
RATED, RATERS = 600, 10
IMITATION = (40, 0.02)
"""Epochs and rate of learning by imitation."""
SHARES = np.array([0.5, 0.6, 0.7, 0.9, 0.1, 0.35])
LABELS, STEP = 12_000, 0.2


def sigmoid(z: np.ndarray) -> np.ndarray:
    """Return the logistic function."""
    return 1 / (1 + np.exp(-z))


def divided(rewards: np.ndarray) -> np.ndarray:
    """Return advantages as they must not be made: divided by the group's deviation (with 1e-4 added)."""
    return centred_advantages(rewards) / (rewards.std(axis=-1, keepdims=True) + 1e-4)


@dataclass(frozen=True)
class World:
    """Pairs to learn from and to measure on; all arrays depend on the seed alone."""

    seed: int

    def rng(self, *parts: object) -> np.random.Generator:
        """Return a generator derived from the seed and `parts`."""
        return hashing.rng(self.seed, "calibrated", *parts)

    @cached_property
    def w(self) -> np.ndarray:
        """What raters look at, (6,), of length 1.5."""
        drawn = self.rng("w").standard_normal(DIMENSIONS)
        return STRENGTH * drawn / np.linalg.norm(drawn)

    @cached_property
    def train(self) -> np.ndarray:
        """(6000, 6): of the pairs whose second answer is better, 80% are turned round."""
        x = self.rng("train").standard_normal((PAIRS, DIMENSIONS))
        turned = (x @ self.w < 0) & (self.rng("turned").random(PAIRS) < REORDERED)
        return np.where(turned[:, None], -x, x)

    @cached_property
    def test(self) -> np.ndarray:
        """(2000, 6) in the order drawn."""
        return self.rng("test").standard_normal((TEST, DIMENSIONS))

    @cached_property
    def labels(self) -> np.ndarray:
        """One rating of each pair, (6000,) of 0 and 1."""
        return (self.rng("labels").random(PAIRS) < sigmoid(self.train @ self.w)).astype(float)

    @cached_property
    def shares(self) -> np.ndarray:
        """Shares of ten raters of the first 600 pairs, (600,)."""
        return self.rng("raters").binomial(RATERS, sigmoid(self.train[:RATED] @ self.w)) / RATERS

    @property
    def start(self) -> "Judge":
        """The judge as it begins."""
        return Judge(np.append(OVERCONFIDENCE * self.w, FAVOUR))


@dataclass(frozen=True)
class Judge:
    """States value v with a probability ~ exp(-(v - mu)^2 / (2 0.08^2)), mu = sigmoid(theta.x + b); `weights` = theta, b."""

    weights: np.ndarray

    def centre(self, x: np.ndarray) -> np.ndarray:
        """Return mu of each pair, (N,)."""
        return sigmoid(x @ self.weights[:-1] + self.weights[-1])

    def law(self, x: np.ndarray) -> np.ndarray:
        """Return the probabilities of the 21 values, (N, 21)."""
        found = np.exp(-((VALUES - self.centre(x)[:, None]) ** 2) / (2 * WIDTH**2))
        return found / found.sum(axis=1, keepdims=True)

    def gradient(self, x: np.ndarray, pull: np.ndarray) -> np.ndarray:
        """Return the mean over pairs of d/d(theta, b), given `pull` (N,), the derivative by mu times 0.08^2."""
        mu = self.centre(x)
        by_logit = pull / WIDTH**2 * mu * (1 - mu)
        return np.append(by_logit @ x, by_logit.sum()) / len(x)

    def measured(self, world: World) -> Outcome:
        """Return how its mean statements meet the raters on the test pairs, both orders."""
        g12, g21 = (self.law(x) @ VALUES for x in (world.test, -world.test))
        found = calibration_report(g12, g21, p_star=sigmoid(world.test @ world.w))
        return {name: found[name].interval.value for name in ("mse", "ece", "positional bias", "agreement")}


def draw(law: np.ndarray, luck: np.ndarray) -> np.ndarray:
    """Return (N, G) int64 drawn from the rows of `law` (N, V) with uniform numbers `luck` (N, G)."""
    reached = law.cumsum(axis=1)[:, None, :] < luck[:, :, None]
    return np.minimum(reached.sum(axis=2), law.shape[1] - 1)


def batches(
    world: World, x: np.ndarray, target: np.ndarray, epochs: int, *parts: object
) -> Iterator[tuple[np.ndarray, np.ndarray, np.random.Generator]]:
    """Yield x, targets and the epoch's generator for batches of 64, pairs in an order drawn at random per epoch."""
    for epoch in range(epochs):
        rng = world.rng("epoch", epoch, *parts)
        turned = rng.random(len(x)) < 0.5
        shown, goal = np.where(turned[:, None], -x, x), np.where(turned, 1 - target, target)
        order = rng.permutation(len(x))
        for at in range(0, len(x), BATCH):
            part = order[at : at + BATCH]
            yield shown[part], goal[part], rng


def reinforced(world: World, rule: Rule, advantages: Callable[[np.ndarray], np.ndarray]) -> Judge:
    """Return the judge after the policy gradient of a scoring rule on single ratings."""
    judge = world.start
    for x, z, rng in batches(world, world.train, world.labels, EPOCHS, rule):
        law = judge.law(x)
        said = VALUES[draw(law, rng.random((len(x), GROUP)))]
        reward = proper_score(said.ravel(), np.repeat(z, GROUP), rule).reshape(said.shape)
        pull = (advantages(reward) * (said - (law @ VALUES)[:, None])).mean(axis=1)
        judge = Judge(judge.weights + RATE * judge.gradient(x, pull))
    return judge


def imitated(world: World, targets: np.ndarray) -> Judge:
    """Return the judge after maximum likelihood of `targets` (600,), values that it can state."""
    judge, (epochs, rate) = world.start, IMITATION
    for x, said, _ in batches(world, world.train[:RATED], targets, epochs, "imitation"):
        judge = Judge(judge.weights + rate * judge.gradient(x, said - judge.law(x) @ VALUES))
    return judge


def tabular(world: World, rule: Rule, advantages: Callable[[np.ndarray], np.ndarray]) -> Outcome:
    """Return the mean statement on each of six pairs after 12,000 single ratings of random ones."""
    rng = world.rng("tabular", rule)
    pairs = rng.integers(len(SHARES), size=LABELS)
    labels = (rng.random(LABELS) < SHARES[pairs]).astype(float)
    luck = rng.random((LABELS, 1, GROUP))
    logits = np.zeros((len(SHARES), len(VALUES)))
    scores = np.stack([proper_score(VALUES, np.full(len(VALUES), z), rule) for z in (0.0, 1.0)])
    for pair, z, chance in zip(pairs, labels, luck, strict=True):
        law = softmax(logits[pair])
        said = draw(law[None], chance)[0]
        gains = advantages(scores[int(z), said]) / GROUP
        logits[pair] += STEP * (np.bincount(said, gains, len(VALUES)) - gains.sum() * law)
    return {"_stated": np.array([softmax(row) @ VALUES for row in logits])}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities of logits (V,)."""
    found = np.exp(logits - logits.max())
    return np.asarray(found / found.sum())


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


RULES: tuple[Rule, ...] = ("brier", "log")
ARMS = {
    "start": lambda world: world.start.measured(world),
    "single ratings, brier": lambda world: reinforced(world, "brier", centred_advantages).measured(world),
    "single ratings, log": lambda world: reinforced(world, "log", centred_advantages).measured(world),
    "single ratings, brier, divided": lambda world: reinforced(world, "brier", divided).measured(world),
    "shares of ten": lambda world: imitated(world, world.shares).measured(world),
    "majorities of ten": lambda world: imitated(world, 0.5 + 0.5 * np.sign(world.shares - 0.5)).measured(world),
    **{f"tabular, {rule}": partial(tabular, rule=rule, advantages=centred_advantages) for rule in RULES},
    "tabular, brier, divided": partial(tabular, rule="brier", advantages=divided),
}


def verdict(table: Table) -> list[Figure]:
    """Hold the figures against the sheet's, in the mean of the seeds."""
    single, spoilt = "single ratings, brier", "single ratings, brier, divided"
    off = {arm: abs(np.mean(table.values(arm, "_stated"), axis=0) - SHARES).max() for arm in ARMS if "tabular" in arm}
    return [
        _most(table, single, "mse", 0.006),
        _most(table, single, "positional bias", 0.05),
        _most(table, single, "ece", 0.05),
        _least(table, single, "agreement", 0.95),
        _least(table, spoilt, "mse", 0.03),
        _most(table, "shares of ten", "mse", 0.006),
        _least(table, "majorities of ten", "mse", 0.015),
        *(
            exact(f"tabular, {rule}: no pair off by more", bool(off[f"tabular, {rule}"] <= 0.08), "0.08")
            for rule in RULES
        ),
        exact("tabular, divided: some pair is off by more", bool(off["tabular, brier, divided"] > 0.15), "0.15"),
        *(Figure(f"{arm}: furthest off", "reported", float(value)) for arm, value in off.items()),
        *(
            Figure(f"start: {name}", "reported", table.mean("start", name))
            for name in ("mse", "positional bias", "ece", "agreement")
        ),
        Figure("divided: ece", "reported", table.mean(spoilt, "ece")),
        Figure("single ratings, log: mse", "reported", table.mean("single ratings, log", "mse")),
        Figure(
            "6000 ratings: mse of singles - of shares",
            "reported",
            table.mean(single, "mse") - table.mean("shares of ten", "mse"),
        ),
    ]


def _most(table: Table, arm: str, name: str, most: float) -> Figure:
    mean = table.mean(arm, name)
    return Figure(f"{arm}: {name}", "gate", mean, rule=f"at most {most}", holds=bool(mean <= most))


def _least(table: Table, arm: str, name: str, least: float) -> Figure:
    mean = table.mean(arm, name)
    return Figure(f"{arm}: {name}", "gate", mean, rule=f"at least {least}", holds=bool(mean >= least))
