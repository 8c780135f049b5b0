"""Stated probabilities: reading them, scoring them so that honesty pays, and how well they are calibrated. Pure.

Row 113 (Judging with Confidence: Calibrating Autoraters to Preference Distributions, Li et al. 2025, arXiv 2510.00263). The
marker "[P: x]", what an invalid statement costs, and the clip of the logarithmic rule are our choices.
"""

import re
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tamis.errors import ConfigError, DataError
from tamis.evaluators import stats
from tamis.hashing import rng as derived

Rule = Literal["brier", "log"]
CLIP = 0.01
BINS = 10
MARKER = ("[P:", "]")
_DECIMAL = re.compile(r"[0-9]+\.?[0-9]*|\.[0-9]+")


def statement(p: float, decimals: int = 2) -> str:
    """Return a probability as it is stated: "[P: 0.70]"."""
    return f"{MARKER[0]} {p:.{decimals}f}{MARKER[1]}"


def parse_probability(text: str, marker: tuple[str, str] = MARKER) -> float | None:
    """Return the probability that `text` states, None where it states none or more than one.

    Exactly one marker, whose whole content is a plain decimal in [0, 1] (".7" and "1" are fine): no sign, %, exponent or second
    number.
    """
    opening, closing = marker
    rest = text.partition(opening)[2]
    inside, closed, after = rest.partition(closing)
    if not closed or opening in inside + after or not _DECIMAL.fullmatch(inside.strip()):
        return None
    value = float(inside)
    return value if value <= 1 else None


def proper_score(
    p: ArrayLike, z: ArrayLike, rule: Rule = "brier", *, clip: float = CLIP, invalid: ArrayLike | None = None
) -> np.ndarray:
    """Return (N,) float64: the score of stated probabilities `p` (N,) at outcomes `z` (N,); higher is better.

    brier: -(p - z)^2, in [-1, 0]. log: z ln q + (1 - z) ln(1 - q) in nats, q = p kept within [clip, 1 - clip], in [ln clip, 0].
    Expected over z, both are highest only at the true probability. A fractional z is a share of outcomes: what is returned
    is the score expected of them. Where `invalid` (N,) bool is true nothing was stated (p is not looked at), and the score is
    the rule's lowest.

    Raises DataError naming the first p or z outside [0, 1], ConfigError for another rule or a clip outside (0, 0.5).
    """
    stated, outcome = np.asarray(p, dtype=np.float64), np.asarray(z, dtype=np.float64)
    unsaid = np.zeros(stated.shape, dtype=bool) if invalid is None else np.asarray(invalid, dtype=bool)
    _check("p", np.where(unsaid, 0.0, stated))
    _check("z", outcome)
    if rule == "brier":
        lowest, found = -1.0, -(outcome * (1 - stated) ** 2 + (1 - outcome) * stated**2)
    elif rule == "log":
        if not 0 < clip < 0.5:
            raise ConfigError(f"clip is {clip}; it must lie between 0 and 0.5", hint="0.01 is usual.")
        q = np.clip(stated, clip, 1 - clip)
        lowest, found = float(np.log(clip)), outcome * np.log(q) + (1 - outcome) * np.log(1 - q)
    else:
        raise ConfigError(f"unknown rule '{rule}'", hint="Known: brier, log.")
    return np.where(unsaid, lowest, found)


def _check(name: str, values: np.ndarray) -> None:
    outside = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(outside):
        at = int(outside[0])
        raise DataError(f"{name}[{at}] is {values.flat[at]}; a probability lies in [0, 1]")


def centred_advantages(rewards: ArrayLike, *, scale_rewards: bool = False) -> np.ndarray:
    """Return rewards (..., G) minus the mean of their group of G samples, float64: the policy gradient of a proper score.

    Raises ConfigError for groups of one, and for `scale_rewards`: dividing by the group's standard deviation multiplies by a
    factor that depends on the outcome, turns the quadratic rule into about |p - z|, and drives every p to 0 or 1.
    """
    found = np.asarray(rewards, dtype=np.float64)
    if scale_rewards:
        raise ConfigError(
            "a proper scoring rule must not be divided by the group's standard deviation: it is then no longer proper",
            hint="Train with scale_rewards=False (scale: none).",
        )
    if found.shape[-1] < 2:
        raise ConfigError("a group of one sample has no advantage over its own mean", hint="Draw at least 2, e.g. 8.")
    return found - found.mean(axis=-1, keepdims=True)


