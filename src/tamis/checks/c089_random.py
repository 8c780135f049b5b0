"""Row 89, random at scale: on a large noisy pool hardly any self-score beats random selection.

Source: Xia et al. 2024, arXiv 2410.09335. The self-score is the loss of a small network trained on a few random samples of
the pool, computed here; the selectors are those of `tamis.selectors`. k-center looks at diversity alone and scores nothing:
it is reported, not gated.
"""

import operator
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.evaluators import stats
from tamis.selectors.clusters import cluster_labels
from tamis.selectors.random import random_select
from tamis.selectors.token_length import token_length
from tamis.selectors.top_k import top_k
from tamis.selectors.within_clusters import within_clusters

NAME = "random"
ROW = 89
CLAIM = (
    "Taking the samples of highest loss loses to random selection, and loses more from a larger pool; no selection by the "
    "loss beats random clearly; clusters mend the lowest loss in part, and stratified random is as good as random. Long "
    "samples beat as many random ones, and random ones of as many tokens do as well: what helps is the tokens."
)
SEEDS = (50_089, 50_090, 50_091, 50_092, 50_093)

LABELS, DIMENSIONS, CENTRE_SCALE, ZIPF, REPLACED = 8, 16, 1.6, 0.7, 0.06
UNITS = 64
DRAWS = 5
"""Random selections of every random arm, whose accuracies are averaged: one draw is not a baseline."""


@dataclass(frozen=True)
class Points:
    """Labelled points: `x` (N, 16) float64, `y` (N,) int64 labels as given, `topic` (N,) int64, `replaced` (N,) bool."""

    x: np.ndarray
    y: np.ndarray
    topic: np.ndarray
    replaced: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def take(self, indices: np.ndarray) -> "Points":
        """Return the points at `indices`."""
        return Points(self.x[indices], self.y[indices], self.topic[indices], self.replaced[indices])


@dataclass(frozen=True)
class Topics:
    """Gaussian topics of unit variance with one label each; topic i is drawn with a probability proportional to i^-0.7."""

    centres: np.ndarray
    labels: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator, n: int) -> "Topics":
        """Return `n` topics with random centres and labels."""
        return cls(rng.normal(0.0, CENTRE_SCALE, (n, DIMENSIONS)), rng.integers(0, LABELS, n))

    def points(self, rng: np.random.Generator, n: int, replaced: float = REPLACED) -> Points:
        """Return `n` points; a share `replaced` of the labels is replaced by one of the other labels."""
        weights = np.arange(1, len(self.labels) + 1) ** -ZIPF
        topic = rng.choice(len(self.labels), n, p=weights / weights.sum())
        wrong = rng.random(n) < replaced
        shift = np.where(wrong, rng.integers(1, LABELS, n), 0)
        x = self.centres[topic] + rng.normal(size=(n, DIMENSIONS))
        return Points(x, (self.labels[topic] + shift) % LABELS, topic, wrong)


@dataclass(frozen=True)
class Sizes:
    """How large a world is."""

    topics: int = 60
    small: int = 2000
    large: int = 60_000
    scoring: int = 300
    k: int = 1000
    test: int = 4000
    samples: int = 20_000
    longest: int = 24
    kept_samples: int = 60
    passes: int = 200


class Pool:
    """A pool of points with what selectors see of it: a self-score and clusters."""

    def __init__(self, name: str, points: Points, sizes: Sizes, seed: int) -> None:
        self.name, self.points, self.sizes, self.seed = name, points, sizes, seed

    def rng(self, *parts: Any) -> np.random.Generator:
        """Return a generator of its own for each purpose."""
        return hashing.rng(self.seed, self.name, *parts)

    @cached_property
    def network(self) -> Any:
        """The scoring network, trained on a few random points."""
        few = random_select(len(self.points), self.sizes.scoring, self.rng("scoring"))
        return network(self.points.take(few), self.seed, self.sizes.passes)

    @cached_property
    def loss(self) -> np.ndarray:
        """Loss of every point (N,) float64 under the scoring network; wrong labels count as given."""
        return losses(self.network, self.points)

    @property
    def features(self) -> np.ndarray:
        """Last hidden layer of the scoring network, (N, 64) float64."""
        return np.maximum(self.points.x @ self.network.coefs_[0] + self.network.intercepts_[0], 0.0)

    @cached_property
    def clusters(self) -> np.ndarray:
        """Cluster of every point (N,) int32, as many clusters as there are topics."""
        return cluster_labels(self.points.x, self.sizes.topics, self.rng("clusters"))


