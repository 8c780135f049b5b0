"""Conformal sets: draw answers until an acceptable one is among them, at a risk that is promised.

Row 75 (Conformal Language Modeling, Quach et al., ICLR 2024, arXiv 2306.10193): Learn-then-Test with Pareto testing. The
promise is about the calibration: with probability 1 - delta over its prompts, at most a share eps of all further prompts of
the same kind is left without an acceptable answer. It says nothing of any single prompt.

Arrays of n prompts and at most K draws each: scores (n, K) float64, -inf where a draw gave no answer (it is never kept);
similarities (n, K, K) float64, of which the larger direction counts; labels (n, K), 1 where the answer is acceptable.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from tamis.errors import ConfigError, DataError

SetScore = Literal["first_k", "max", "sum", "geo"]
SET_SCORES: tuple[SetScore, ...] = ("first_k", "max", "sum", "geo")
T = TypeVar("T")


@dataclass(frozen=True)
class Point:
    """What the rule costs and risks on some prompts: means over them."""

    risk: float
    draws: float
    size: float

    @property
    def cost(self) -> float:
        """Draws and answers of a set, added up."""
        return self.draws + self.size


@dataclass(frozen=True)
class Promise:
    """What was asked of a calibration and what it saw: `tested` are the configurations on the calibration part, in the order
    of the tests (the last one failed unless all passed), on `n` prompts."""

    eps: float
    delta: float
    n: int
    tested: tuple[Point, ...] = ()

    @property
    def _asked(self) -> tuple[str, str]:
        return f"{percent(self.eps)} of prompts", f"{percent(1 - self.delta)} confidence"


@dataclass(frozen=True)
class CLMConfig(Promise):
    """The runtime rule that a calibration found valid; `found` is what it gave on the calibration part.

    A draw is rejected where its quality is below `quality`, or its similarity to a kept draw above `similarity`; drawing
    ends where the set score is at least `stop`. All three may be infinite.
    """

    set_score: SetScore = "max"
    similarity: float = math.inf
    quality: float = -math.inf
    stop: float = math.inf
    found: Point = Point(0.0, 0.0, 0.0)

    @property
    def sentence(self) -> str:
        """The promise in plain words."""
        at_most, confidence = self._asked
        return (
            f"At most {at_most} will lack an acceptable answer, with {confidence}. On {self.n} calibration prompts "
            f"{percent(self.found.risk)} lacked one, with {self.found.draws:.1f} draws and {self.found.size:.1f} answers "
            "a prompt."
        )


@dataclass(frozen=True)
class Abstain(Promise):
    """No configuration is valid: no set may be returned."""

    @property
    def sentence(self) -> str:
        """Why no promise is made, in plain words."""
        at_most, confidence = self._asked
        if self.n < least_prompts(self.eps, self.delta):
            why = f"{self.n} calibration prompts are too few: it takes {least_prompts(self.eps, self.delta)} or more"
        else:
            why = f"the safest configuration left {percent(self.tested[0].risk)} of {self.n} calibration prompts without one"
        return (
            f"No set is returned: it cannot be promised that at most {at_most} lack an acceptable answer, with {confidence}; "
            f"{why}."
        )


@dataclass(frozen=True)
class Sets:
    """Sets of n prompts: `kept` (n, K) bool, the draws that are members; `draws` (n,) int64, how many draws were made."""

    kept: np.ndarray
    draws: np.ndarray


def percent(share: float) -> str:
    """Return a share as "20%" or "2.5%"."""
    return f"{round(100 * share, 1):g}%"


def least_prompts(eps: float, delta: float) -> int:
    """Return the least number of calibration prompts with which a rule without any failure passes: log(delta) / log(1 - eps).

    Raises ConfigError unless eps and delta lie in (0, 1).
    """
    for name, value in (("eps", eps), ("delta", delta)):
        if not 0 < value < 1:
            raise ConfigError(f"{name} is {value:g}; it lies between 0 and 1", hint="Defaults: eps 0.2, delta 0.05.")
    n = math.ceil(math.log(delta) / math.log1p(-eps) - 1e-9)
    return max(1, n)


def p_value(losses: int, n: int, eps: float) -> float:
    """Return the p-value of "the risk is above eps" after `losses` failures on `n` prompts: P(Binom(n, eps) <= losses)."""
    from scipy.special import bdtr

    return float(bdtr(losses, n, eps))


def parts(n: int, opt_frac: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts (indices) of the optimisation and of the calibration part; none is in both.

    Raises ConfigError unless 0 < opt_frac < 1 and each part gets a prompt.
    """
    first = max(1, round(opt_frac * n))
    if not 0 < opt_frac < 1 or first >= n:
        raise ConfigError(f"{n} prompts cannot be cut in two at {opt_frac:g}", hint="Give more prompts.")
    order = np.random.default_rng(seed).permutation(n)
    return order[:first], order[first:]


