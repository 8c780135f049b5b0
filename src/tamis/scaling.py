"""Scaling laws of fine-tuning: accuracy against data, pre-training loss, distinct paths and headroom.

Source: RFT (Yuan et al. 2023, arXiv 2308.01825), sections 3.1-3.3. Accuracies are fractions or points; slopes are in the
same unit.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from tamis.evaluators import stats
from tamis.hashing import derive_seed


@dataclass(frozen=True)
class Line:
    """A least-squares line y = intercept + slope * x with the slope's 95% interval."""

    intercept: float
    slope: float
    r2: float
    low: float
    high: float


def fit_data_law(n: np.ndarray, acc: np.ndarray) -> tuple[float, float, float]:
    """Fit acc = a + b * log2(n); return (a, b, r2). b is the gain per doubling of the data.

    `n` (M,) data amounts > 0, `acc` (M,) accuracies. Raises ValueError for fewer than 3 distinct amounts, amounts that
    are not positive, unequal lengths or values that are not finite.
    """
    n, acc = _pairs(n, acc)
    if n.min() <= 0:
        raise ValueError(f"data amounts must be positive, not {n.min()}")
    line = stats.least_squares(np.log2(n), acc)
    return line.intercept, line.slope, line.r2


def data_law_interval(
    n: np.ndarray, acc: np.ndarray, rng: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> tuple[float, float]:
    """Return the bootstrap interval (low, high) of b of the data law, resampling seeds.

    `n` (M,) data amounts, `acc` (S, M) accuracies of S seeds. The slope of a mean over seeds is the mean of the seeds'
    slopes, so each resample is a mean. Raises ValueError as `fit_data_law` does, and for fewer than 2 seeds.
    """
    acc = np.asarray(acc, dtype=np.float64)
    if acc.ndim != 2 or len(acc) < 2:
        raise ValueError(f"acc must be of shape (seeds >= 2, amounts), not {acc.shape}")
    slopes = np.array([fit_data_law(n, row)[1] for row in acc])
    means = slopes[rng.integers(len(slopes), size=(resamples, len(slopes)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fit_loss_law(loss: np.ndarray, acc: np.ndarray) -> tuple[float, float, float]:
    """Fit acc = c - s * loss over models; return (c, s, r) with Pearson's r.

    `loss` (M,) pre-training losses in nats per token. Raises ValueError for fewer than 3 distinct losses, unequal lengths,
    values that are not finite or a constant accuracy.
    """
    loss, acc = _pairs(loss, acc)
    line = stats.least_squares(loss, acc)
    return line.intercept, -line.slope, pearson(loss, acc)


def loss_against_size(loss: np.ndarray, parameters: np.ndarray, acc: np.ndarray) -> tuple[float, float]:
    """Return Pearson's r of accuracy with the pre-training loss, and with log(number of parameters), over models."""
    parameters = np.asarray(parameters, dtype=np.float64)
    if parameters.min() <= 0:
        raise ValueError("numbers of parameters must be positive")
    return pearson(loss, acc), pearson(np.log(parameters), acc)


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Return Pearson's correlation. Raises ValueError for fewer than 3 distinct x or a constant y."""
    x, y = _pairs(x, y)
    if np.ptp(y) == 0:
        raise ValueError("all accuracies are equal, so there is no correlation")
    return float(np.corrcoef(x, y)[0, 1])


def distinct_paths(keys: Sequence[Sequence[Hashable | None]], ks: Sequence[int]) -> np.ndarray:
    """Return the mean number of distinct correct paths per question after k samples, (len(ks),) float64.

    `keys[q]` are the reasoning keys of question q's samples in sample order, None for a rejected one. Raises ValueError for
    no questions, k < 1, or k beyond a question's samples.
    """
    if not keys:
        raise ValueError("there are no questions")
    shortest = min(len(question) for question in keys)
    if min(ks) < 1 or max(ks) > shortest:
        raise ValueError(f"k must be between 1 and the fewest samples of a question, {shortest}, not {list(ks)}")
    first = [question.index(key) for question in map(list, keys) for key in set(question) - {None}]
    return np.searchsorted(np.sort(first), ks, side="left") / len(keys)


def fit_diversity_law(paths: np.ndarray, gain: np.ndarray) -> Line:
    """Fit gain = intercept + slope * distinct paths per question (the gain of RFT over SFT), with the slope's t interval."""
    return _with_interval(*_pairs(paths, gain))


def fit_headroom_law(sft_acc: np.ndarray, gain: np.ndarray) -> Line:
    """Fit gain = intercept + slope * SFT accuracy over models, with the slope's t interval (paper: the slope is negative).

    `gain` is RFT - SFT accuracy, or b of the data law. Raises ValueError for fewer than 3 distinct accuracies.
    """
    return _with_interval(*_pairs(sft_acc, gain))


def nested_subsets(ids: Sequence[str], fractions: Sequence[float], seed: int) -> list[list[str]]:
    """Return for each fraction a subset of round(fraction * N) ids, at least 1; smaller ones lie inside larger ones.

    The order is by a hash of (seed, id). Raises ValueError for no ids, duplicates, or a fraction outside (0, 1].
    """
    if not ids or len(set(ids)) != len(ids):
        raise ValueError("ids must be unique and at least one")
    if not all(0 < f <= 1 for f in fractions):
        raise ValueError(f"fractions must lie in (0, 1], not {list(fractions)}")
    order = sorted(ids, key=lambda i: (derive_seed(seed, "nested", i), i))
    return [order[: max(1, int(f * len(ids) + 0.5))] for f in fractions]


def _pairs(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"both arrays must be one-dimensional and of one length, not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("all values must be finite")
    if len(np.unique(x)) < 3:
        raise ValueError(f"a fit needs at least 3 distinct points, not {len(np.unique(x))}")
    return x, y


def _with_interval(x: np.ndarray, y: np.ndarray, level: float = 0.95) -> Line:
    from scipy.stats import t

    line = stats.least_squares(x, y)
    deviation = x - x.mean()
    residual = y - line.intercept - line.slope * x
    error = np.sqrt(residual @ residual / (len(x) - 2) / (deviation @ deviation))
    half = float(t.ppf((1 + level) / 2, len(x) - 2) * error)
    return Line(line.intercept, line.slope, line.r2, line.slope - half, line.slope + half)
