"""Statistics that every check, evaluator and comparison shares: intervals, paired tests, fits, estimators.

Pure functions of arrays; randomness comes from the generator that is handed in. Figures of two models on the same
prompts are compared in pairs, and a tie is reported as one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from tamis.errors import ConfigError

CHUNK = 1 << 22
"""Elements of a resampling block; bounds the memory of every bootstrap and permutation at about 64 MB."""


class Interval(NamedTuple):
    """An estimate with its confidence interval; low <= value <= high."""

    value: float
    low: float
    high: float


class Line(NamedTuple):
    """A fitted line y = intercept + slope * x with its share of explained variance."""

    slope: float
    intercept: float
    r2: float


@dataclass(frozen=True)
class Paired:
    """Two models on the same items: mean difference (after - before), its 95% interval and the p-value of `test`.

    `gained` and `lost` are ids that got better and worse. `kept_right` and `kept_wrong` count the unchanged items of
    value at least 0.5 and below it, so that the four add up to `n`.
    """

    value: float
    low: float
    high: float
    p_value: float
    test: str
    n: int
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    kept_right: int
    kept_wrong: int


def wilson(successes: float, n: float, level: float = 0.95) -> Interval:
    """Return the share successes / n with its score interval (Wilson 1927, without continuity correction).

    Raises ConfigError unless 0 <= successes <= n and n >= 1.
    """
    from scipy.special import ndtri

    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"a share needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    z = float(ndtri(0.5 + _checked_level(level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high)


def bootstrap_mean(
    values: ArrayLike, *, rng: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return the mean of `values` (N,) with its percentile bootstrap interval over items (Efron 1979).

    Raises ConfigError for no values or a value that is not finite.
    """
    items = _items(values)
    return _percentile(float(items.mean()), _resampled_means(items, rng, resamples), level)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Interval:
    """Return sum(numerators) / sum(denominators), both (N,), with its percentile bootstrap interval over items.

    Denominators must be positive. Raises ConfigError for other input.
    """
    above, below = _pair(numerators, denominators)
    if (below <= 0).any():
        raise ConfigError("a ratio needs positive denominators")
    sums = [above[rows].sum(axis=1) / below[rows].sum(axis=1) for rows in _resampled_rows(len(above), rng, resamples)]
    return _percentile(float(above.sum() / below.sum()), np.concatenate(sums), level)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, *, rng: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return mean(a - b) with its percentile bootstrap interval; item i of `a` (N,) and of `b` (N,) belong together.

    Raises ConfigError for different lengths, no items or a value that is not finite.
    """
    first, second = _pair(a, b)
    return bootstrap_mean(first - second, rng=rng, resamples=resamples, level=level)


def clustered_bootstrap(
    values: ArrayLike, *, rng: np.random.Generator, resamples: int = 10_000, level: float = 0.95
) -> Interval:
    """Return the mean of `values` (S, N) with an interval that resamples seeds, then prompts within each drawn seed.

    For figures (or paired differences) of N prompts under each of S training seeds; with S = 1 it is the plain
    bootstrap. Raises ConfigError unless `values` is a finite, non-empty matrix.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or table.size == 0 or not np.isfinite(table).all():
        raise ConfigError(f"expected finite values of shape (seeds, prompts), found shape {table.shape}")
    seeds, prompts = table.shape
    means = []
    for count in _blocks(resamples, seeds * prompts):
        drawn = rng.integers(0, seeds, (count, seeds, 1))
        means.append(table[drawn, rng.integers(0, prompts, (count, seeds, prompts))].mean(axis=(1, 2)))
    return _percentile(float(table.mean()), np.concatenate(means), level)


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p-value of McNemar's test for `gained` and `lost` discordant items.

    The law is binomial with p = 1/2; 1.0 when there are none. Raises ConfigError for negative counts.
    """
    from scipy.special import bdtr

    if gained < 0 or lost < 0:
        raise ConfigError(f"discordant counts must not be negative: {gained}, {lost}")
    if gained == lost:
        return 1.0
    return float(min(1.0, 2 * bdtr(min(gained, lost), gained + lost, 0.5)))


def paired_permutation(a: ArrayLike, b: ArrayLike, rng: np.random.Generator, *, resamples: int = 10_000) -> float:
    """Return the two-sided p-value of the sign-flip permutation test of mean(a - b) = 0.

    All 2^m sign patterns of the m non-zero differences are enumerated when there are at most `resamples`; otherwise
    `resamples` random ones are drawn and p = (hits + 1) / (resamples + 1) (Phipson and Smyth 2010), which is never 0.
    """
    first, second = _pair(a, b)
    differences = (first - second)[first != second]
    if len(differences) == 0:
        return 1.0
    bound = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    if 2 ** min(len(differences), 63) <= resamples:
        return float(np.mean(np.abs(_all_sign_sums(differences)) >= bound))
    hits = sum(
        int((np.abs(_signs(rng, count, len(differences)) @ differences) >= bound).sum())
        for count in _blocks(resamples, len(differences))
    )
    return (hits + 1) / (resamples + 1)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Return p-values adjusted for multiple tests by Holm's step-down method (1979), in the order given, float64.

    Raises ConfigError for values outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ConfigError("p-values must be a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's rank correlation of `x` (N,) and `y` (N,), ties by average rank; NaN when either is constant.

    Raises ConfigError for fewer than two items, different lengths or values that are not finite.
    """
    from scipy.stats import rankdata

    first, second = _pair(x, y)
    if len(first) < 2:
        raise ConfigError("a correlation needs at least two items")
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    scale = math.sqrt(float((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(ranks[0] @ ranks[1]) / scale if scale else math.nan


def least_squares(x: ArrayLike, y: ArrayLike) -> Line:
    """Return the least-squares line of `y` (N,) on `x` (N,); `r2` is 1.0 where `y` is constant.

    Raises ConfigError for fewer than two distinct x, different lengths or values that are not finite.
    """
    first, second = _pair(x, y)
    dx, dy = first - first.mean(), second - second.mean()
    if len(np.unique(first)) < 2:
        raise ConfigError("a line needs at least two distinct x values")
    slope = float(dx @ dy / (dx @ dx))
    spread = float(dy @ dy)
    residual = float(((dy - slope * dx) ** 2).sum())
    return Line(slope, float(second.mean() - slope * first.mean()), 1.0 - residual / spread if spread else 1.0)


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """Return the unbiased estimate of pass@k, 1 - C(n - c, k) / C(n, k), for `c` right of `n` samples.

    Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1. `n` and `c` broadcast; float64 of their shape, computed as a
    product of ratios so that nothing overflows. Raises ConfigError unless k >= 1, 0 <= c <= n and n >= k.
    """
    tries, right = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(c, dtype=np.float64))
    if k < 1 or (tries < k).any() or (right < 0).any() or (right > tries).any():
        raise ConfigError(f"pass@{k} needs k >= 1, 0 <= c <= n and at least k samples per prompt")
    i = np.arange(k)
    ratios = np.clip((tries[..., None] - right[..., None] - i) / (tries[..., None] - i), 0.0, 1.0)
    return 1.0 - ratios.prod(axis=-1)


def paired(
    before: Mapping[str, float],
    after: Mapping[str, float],
    rng: np.random.Generator,
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
) -> Paired:
    """Compare per-item values of two models: exact McNemar test for 0/1 values, sign-flip permutation otherwise.

    The result does not depend on the mappings' order. Raises ConfigError when the two do not hold the same ids.
    """
    if set(before) != set(after) or not before:
        raise ConfigError(
            f"a paired comparison needs the same items on both sides; {len(before.keys() - after.keys())} are only in "
            f"the first and {len(after.keys() - before.keys())} only in the second (of {len(before)} and {len(after)})",
            hint="Evaluate both models on the same held-out prompts.",
        )
    ids = sorted(before)
    old, new = (np.array([side[i] for i in ids], dtype=np.float64) for side in (before, after))
    better = new > old if higher_is_better else new < old
    changed = new != old
    interval = paired_bootstrap(new, old, rng=rng, level=level)
    if np.isin(np.concatenate([old, new]), (0.0, 1.0)).all():
        test, p_value = "mcnemar", mcnemar(int(better.sum()), int((changed & ~better).sum()))
    else:
        test, p_value = "permutation", paired_permutation(new, old, rng)
    return Paired(
        *interval,
        p_value=p_value,
        test=test,
        n=len(ids),
        gained=tuple(i for i, flag in zip(ids, better, strict=True) if flag),
        lost=tuple(i for i, flag in zip(ids, changed & ~better, strict=True) if flag),
        kept_right=int((~changed & (new >= 0.5)).sum()),
        kept_wrong=int((~changed & (new < 0.5)).sum()),
    )


def _checked_level(level: float) -> float:
    if not 0 < level < 1:
        raise ConfigError(f"a confidence level lies between 0 and 1, not {level}")
    return level


def _items(values: ArrayLike) -> np.ndarray:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or items.size == 0 or not np.isfinite(items).all():
        raise ConfigError(f"expected a non-empty list of finite values, found shape {items.shape}")
    return items


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    first, second = _items(a), _items(b)
    if len(first) != len(second):
        raise ConfigError(f"paired values must have equal lengths, not {len(first)} and {len(second)}")
    return first, second


def _percentile(value: float, means: np.ndarray, level: float) -> Interval:
    tail = (1 - _checked_level(level)) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _blocks(total: int, width: int) -> Iterator[int]:
    size = max(1, CHUNK // max(1, width))
    for start in range(0, total, size):
        yield min(size, total - start)


def _resampled_rows(n: int, rng: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    for count in _blocks(resamples, n):
        yield rng.integers(0, n, (count, n))


def _resampled_means(items: np.ndarray, rng: np.random.Generator, resamples: int) -> np.ndarray:
    levels, counts = np.unique(items, return_counts=True)
    n = len(items)
    if 8 * len(levels) <= n:  # few distinct values: how often each is drawn is multinomial
        return rng.multinomial(n, counts / n, size=resamples) @ levels / n
    return np.concatenate([items[rows].mean(axis=1) for rows in _resampled_rows(n, rng, resamples)])


def _all_sign_sums(differences: Sequence[float] | np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _signs(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    packed = rng.integers(0, 256, (rows, (columns + 7) // 8), dtype=np.uint8)
    return np.unpackbits(packed, axis=1, count=columns).astype(np.float64) * 2 - 1
