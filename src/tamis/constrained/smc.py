"""Texts under a constraint by sequential Monte Carlo: particles that grow token by token, weighted and resampled.

Row 69 (Lipkin et al. 2025, arXiv 2504.05410), with a critic as in Loula et al. 2025 (arXiv 2504.13139).
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from tamis.constrained.awrs import Draw, Predicate, checked
from tamis.errors import ConfigError, ModelError

Critic = Callable[[list[int], bool], float]
"""(generated tokens, whether the text has ended) -> log of a non-negative score of the text so far; -inf kills it."""


class TokenSampler(Protocol):
    """Draws one token and its weight; `AWRS` is one."""

    @property
    def constraint(self) -> Predicate:
        """Whether generated tokens can still be completed."""
        ...

    @property
    def end_ids(self) -> Sequence[int]:
        """Tokens that end a text."""
        ...

    def draw(self, masses: np.ndarray, prefix: Sequence[int], rng: np.random.Generator) -> Draw:
        """Draw the token after `prefix` from probabilities `masses` (V,)."""
        ...

    def end(self, masses: np.ndarray, prefix: Sequence[int], rng: np.random.Generator) -> Draw:
        """End the text after `prefix`."""
        ...


@dataclass(frozen=True)
class WeightedSequences:
    """N texts of one prompt, weighted so that they stand for the model's law given the constraint.

    `contexts`: generated tokens, the end token included (of a particle that died: up to where it did). `log_weights` (N,)
    float64: normalised, -inf for the dead. `log_ml`: log of an unbiased estimate of the probability that the model's own text
    satisfies the constraint (with a critic: of the expected score of those that do). `ess`: 1 / sum of squared weights.
    `logprobs`: of each token under the model at temperature 1. `n_calls`: constraint evaluations asked for. `passes`: rows run
    through the model. `status`: "dead" where no particle satisfies the constraint; `log_ml` is then -inf and `ess` 0.
    """

    contexts: tuple[tuple[int, ...], ...]
    log_weights: np.ndarray
    log_ml: float
    ess: float
    n_calls: int
    status: Literal["ok", "dead"]
    logprobs: tuple[tuple[float, ...], ...]
    passes: int


@dataclass(frozen=True)
class _Particle:
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    log_weight: float = 0.0
    critique: float = 0.0
    ended: bool = False

    @property
    def live(self) -> bool:
        return not self.ended and self.log_weight > -math.inf

    def grown(self, drawn: Draw, logprob: float, ended: bool, critic: Critic | None) -> "_Particle":
        tokens, log_weight, critique = (*self.tokens, drawn.token), self.log_weight + drawn.log_weight, self.critique
        if critic and log_weight > -math.inf:
            critique = _score(critic, tokens, ended)
            log_weight += critique - self.critique
        return _Particle(tokens, (*self.logprobs, logprob), log_weight, critique, ended)


def smc(
    model: Any,
    prompt_ids: Sequence[int],
    token_sampler: TokenSampler,
    *,
    max_tokens: int,
    rng: np.random.Generator,
    n_particles: int = 10,
    ess_threshold: float = 0.5,
    critic: Critic | None = None,
    temperature: float = 1.0,
) -> WeightedSequences:
    """Grow `n_particles` texts of at most `max_tokens` tokens, the end token included, from `model.session(prompt_ids)`.

    Each step draws a token of every living particle and multiplies its weight W by the token's. An end token ends a
    particle; the last of `max_tokens` is one in any case, at the weight p(end) C(end). When (sum W)^2 / sum W^2 is below
    `ess_threshold` * N, N particles are drawn from all of them, ended ones too, in proportion to W, and every W becomes
    their mean. Particles with the same tokens share a row of the model. Logits are divided by `temperature` first: the law
    given the constraint is then that of the tempered model.

    Raises ConfigError for sizes out of range, a constraint that refuses the empty text, and a critic that gives no number;
    ModelError for a model without sessions, or whose logits are not numbers.
    """
    from tamis.generation import open_session

    _check(n_particles, max_tokens, temperature)
    if not checked(token_sampler.constraint([])):
        raise ConfigError("the constraint refuses even the empty text: nothing satisfies it")
    session = open_session(model, prompt_ids)
    start = _score(critic, (), False) if critic else 0.0
    particles = [_Particle(log_weight=start, critique=start)] * n_particles
    rows: dict[tuple[int, ...], int] = {(): 0}
    calls = 1
    for step in range(max_tokens):
        if not any(p.live for p in particles):
            break
        laws, logprobs = _laws(session.logits, temperature)
        draw = token_sampler.draw if step + 1 < max_tokens else token_sampler.end
        for i, p in enumerate(particles):
            if p.live:
                row = rows[p.tokens]
                drawn = draw(laws[row], p.tokens, rng)
                calls += drawn.n_calls
                ended = drawn.token in token_sampler.end_ids
                particles[i] = p.grown(drawn, float(logprobs[row, drawn.token]), ended, critic)
        particles = _resampled(particles, ess_threshold, rng)
        fresh = _placed(dict.fromkeys(p.tokens for p in particles if p.live), rows)
        if fresh:
            session.extend([rows[tokens[:-1]] for tokens in fresh], [tokens[-1] for tokens in fresh])
        rows = {tokens: row for row, tokens in enumerate(fresh)}
    return _summary(particles, calls, session.passes)


def _check(n_particles: int, max_tokens: int, temperature: float) -> None:
    for name, value in (("n_particles", n_particles), ("max_tokens", max_tokens)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be 1 or more")
    if not temperature > 0:
        raise ConfigError(f"temperature is {temperature}; it must be above 0")


def _score(critic: Critic, tokens: Sequence[int], ended: bool) -> float:
    score = float(critic(list(tokens), ended))
    if math.isnan(score) or score == math.inf:
        raise ConfigError(f"the critic scored a text {score}; it must be a number, or -inf")
    return score


def _laws(logits: Any, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Return tempered probabilities (n, V) and plain log-probabilities (n, V), float64, of logits (n, V), a tensor."""
    wide = logits.cpu().double()
    shifted = wide - wide.amax(-1, keepdim=True)
    weights = (shifted / temperature if temperature != 1 else shifted).exp()
    totals = weights.sum(-1, keepdim=True)
    plain = shifted - (totals.log() if temperature == 1 else shifted.logsumexp(-1, keepdim=True))
    if bool(totals.isnan().any()):
        raise ModelError(
            "the model's logits are not finite numbers",
            hint="Its weights may be damaged, or its dtype too narrow: try dtype float32.",
        )
    return (weights / totals).numpy(), plain.numpy()