def calibrate(
    scores: ArrayLike,
    sims: ArrayLike,
    labels: ArrayLike,
    eps: float = 0.2,
    delta: float = 0.05,
    set_score: SetScore = "max",
    n_grid: int = 25,
    opt_frac: float = 0.3,
    seed: int = 0,
) -> CLMConfig | Abstain:
    """Return the cheapest rule whose risk is at most eps with confidence 1 - delta, or an abstention.

    Part `opt_frac` of the prompts draws the Pareto front of (risk, draws + size) over a grid of `n_grid` observed quantiles
    of each threshold, -inf and +inf; the other part tests the front from the least risk on, each test at level delta, up
    to the first failure (fixed-sequence testing); the last that passed is taken. Ahead of the front the rule that keeps all
    K draws is tested, which the paper does not: none has less risk, so this costs nothing, and a front that a small
    optimisation part made too bold then ends in that rule and not in an abstention.

    Raises DataError for arrays that do not fit, ConfigError for eps, delta or opt_frac out of range and where the
    calibration part is so small that nothing can pass.
    """
    data = _checked(scores, sims, labels, set_score)
    optimise, test = parts(len(data[0]), opt_frac, seed)
    if len(test) < (least := least_prompts(eps, delta)):
        raise ConfigError(
            f"no rule can pass on {len(test)} calibration prompts: eps {eps:g} and delta {delta:g} take {least} or more",
            hint="Give more prompts or a larger eps.",
        )
    tested: list[Point] = []
    chosen: tuple[Rule, Point] | None = None
    whole = Rule(set_score, math.inf, -math.inf, math.inf)
    q, like, truth = data
    for rule in [whole, *pareto_front(q[optimise], like[optimise], truth[optimise], set_score, n_grid)]:
        found = build(rule, q[test], like[test])
        losses = missed(found, truth[test])
        tested.append(_point(found, losses))
        if p_value(int(losses.sum()), len(test), eps) > delta:
            break
        chosen = rule, tested[-1]
    asked = (eps, delta, len(test), tuple(tested))
    if chosen is None:
        return Abstain(*asked)
    rule, point = chosen
    return CLMConfig(*asked, set_score, rule.similarity, rule.quality, rule.stop, point)


@dataclass(frozen=True)
class Rule:
    """One configuration, not tested yet (fields as in `CLMConfig`)."""

    set_score: SetScore
    similarity: float
    quality: float
    stop: float


def pareto_front(
    scores: np.ndarray, sims: np.ndarray, labels: np.ndarray, set_score: SetScore, n_grid: int
) -> list[Rule]:
    """Return the configurations that none beats in both risk and cost on these prompts, by rising risk."""
    pairs = sims[:, *np.tril_indices(scores.shape[1], -1)]
    stops = quantile_grid(running(scores, np.isfinite(scores), set_score), n_grid)
    found: list[tuple[float, float, Rule]] = []
    for quality in quantile_grid(scores, n_grid).tolist():
        for similarity in quantile_grid(pairs, n_grid).tolist():
            kept = keep(scores, sims, similarity, quality)
            draws = _draws(running(scores, kept, set_score), stops)
            at = draws - 1
            hit = np.take_along_axis(np.logical_or.accumulate(kept & (labels > 0), axis=1), at, axis=1)
            size = np.take_along_axis(kept.cumsum(axis=1), at, axis=1)
            risks, costs = 1 - hit.mean(axis=0), draws.mean(axis=0) + size.mean(axis=0)
            rules = [Rule(set_score, similarity, quality, stop) for stop in stops.tolist()]
            found += zip(risks.tolist(), costs.tolist(), rules, strict=True)
    front: list[Rule] = []
    least = math.inf
    for _, cost, rule in sorted(found, key=lambda f: f[:2]):
        if cost < least:
            least = cost
            front.append(rule)
    return front