class World:
    """Topics, a small and a large pool, samples of several points each, and clean test points."""

    def __init__(self, seed: int, sizes: Sizes = Sizes()) -> None:
        self.seed, self.sizes = seed, sizes
        rng = hashing.rng(seed, "random at scale")
        topics = Topics.drawn(rng, sizes.topics)
        self.pools = {n: Pool(n, topics.points(rng, getattr(sizes, n)), sizes, seed) for n in ("small", "large")}
        self.test = topics.points(rng, sizes.test, replaced=0.0)
        self.lengths = np.minimum(rng.geometric(0.2, sizes.samples), sizes.longest)
        self.in_samples = topics.points(rng, int(self.lengths.sum()))
        self.starts = np.cumsum(self.lengths) - self.lengths

    def measured(self, *subsets: Points) -> Outcome:
        """Return test accuracy per point (N,) and the make-up of the subsets, averaged over them."""
        nets = [network(subset, self.seed, self.sizes.passes) for subset in subsets]
        return {
            "score": np.mean([net.predict(self.test.x) == self.test.y for net in nets], axis=0),
            "points": float(np.mean([len(s) for s in subsets])),
            "wrong labels": float(np.mean([s.replaced.mean() for s in subsets])),
            "topics": float(np.mean([len(np.unique(s.topic)) for s in subsets])),
        }

    def points_of(self, samples: np.ndarray) -> Points:
        """Return all points of some samples."""
        ranges = [np.arange(self.starts[i], self.starts[i] + self.lengths[i]) for i in samples]
        return self.in_samples.take(np.concatenate(ranges))


def network(points: Points, seed: int, passes: int) -> Any:
    """Return a network of one hidden layer of 64 units trained on the points (Adam, at most `passes` passes)."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        made = MLPClassifier((UNITS,), max_iter=passes, random_state=hashing.derive_seed(seed, "network") % 2**32)
        return made.fit(points.x, points.y)


def losses(net: Any, points: Points) -> np.ndarray:
    """Return -log p(label | point) of each point, (N,) float64; a label the network never saw has the largest loss."""
    probability = np.zeros((len(points), LABELS))
    probability[:, net.classes_] = net.predict_proba(points.x)
    return -np.log(np.maximum(probability[np.arange(len(points)), points.y], np.finfo(np.float64).tiny))


def k_center(x: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return k indices (k,) int64: a random first, then each time the point farthest from those chosen (Euclidean)."""
    chosen = [int(rng.integers(len(x)))]
    squares = np.einsum("nd,nd->n", x, x)
    nearest = np.full(len(x), np.inf)
    while len(chosen) < k:
        last = x[chosen[-1]]
        nearest = np.minimum(nearest, squares - 2 * (x @ last) + last @ last)
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen, dtype=np.int64)


Chooser = Callable[[Pool, int, np.random.Generator], np.ndarray]