def _placed(texts: Collection[tuple[int, ...]], rows: Mapping[tuple[int, ...], int]) -> list[tuple[int, ...]]:
    """Return grown `texts` so ordered that as many as can be stay in the row of their beginning, where nothing is copied."""
    placed: dict[int, tuple[int, ...]] = {}
    others = []
    for text in texts:
        row = rows[text[:-1]]
        if row < len(texts) and row not in placed:
            placed[row] = text
        else:
            others.append(text)
    return [placed[row] if row in placed else others.pop() for row in range(len(texts))]


def _resampled(particles: list[_Particle], ess_threshold: float, rng: np.random.Generator) -> list[_Particle]:
    peak, weights = _scaled(particles)
    if peak == -math.inf or weights.sum() ** 2 >= ess_threshold * len(particles) * (weights**2).sum():
        return particles
    chosen = rng.choice(len(particles), len(particles), p=weights / weights.sum())
    mean = peak + math.log(weights.mean())
    return [replace(particles[i], log_weight=mean) for i in chosen]


def _scaled(particles: Sequence[_Particle]) -> tuple[float, np.ndarray]:
    """Return the largest log-weight and all weights (N,) divided by the largest."""
    log_weights = np.array([p.log_weight for p in particles])
    peak = float(log_weights.max())
    return peak, np.exp(log_weights - peak) if peak > -math.inf else np.zeros(len(particles))


def _summary(particles: Sequence[_Particle], calls: int, passes: int) -> WeightedSequences:
    peak, weights = _scaled(particles)
    dead = peak == -math.inf
    total = weights.sum()
    with np.errstate(divide="ignore"):
        log_weights = np.log(weights) if dead else np.log(weights / total)
    return WeightedSequences(
        contexts=tuple(p.tokens for p in particles),
        log_weights=log_weights,
        log_ml=peak if dead else peak + math.log(weights.mean()),
        ess=0.0 if dead else float(total**2 / (weights**2).sum()),
        n_calls=calls,
        status="dead" if dead else "ok",
        logprobs=tuple(p.logprobs for p in particles),
        passes=passes,
    )