def build(rule: "Rule | CLMConfig", scores: np.ndarray, sims: np.ndarray) -> Sets:
    """Return the sets that a rule builds from draws (n, K) that were made already; it reads none beyond where it stops."""
    sims = np.maximum(sims, sims.swapaxes(1, 2))
    kept = keep(scores, sims, rule.similarity, rule.quality)
    draws = _draws(running(scores, kept, rule.set_score), np.array([rule.stop]))[:, 0]
    return Sets(kept & (np.arange(scores.shape[1]) < draws[:, None]), draws)


def keep(scores: np.ndarray, sims: np.ndarray, similarity: float, quality: float) -> np.ndarray:
    """Return which draws are kept, (n, K) bool: good enough, and like no earlier draw that was kept."""
    kept = np.isfinite(scores) & (scores >= quality)
    if similarity < math.inf:
        for k in range(1, scores.shape[1]):
            kept[:, k] &= ~(kept[:, :k] & (sims[:, k, :k] > similarity)).any(axis=1)
    return kept


def running(scores: np.ndarray, kept: np.ndarray, set_score: SetScore) -> np.ndarray:
    """Return the set score after each draw, its running maximum, (n, K) float64.

    first_k: draws made. max: best kept score, -inf for an empty set. sum: of kept scores. geo: -sum log(1 - score).
    """
    if set_score == "first_k":
        return np.broadcast_to(np.arange(1.0, scores.shape[1] + 1), scores.shape)
    if set_score == "max":
        return np.maximum.accumulate(np.where(kept, scores, -np.inf), axis=1)
    if set_score == "sum":
        return np.where(kept, scores, 0.0).cumsum(axis=1)
    with np.errstate(divide="ignore"):
        return (-np.log1p(-np.where(kept, scores, 0.0))).cumsum(axis=1)


