"""Coding rate: how much ground a set of embeddings covers, and the greedy choice of rows that covers most.

R(S) = 1/2 logdet(I + X_S X_S^T / (eps^2 |S|)), natural logarithm, R(empty) = 0. Because |S| stands inside, a copy of one row
among several single ones lowers R. A copy that evens out the copies of others raises it again, so that among two or three
directions the stop rule of the greedy may keep some copies. Source: Ma et al. 2007 (lossy coding length), as Auto-Rubric
uses it (2025, arXiv 2510.17314). The paper's objective is the plain greedy, built here; its released code takes blocks by
distance from the centroid and subsamples rows and singular values, which is neither exact nor repeatable.
"""

from typing import NamedTuple

import numpy as np

EPS = 0.1
SAME = 1e-9
"""Gains that differ by less are equal, and the lower index wins."""


class Chosen(NamedTuple):
    """Rows in the order they were chosen, (k,) int64, and what each added to R, (k,) float64."""

    indices: np.ndarray
    gains: np.ndarray


def coding_rate(rows: np.ndarray, eps: float = EPS) -> float:
    """Return R of `rows` (n, d), as they are, in nats; 0 for no rows. Raises ValueError for NaN, infinity or eps <= 0."""
    x = _checked(rows, eps)
    if not len(x):
        return 0.0
    singular = np.linalg.svd(x, compute_uv=False)
    return float(0.5 * np.log1p(singular**2 / (eps**2 * len(x))).sum())


def coding_rate_select(
    rows: np.ndarray, k: int, *, eps: float = EPS, tau: float = 0.002, patience: int = 2, normalize: bool = True
) -> Chosen:
    """Return at most `k` rows of `rows` (n, d), each the one that adds most to R, ties to the lowest index.

    It stops by itself after `patience` successive gains below `tau`; those rows are taken back. With `normalize` rows are
    brought to length one. Of one step all gains come from one factorisation: with M = eps^2 s I + X_S^T X_S, s the new
    size, adding x changes 2 R by log(1 + x^T M^-1 x), so that a step is O(n d^2 + d^3).

    Raises ValueError for k < 1, eps <= 0, tau < 0, patience < 1, no rows, NaN or infinity, or a row of zeros where rows are
    normalised; it names the row.
    """
    x = _checked(rows, eps)
    if k < 1 or tau < 0 or patience < 1:
        raise ValueError(f"k and patience must be at least 1 and tau at least 0, not {k}, {patience} and {tau}")
    if not len(x):
        raise ValueError("there is no row to choose from")
    if normalize:
        x = normalised(x)
    covariance, rate, low = np.zeros((x.shape[1], x.shape[1])), 0.0, 0
    free = np.ones(len(x), dtype=bool)
    indices: list[int] = []
    gains: list[float] = []
    while len(indices) < min(k, len(x)):
        rates = _rates(x, covariance, eps**2 * (len(indices) + 1))
        rates[~free] = -np.inf
        best = int(np.argmax(rates >= rates.max() - SAME))
        indices.append(best)
        gains.append(float(rates[best]) - rate)
        rate, free[best] = float(rates[best]), False
        covariance += np.outer(x[best], x[best])
        low = low + 1 if gains[-1] < tau - SAME else 0
        if low == patience:
            indices, gains = indices[:-patience], gains[:-patience]
            break
    return Chosen(np.array(indices, dtype=np.int64), np.array(gains, dtype=np.float64))


def _rates(x: np.ndarray, covariance: np.ndarray, scale: float) -> np.ndarray:
    """Return R of the chosen rows and each row of `x`, (n,) float64; `covariance` is X_S^T X_S, `scale` eps^2 (|S| + 1)."""
    factor = np.linalg.cholesky(covariance + scale * np.eye(len(covariance)))
    chosen = 2 * np.log(np.diag(factor) / np.sqrt(scale)).sum()
    whitened = np.linalg.solve(factor, x.T)
    return 0.5 * (chosen + np.log1p((whitened**2).sum(axis=0)))


def normalised(rows: np.ndarray) -> np.ndarray:
    """Return the rows brought to length one, (n, d) float64. Raises ValueError that names a row of zeros."""
    x = np.asarray(rows, dtype=np.float64)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if (lengths == 0).any():
        raise ValueError(f"row {int(np.argmin(lengths))} is all zero, so that it has no direction")
    return x / lengths


def narrowed(rows: np.ndarray, dimensions: int = 100) -> np.ndarray:
    """Return `rows` (n, d) in at most `dimensions` principal directions, unchanged where they are not wider.

    The rows are not centred: R measures directions from the origin, and centring would turn a set of equal rows into zeros.
    Up to `dimensions` rows keep all their inner products.
    """
    x = np.asarray(rows, dtype=np.float64)
    if x.shape[1] <= dimensions:
        return x
    left, singular, _ = np.linalg.svd(x, full_matrices=False)
    return left[:, :dimensions] * singular[:dimensions]


def _checked(rows: np.ndarray, eps: float) -> np.ndarray:
    x = np.asarray(rows, dtype=np.float64)
    if x.ndim != 2:
        raise ValueError(f"rows must be of shape (n, d), not {x.shape}")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, not {eps}")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        raise ValueError(f"row {int(np.argmin(finite))} is not finite")
    return x
