"""Filtering parts of answers (sentences, phrases) so that all that are kept are right, at a risk that is promised.

The second level of row 75 (Conformal Language Modeling, Quach et al., ICLR 2024); the first is in `tamis.conformal`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from tamis.conformal import checked_labels, least_prompts, p_value, quantile_grid
from tamis.errors import ConfigError, DataError


def calibrate_components(
    scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], alpha: float = 0.2, delta: float = 0.05, n_grid: int = 25
) -> float:
    """Return gamma: parts of answers that score above it are all right for at least a share 1 - alpha of prompts.

    `scores[i]` and `labels[i]` are of the parts of prompt i, (m_i,). Thresholds are tested from +inf down over `n_grid`
    quantiles, each at level delta, up to the first failure. +inf keeps nothing and always passes: look at the recall of
    `component_metrics`. Raises DataError and ConfigError as `conformal.calibrate` does.
    """
    found = [np.asarray(s, dtype=np.float64) for s in scores]
    if len(found) != len(labels):
        raise DataError(f"{len(found)} prompts have scores and {len(labels)} have labels")
    if any(np.isnan(s).any() for s in found):
        raise DataError("a score is not a number")
    if len(found) < (least := least_prompts(alpha, delta)):
        raise ConfigError(f"{len(found)} prompts are too few: alpha {alpha:g} and delta {delta:g} take {least} or more")
    truth = [checked_labels(y, s.shape) for y, s in zip(labels, found, strict=True)]
    worst = np.array([s[y == 0].max(initial=-np.inf) for s, y in zip(found, truth, strict=True)])
    gamma = math.inf
    for candidate in quantile_grid(np.concatenate(found), n_grid)[-2:0:-1]:
        if p_value(int((worst > candidate).sum()), len(found), alpha) > delta:
            break
        gamma = float(candidate)
    return gamma


def filter_components(scores: ArrayLike, gamma: float) -> np.ndarray:
    """Return which parts are kept, (m,) bool: those that score above gamma."""
    return np.asarray(scores, dtype=np.float64) > gamma


def component_metrics(scores: Sequence[ArrayLike], labels: Sequence[ArrayLike], gamma: float) -> dict[str, float]:
    """Return "loss" (share of prompts with a wrong part kept), "kept" (share of parts) and "recall" (of right parts)."""
    pairs = [(filter_components(s, gamma), np.asarray(y) > 0) for s, y in zip(scores, labels, strict=True)]
    kept, right = (np.concatenate([pair[i] for pair in pairs]) for i in (0, 1))
    lost = float(np.mean([(mask & ~true).any() for mask, true in pairs]))
    return {"loss": lost, "kept": float(kept.mean()), "recall": float((kept & right).sum() / max(right.sum(), 1))}