def _random(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return random_select(len(pool.points), k, rng)


def _high_loss(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return top_k(pool.loss, k)


def _low_loss(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return top_k(-pool.loss, k)


def _low_loss_in_clusters(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return within_clusters(pool.clusters, -pool.loss, k, rng)


def _stratified(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return within_clusters(pool.clusters, None, k, rng)


def _k_center(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return k_center(pool.points.x, k, rng)


def _k_center_of_features(pool: Pool, k: int, rng: np.random.Generator) -> np.ndarray:
    return k_center(pool.features, k, rng)


def selected(w: World, pool: str, choose: Chooser, draws: int = 1) -> Outcome:
    """Return what a network trained on k points of a pool does, averaged over `draws` selections."""
    found = w.pools[pool]
    picked = [choose(found, w.sizes.k, found.rng(choose.__name__, draw)) for draw in range(draws)]
    return w.measured(*(found.points.take(indices) for indices in picked))


def longest_samples(w: World) -> Outcome:
    """The longest samples."""
    return w.measured(w.points_of(_longest(w)))


def _longest(w: World) -> np.ndarray:
    return token_length(w.lengths, w.sizes.kept_samples, hashing.rng(w.seed, "longest"), "longest")


def random_samples(w: World) -> Outcome:
    """As many random samples."""
    drawn = [random_select(len(w.lengths), w.sizes.kept_samples, hashing.rng(w.seed, "few", d)) for d in range(DRAWS)]
    return w.measured(*map(w.points_of, drawn))


def random_tokens(w: World) -> Outcome:
    """Random samples, as many as fit into the tokens (points) of the longest ones."""
    budget = int(w.lengths[_longest(w)].sum())
    n = len(w.lengths)
    orders = [random_select(n, n, hashing.rng(w.seed, "tokens", d)) for d in range(DRAWS)]
    return w.measured(*(w.points_of(order[np.cumsum(w.lengths[order]) <= budget]) for order in orders))


ARMS: dict[str, Callable[[World], Outcome]] = {
    "small: random": partial(selected, pool="small", choose=_random, draws=DRAWS),
    "small: highest loss": partial(selected, pool="small", choose=_high_loss),
    "small: k-center": partial(selected, pool="small", choose=_k_center),
    "large: random": partial(selected, pool="large", choose=_random, draws=DRAWS),
    "large: highest loss": partial(selected, pool="large", choose=_high_loss),
    "large: lowest loss": partial(selected, pool="large", choose=_low_loss),
    "large: lowest loss in clusters": partial(selected, pool="large", choose=_low_loss_in_clusters),
    "large: stratified random": partial(selected, pool="large", choose=_stratified, draws=DRAWS),
    "large: k-center": partial(selected, pool="large", choose=_k_center),
    "large: k-center of features": partial(selected, pool="large", choose=_k_center_of_features),
    "samples: random": random_samples,
    "samples: longest": longest_samples,
    "samples: random, equal tokens": random_tokens,
}
BY_LOSS = ("large: highest loss", "large: lowest loss", "large: lowest loss in clusters")


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


def verdict(table: Table) -> list[Figure]:
    """Return the gates on scale, clusters and length, and the differences that are only reported."""
    return [*_scale(table), *_clusters(table), *_length(table), *_only_reported(table)]


def _scale(table: Table) -> list[Figure]:
    small, large = "small: random", "large: random"
    loss_small, loss_large = "small: highest loss", "large: highest loss"
    best = max(table.difference(arm, large) for arm in BY_LOSS)
    more = _combined(table, {large: 1, loss_large: -1, small: -1, loss_small: 1})
    return [
        _gate("random, large - small pool", table.difference(large, small), (">", -0.03), ("<", 0.03)),
        _gate("large: random - highest loss", table.difference(large, loss_large), (">=", 0.3)),
        _gate("what highest loss loses to random, large - small pool", more, (">", 0.0)),
        _gate("large: best selection by the loss - random", best, ("<=", 0.03)),
    ]


def _clusters(table: Table) -> list[Figure]:
    inside, plain = "large: lowest loss in clusters", "large: lowest loss"
    stratified = table.difference("large: stratified random", "large: random")
    return [
        _gate("large: lowest loss, in clusters - plain", table.difference(inside, plain), (">=", 0.08)),
        _gate("large: stratified - plain random", stratified, (">=", -0.01)),
    ]


def _length(table: Table) -> list[Figure]:
    longest, few, equal = "samples: longest", "samples: random", "samples: random, equal tokens"
    tokens = {arm: f"{table.mean(arm, 'points'):.0f} tokens" for arm in (longest, few, equal)}
    by_number, by_tokens = table.difference(longest, few), table.difference(longest, equal)
    return [
        _gate(f"longest ({tokens[longest]}) - as many random samples ({tokens[few]})", by_number, (">=", 0.08)),
        _gate(f"longest - random of equal tokens ({tokens[equal]})", by_tokens, (">", -0.03), ("<", 0.03)),
    ]


def _only_reported(table: Table) -> list[Figure]:
    pairs = [(arm, "large: random") for arm in (*BY_LOSS, "large: k-center", "large: k-center of features")]
    pairs += [("small: highest loss", "small: random"), ("small: k-center", "small: random")]
    return [Figure(f"{arm} - random", "reported", *table.difference(arm, other)) for arm, other in pairs]


def _combined(table: Table, weights: Mapping[str, int]) -> stats.Interval:
    """Return the weighted sum of arms per test point, pooled over seeds, with its bootstrap interval."""
    items = sum(weight * np.concatenate(table.values(arm)) for arm, weight in weights.items())
    return stats.bootstrap_mean(items, rng=hashing.rng(table.row, sorted(weights)))


COMPARE = {">": operator.gt, "<": operator.lt, ">=": operator.ge, "<=": operator.le}


def _gate(name: str, found: stats.Interval, *rules: tuple[str, float]) -> Figure:
    """Return a gate on the value itself (the interval is shown, not gated): every (sign, bound) must hold."""
    rule = ", ".join(f"{sign} {bound:g}" for sign, bound in rules)
    return Figure(name, "gate", *found, rule, all(COMPARE[sign](found.value, bound) for sign, bound in rules))