def _draws(found: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Return draws until the set score (n, K) reaches each stop (S,): (n, S) int64, at most K."""
    return np.minimum((found[:, :, None] < stops).sum(axis=1) + 1, found.shape[1])


def quantile_grid(values: np.ndarray, n_grid: int) -> np.ndarray:
    """Return observed quantiles, -inf and +inf, without repeats, rising."""
    seen = values[np.isfinite(values)]
    inner = np.quantile(seen, np.linspace(0, 1, n_grid), method="inverted_cdf") if seen.size else []
    return np.unique([-np.inf, *inner, np.inf])


def missed(sets: Sets, labels: np.ndarray) -> np.ndarray:
    """Return whether each set lacks an acceptable answer, (n,) bool."""
    return np.asarray(~(sets.kept & (labels > 0)).any(axis=1))


def _point(sets: Sets, losses: np.ndarray) -> Point:
    return Point(float(losses.mean()), float(sets.draws.mean()), float(sets.kept.sum(axis=1).mean()))


def clm_metrics(sets: Sets, labels: ArrayLike) -> dict[str, float]:
    """Return means over prompts: "loss", "size", "draws", "excess draws", and "worst stratified loss".

    Excess are the draws beyond the first acceptable one (0 where none was reached). The last is the largest mean loss of a
    stratum of set sizes, cut at their quartiles. Raises DataError for labels that do not fit.
    """
    truth = checked_labels(labels, sets.kept.shape)
    losses, size = missed(sets, truth), sets.kept.sum(axis=1)
    first = np.where(truth.any(axis=1), truth.argmax(axis=1) + 1, truth.shape[1])
    stratum = np.digitize(size, np.unique(np.quantile(size, [0.25, 0.5, 0.75])))
    return {
        "loss": float(losses.mean()),
        "size": float(size.mean()),
        "draws": float(sets.draws.mean()),
        "excess draws": float(np.maximum(sets.draws - first, 0).mean()),
        "worst stratified loss": max(float(losses[stratum == s].mean()) for s in np.unique(stratum)),
    }


def checked_labels(labels: ArrayLike, shape: tuple[int, ...]) -> np.ndarray:
    """Return labels as int64 of this shape. Raises DataError for another shape, or values other than 0 and 1."""
    found = np.asarray(labels)
    if found.shape != shape:
        raise DataError(f"labels have the shape {found.shape}, and the draws {shape}")
    if not np.isin(found, (0, 1)).all():
        raise DataError(
            "labels are 0 or 1: 1 where an answer is acceptable", hint="Set a threshold on the judge's score."
        )
    return found.astype(np.int64)


def _checked(
    scores: ArrayLike, sims: ArrayLike, labels: ArrayLike, set_score: SetScore
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found, like = np.asarray(scores, dtype=np.float64), np.asarray(sims, dtype=np.float64)
    if set_score not in SET_SCORES:
        raise ConfigError(f"there is no set score '{set_score}'", hint=f"Known: {', '.join(SET_SCORES)}.")
    if found.ndim != 2 or not found.size or like.shape != (*found.shape, found.shape[-1]):
        raise DataError(f"scores are (n, K) and similarities (n, K, K), not {found.shape} and {like.shape}")
    if np.isnan(found).any() or np.isposinf(found).any() or np.isnan(like).any():
        raise DataError("a score or similarity is not a number", hint="-inf stands for a draw that gave no answer.")
    low, high = {"sum": (0.0, math.inf), "geo": (0.0, 1.0)}.get(set_score, (-math.inf, math.inf))
    answered = found[np.isfinite(found)]
    if (answered < low).any() or (answered > high).any():
        raise DataError(f"set score '{set_score}' takes scores from {low:g} to {high:g}")
    return found, np.maximum(like, like.swapaxes(1, 2)), checked_labels(labels, found.shape)


@dataclass
class SetBuilder:
    """The set of one prompt, draw by draw: `kept` are the numbers of its members, from 0."""

    config: CLMConfig
    k_max: int
    kept: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    @property
    def draws(self) -> int:
        """How many draws were added."""
        return len(self.scores)

    @property
    def reached(self) -> bool:
        """Whether the set score is at least the rule's stop."""
        if not self.scores:
            return False
        held = np.isin(np.arange(self.draws), self.kept)[None]
        return bool(running(np.array([self.scores]), held, self.config.set_score)[0, -1] >= self.config.stop)

    @property
    def done(self) -> bool:
        """Whether no further draw is to be made."""
        return self.draws >= self.k_max or self.reached

    def add(self, score: float, similar: Sequence[float]) -> str:
        """Add a draw with its similarity to each earlier one; returns what becomes of it, "kept" or why it is rejected."""
        number = self.draws
        self.scores.append(score)
        if not math.isfinite(score):
            return "no answer"
        if score < self.config.quality:
            return "low quality"
        if any(similar[j] > self.config.similarity for j in self.kept):
            return "like another"
        self.kept.append(number)
        return "kept"


@dataclass(frozen=True)
class ConformalSet(Generic[T]):
    """The set of a prompt: `items`, the draws it took, and whether the stop rule ended it (else `k_max` did)."""

    items: list[T]
    draws: int
    stopped: bool


@dataclass(frozen=True)
class ConformalSampler(Generic[T]):
    """Builds sets with any model: `sample(x, k)` gives draw k (from 0), `quality(x, item)` and `similarity(a, b)` numbers.

    Raises ConfigError for an abstention: without a valid rule there is no set.
    """

    sample: Callable[[Any, int], T]
    quality: Callable[[Any, T], float]
    similarity: Callable[[T, T], float]
    config: CLMConfig | Abstain
    k_max: int = 20

    def run(self, x: Any) -> ConformalSet[T]:
        """Return the set of `x`."""
        if isinstance(self.config, Abstain):
            raise ConfigError(self.config.sentence)
        built, items = SetBuilder(self.config, self.k_max), list[T]()
        while not built.done:
            new = self.sample(x, built.draws)
            similar = [max(self.similarity(old, new), self.similarity(new, old)) for old in items]
            built.add(self.quality(x, new), similar)
            items.append(new)
        return ConformalSet([items[i] for i in built.kept], built.draws, built.reached)
