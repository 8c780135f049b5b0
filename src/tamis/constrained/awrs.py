"""One token under a constraint: adaptive weighted rejection sampling.

Row 69 (Lipkin et al. 2025, arXiv 2504.05410; official code: genlm/genlm-control). Tokens are drawn without replacement and
tested one by one until one passes, so that a constraint is asked about as many tokens as the model disagrees with it, not
about the vocabulary. What was tested on the way gives an unbiased estimate of the probability that a token passes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tamis.errors import ConfigError, ModelError

Predicate = Callable[[list[int]], bool]
"""A yes or no about generated tokens (the prompt's are not among them)."""

PEAKED = 2 / 3
"""Largest token probability from which the geometric estimator needs fewer tests than the recursive one."""


class Draw(NamedTuple):
    """A token, the logarithm of its weight (-inf: nothing allowed was found) and the number of tests it took."""

    token: int
    log_weight: float
    n_calls: int


@dataclass(frozen=True)
class AWRS:
    """Draws tokens x with weights w such that E[w 1(x = t)] = p(t) C(t) for every token t.

    C(t) is `constraint([*prefix, t])`: the tokens can still be completed; for a token of `end_ids` it is `complete(prefix)`.
    `method` "recursive" (tests one token after the first allowed one), "geometric" (needs `max_accepts` allowed ones, counted
    with replacement; the more, the less the weight varies), or "auto": recursive where `max_accepts` is 2 and no token has a
    probability of 2/3. At most `max_rejects` rejections (recursive weights are then too low on average, geometric ones not).
    `proper_weights=False` takes the first allowed token at weight 1: locally constrained decoding. Recursion gives up where
    allowed tokens can have no more than a share `mass_cutoff` of the mass (the official code: 1e-5; here 0: it never does).
    `prune` lists tokens known to be impossible: they are never drawn, and the weight keeps their mass.

    Raises ConfigError for settings that cannot give proper weights, for a constraint that answers anything but a bool, and
    for a proposal that never draws what the model may; ModelError for logits that are not numbers.
    """

    constraint: Predicate
    complete: Predicate
    end_ids: Sequence[int]
    max_accepts: int = 2
    max_rejects: float = math.inf
    method: Literal["auto", "recursive", "geometric"] = "auto"
    proper_weights: bool = True
    mass_cutoff: float = 0.0
    prune: Sequence[int] = ()

    def __post_init__(self) -> None:
        least = {"max_accepts": self.max_accepts, "max_rejects": self.max_rejects} if self.proper_weights else {}
        for name, value in least.items():
            if value < 2:
                raise ConfigError(f"{name} is {value}; proper weights need 2 or more", where="AWRS")
        if self.method == "recursive" and self.max_accepts != 2:
            raise ConfigError(
                f"max_accepts is {self.max_accepts}; the recursive estimator knows 2 only",
                where="AWRS",
                hint="Take the geometric one.",
            )
        if self.method not in ("auto", "recursive", "geometric"):
            raise ConfigError(f"there is no method '{self.method}'", where="AWRS", hint="auto, recursive or geometric.")
        if not 0 <= self.mass_cutoff < 1:
            raise ConfigError(f"mass_cutoff is {self.mass_cutoff}; it lies in [0, 1)", where="AWRS")
        if not len(self.end_ids):
            raise ConfigError("a text needs a token that ends it", where="AWRS", hint="Name it in end_ids.")

    def sample(self, logits: Any, prefix: Sequence[int], rng: np.random.Generator, proposal_logits: Any = None) -> Draw:
        """Draw the token after `prefix` from next-token `logits` (V,), or from those of a proposal, reweighted."""
        proposal = None if proposal_logits is None else softmax(np.asarray(proposal_logits))
        return self.draw(softmax(np.asarray(logits)), prefix, rng, proposal)

    def draw(
        self, masses: np.ndarray, prefix: Sequence[int], rng: np.random.Generator, proposal: np.ndarray | None = None
    ) -> Draw:
        """Draw the token after `prefix` from probabilities `masses` (V,) float64, or from a `proposal`'s (V,)."""
        drawn_from = masses if proposal is None else proposal
        if len(self.prune):
            drawn_from = drawn_from.copy()
            drawn_from[list(self.prune)] = 0
        left = Remaining(drawn_from)
        test = _Test(self, list(prefix))
        if left.mass == 0:
            return Draw(int(masses.argmax()), -math.inf, 0)
        token, weight = self._estimator(float(drawn_from.max()) / left.whole)(left, test, rng)
        log_weight = math.log(weight) if weight > 0 else -math.inf
        if proposal is not None and self.proper_weights and weight > 0:
            self._check_support(masses, drawn_from)
            log_weight += math.log(masses[token] / proposal[token]) if masses[token] > 0 else -math.inf
        return Draw(token, log_weight, test.calls)

    def end(self, masses: np.ndarray, prefix: Sequence[int], rng: np.random.Generator) -> Draw:
        """End the text here: an end token at the weight p(it) C(it), summed over all of them."""
        ends = masses[list(self.end_ids)]
        total = float(ends.sum())
        token = int(self.end_ids[int(rng.choice(len(ends), p=ends / total))]) if total > 0 else int(self.end_ids[0])
        test = _Test(self, list(prefix))
        passes = test(token) and total > 0
        return Draw(token, math.log(total) if passes else -math.inf, test.calls)

    def _estimator(self, peak: float) -> "Callable[[Remaining, _Test, np.random.Generator], tuple[int, float]]":
        if not self.proper_weights:
            return self._first
        if self.method == "auto":
            return self._geometric if self.max_accepts > 2 or peak >= PEAKED else self._recursive
        return self._recursive if self.method == "recursive" else self._geometric

    def _recursive(self, left: "Remaining", test: "_Test", rng: np.random.Generator) -> tuple[int, float]:
        """Weight of the first allowed token by one more test.

        E f(X) = q f(x) + (1 - q) E[f(X) | X not x], unrolled over the rejected tokens: their factors 1 - q multiply to the
        mass that was left, and the last one is 1 where the next token is allowed, else q = p(x) / (mass left).
        """
        rejects = 0
        while True:
            before = left.mass
            token, mass = left.take(rng)
            if test(token):
                return token, before if left.mass == 0 or test(left.take(rng)[0]) else mass
            rejects += 1
            if rejects >= self.max_rejects or left.mass <= self.mass_cutoff * left.whole:
                return token, 0.0

    def _geometric(self, left: "Remaining", test: "_Test", rng: np.random.Generator) -> tuple[int, float]:
        """Weight from the number of draws with replacement until `max_accepts` were allowed (Rao-Blackwell).

        Draws that would have hit a token rejected before are not made: their number is geometric in the mass left.
        """
        accepts, rejects, first, last = 0, 0, None, -1
        known: set[int] = set()
        while accepts < self.max_accepts and left.mass > (0 if accepts else self.mass_cutoff * left.whole):
            if left.mass < left.whole:
                rejects += int(rng.geometric(left.mass / left.whole)) - 1
            if rejects >= self.max_rejects:
                break
            last = left.draw(rng)
            if last in known or test(last):
                known.add(last)
                accepts, first = accepts + 1, last if first is None else first
            else:
                rejects += 1
                left.remove(last)
        if first is None:
            return last, 0.0
        return first, left.whole * min(self.max_accepts - 1, accepts) / (accepts + min(rejects, self.max_rejects) - 1)

    def _first(self, left: "Remaining", test: "_Test", rng: np.random.Generator) -> tuple[int, float]:
        rejects = 0
        while True:
            token, _ = left.take(rng)
            if test(token):
                return token, 1.0
            rejects += 1
            if rejects >= self.max_rejects or left.mass <= self.mass_cutoff * left.whole:
                return token, 0.0

    def _check_support(self, masses: np.ndarray, drawn_from: np.ndarray) -> None:
        missed = (masses > 0) & (drawn_from == 0)
        missed[list(self.prune)] = False
        if missed.any():
            raise ConfigError(
                f"the proposal never draws token {int(missed.argmax())}, which the model may", where="AWRS"
            )


class Remaining:
    """Tokens not taken yet, drawn in proportion to their `masses` (V,) float64; `mass` of those left, `whole` of all.

    Takes tokens in the law of Gumbel keys log p + Gumbel in descending order, at the cost of one running sum instead of V
    variates: a draw that hits a taken token is repeated, and when half of the mass is taken the sums are made anew. `mass` is
    therefore never the small difference of two large numbers, however little is left, and 0 exactly when nothing is.
    """

    def __init__(self, masses: np.ndarray) -> None:
        self._masses, self._taken = masses, set[int]()
        self._sum()
        self.whole = self.mass
        if not math.isfinite(self.whole):
            raise ModelError(
                "the model's logits are not finite numbers",
                hint="Its weights may be damaged, or its dtype too narrow: try dtype float32.",
            )

    def _sum(self) -> None:
        if self._taken:
            self._masses = self._masses.copy()
            self._masses[list(self._taken)] = 0
            self._taken = set()
        self._running = np.cumsum(self._masses)
        self.mass = self._total = float(self._running[-1])

    def draw(self, rng: np.random.Generator) -> int:
        """Return a token that is left, and leave it there."""
        while True:
            token = int(self._running.searchsorted(rng.random() * self._total, side="right"))
            if token < len(self._running) and token not in self._taken:
                return token

    def remove(self, token: int) -> float:
        """Take `token` out and return its mass."""
        mass = float(self._masses[token])
        self._taken.add(token)
        self.mass -= mass
        if self.mass <= self._total / 2:
            self._sum()
        return mass

    def take(self, rng: np.random.Generator) -> tuple[int, float]:
        """Return a token that was left, and its mass."""
        token = self.draw(rng)
        return token, self.remove(token)


class _Test:
    """Asks the constraint about the token after `prefix`, counting."""

    def __init__(self, awrs: AWRS, prefix: list[int]) -> None:
        self.awrs, self.prefix, self.calls = awrs, prefix, 0

    def __call__(self, token: int) -> bool:
        self.calls += 1
        ends = token in self.awrs.end_ids
        answer = self.awrs.complete(self.prefix) if ends else self.awrs.constraint([*self.prefix, token])
        return checked(answer)


def checked(answer: Any) -> bool:
    """Return a constraint's answer. Raises ConfigError where it is not a bool."""
    if not isinstance(answer, bool | np.bool_):
        raise ConfigError(
            f"a constraint answered {answer!r:.80}, which is neither True nor False",
            hint="Scores go into a critic; a constraint says yes or no.",
        )
    return bool(answer)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (V,) float64; NaN where logits are NaN, +inf, or nothing but -inf."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        weights = np.exp(wide - wide.max())
    return weights / weights.sum()