def binned(p: np.ndarray, y: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Return (N, bins, 3) float64: 1, p and y in the row's equal-width bin of p (the last one closed), 0 in the others."""
    members = np.eye(bins)[np.minimum((p * bins).astype(np.int64), bins - 1)]
    return np.stack([members, members * p[:, None], members * y[:, None]], axis=2)


def calibration_error(totals: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of bins summed over rows, (..., bins, 3) as `binned` gives: (...)."""
    found = abs(totals[..., 1] - totals[..., 2]).sum(axis=-1) / totals[..., 0].sum(axis=-1)
    return np.asarray(found)


class Reported(NamedTuple):
    """A figure with its 95% interval over pairs, and each pair's part (N,) float64, of which it is the mean."""

    interval: stats.Interval
    per_pair: np.ndarray


def calibration_report(
    g12: ArrayLike, g21: ArrayLike, p_star: ArrayLike | None = None, z: ArrayLike | None = None, *, bins: int = BINS
) -> dict[str, Reported]:
    """Return how a judge's probabilities meet the known ones, by name of the figure.

    `g12` (N,): P(first preferred) with the pair as given; `g21` (N,): P(what then stands first) with the pair swapped; NaN
    where nothing valid was said. `p_star` (N,): share of raters who prefer the first; `z` (N,): a rating, 1 for the first (a
    share stands for several). Figures: "mse" to p_star; "brier" to z; "ece" over equal-width bins and "log loss" (nats, clipped
    at 0.01) to p_star, else z; "agreement" (same side of 1/2; 1/2 on either side counts half); "positional bias", mean |g12 +
    g21 - 1|; "consistency" (both orders name the same answer, or neither names one); "invalid".

    An invalid statement is never left out: its squared error, its gap and its positional bias are 1, its log loss the
    highest, and it agrees with nothing. Both orders of a pair are one unit of the bootstrap; the interval of "ece" keeps the
    signs of the gaps. Raises ConfigError when p_star and z are both missing or lengths differ, DataError outside [0, 1].
    """
    if p_star is None and z is None:
        raise ConfigError("a calibration needs p_star or z: shares of raters, or ratings")
    said = np.stack([np.asarray(g, dtype=np.float64) for g in (g12, g21)])
    share, rating = (None if t is None else np.asarray(t, dtype=np.float64) for t in (p_star, z))
    goal = share if share is not None else rating
    assert goal is not None
    for name, known in (("p_star", share), ("z", rating)):
        if known is not None and known.shape != said[0].shape:
            raise ConfigError(f"{name} has the shape {known.shape}, the probabilities {said[0].shape}")
    for name, values in (("g12", said[0]), ("g21", said[1]), ("p_star", share), ("z", rating)):
        if values is not None:
            _check(name, np.nan_to_num(values) if name in ("g12", "g21") else values)
    unsaid = np.isnan(said)
    p = np.where(unsaid, 0.5, said)
    parts = {
        "ece": _gaps(p, _both(goal), unsaid, bins),
        "log loss": -_scored(p, _both(goal), "log", unsaid),
        "agreement": np.where(unsaid, 0.0, 0.5 + 0.5 * np.sign(p - 0.5) * np.sign(_both(goal) - 0.5)).mean(axis=0),
        "positional bias": np.where(unsaid.any(axis=0), 1.0, abs(p.sum(axis=0) - 1)),
        "consistency": ((np.sign(p[0] - 0.5) == -np.sign(p[1] - 0.5)) & ~unsaid.any(axis=0)).astype(float),
        "invalid": unsaid.mean(axis=0),
    }
    if rating is not None:
        parts = {"brier": -_scored(p, _both(rating), "brier", unsaid), **parts}
    if share is not None:
        parts = {"mse": np.where(unsaid, 1.0, (p - _both(share)) ** 2).mean(axis=0), **parts}
    return {name: _reported(name, values) for name, values in parts.items()}


def _both(target: np.ndarray) -> np.ndarray:
    return np.stack([target, 1 - target])


def _scored(p: np.ndarray, target: np.ndarray, rule: Rule, invalid: np.ndarray) -> np.ndarray:
    flat = proper_score(p.ravel(), target.ravel(), rule, invalid=invalid.ravel())
    return np.asarray(flat.reshape(p.shape).mean(axis=0))


def _gaps(p: np.ndarray, target: np.ndarray, invalid: np.ndarray, bins: int) -> np.ndarray:
    """Return each pair's part of the ECE (N,): its signed gaps, the sign that of its bin; invalid ones have a gap of 1."""
    valid = ~invalid.ravel()
    rows = binned(p.ravel(), target.ravel(), bins) * valid[:, None, None]
    gap = rows[..., 1] - rows[..., 2]
    parts = np.where(valid, gap @ np.sign(gap.sum(axis=0)), 1.0)
    return np.asarray(parts.reshape(p.shape).mean(axis=0))


def _reported(name: str, values: np.ndarray) -> Reported:
    found = stats.bootstrap_mean(values, rng=derived("calibration", name, len(values)))
    return Reported(stats.Interval(found.value, max(0.0, found.low), found.high), values)
