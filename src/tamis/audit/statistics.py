"""What an audit computes, as pure functions of arrays: shares, kappas, logistic effects, calibration.

Prompts are what is resampled: verdicts on the same prompt are never taken for independent ones. `prompts` is always (N,)
int64, the number of the prompt that a row belongs to, from 0 to G - 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tamis.calibration import binned, calibration_error
from tamis.evaluators.stats import Interval, wilson

RESAMPLES = 2000
_BLOCK = 1 << 21
_TINY = 1e-12


def sums(values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Return (G, ...) float64: the rows of `values` (N, ...) summed by prompt, G the highest number of one plus 1."""
    total = np.zeros((int(prompts.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(total, prompts, values)
    return total


def share(hits: np.ndarray, prompts: np.ndarray) -> Interval | None:
    """Return the share of true values in `hits` (N,) with a 95% interval; None for no values.

    Wilson's interval at the effective sample size n = p (1 - p) / v, v the linearised variance over prompts (Korn and Graubard
    1998), at most N; with one row per prompt it is Wilson's own. Where v is 0 (all prompts alike) n is the number of
    prompts when p is 0 or 1.
    """
    if not len(hits):
        return None
    _, own = np.unique(prompts, return_inverse=True)
    hit, tried = sums(hits.astype(np.float64), own), sums(np.ones(len(hits)), own)
    p = float(hit.sum() / tried.sum())
    variance = float(((hit - p * tried) ** 2).sum()) / len(hits) ** 2
    n = float(len(tried)) if p in (0.0, 1.0) else p * (1 - p) / max(variance, _TINY)
    n = min(max(n, 1.0), float(len(hits)))
    return wilson(p * n, n)


def bootstrap(
    totals: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator, shift: bool = False
) -> Interval | None:
    """Return statistic(sum of `totals` (G, ...)) with its 95% percentile bootstrap interval over prompts.

    `statistic` maps (R, ...) sums to (R,) values; resamples where it is NaN are left out, and None is returned where the
    value itself is NaN. `shift` moves the interval by the bootstrap's bias (for figures that resampling inflates).
    """
    groups = len(totals)
    value = float(statistic(totals.sum(axis=0)[None])[0]) if groups else math.nan
    if math.isnan(value):
        return None
    flat = totals.reshape(groups, -1)
    block = max(1, _BLOCK // groups)
    draws = [
        statistic((rng.multinomial(groups, np.full(groups, 1 / groups), size=n) @ flat).reshape(n, *totals.shape[1:]))
        for n in [block] * (RESAMPLES // block) + [RESAMPLES % block] * (RESAMPLES % block > 0)
    ]
    found = np.concatenate(draws)
    found = found[~np.isnan(found)]
    if shift and len(found):
        found = found - (found.mean() - value)
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (value, value)
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _kappa(tables: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa of (R, K, K) counts; NaN where chance alone agrees always."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = tables / tables.sum(axis=(1, 2), keepdims=True)
        observed = np.trace(shares, axis1=1, axis2=2)
        chance = (shares.sum(axis=1) * shares.sum(axis=2)).sum(axis=1)
        return np.where(1 - chance > _TINY, (observed - chance) / (1 - chance), np.nan)


def cohen_kappa(known: np.ndarray, said: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Interval | None:
    """Return Cohen's kappa (1960) of two codings (N,) int64 in 0..K-1, with a bootstrap interval over prompts.

    Where every resample gives the same (all agree, or each prompt's verdicts cancel) the interval is that of the share that
    agrees, at the chance found. None where it is not defined (one code only).
    """
    if not len(known):
        return None
    size = int(max(known.max(), said.max())) + 1
    cells = np.eye(size)[known][:, :, None] * np.eye(size)[said][:, None, :]
    found = bootstrap(sums(cells, prompts), _kappa, rng)
    agreed = share(known == said, prompts)
    if found is None or agreed is None or found.high - found.low > _TINY:
        return found
    codes = [np.bincount(coded, minlength=size) / len(coded) for coded in (known, said)]
    return _beyond(agreed, float(codes[0] @ codes[1]))


def _beyond(agreed: Interval, chance: float) -> Interval:
    """Return agreement as agreement beyond chance."""
    return Interval(*((end - chance) / (1 - chance) for end in agreed))


def consistency(
    counts: np.ndarray, prompts: np.ndarray, rng: np.random.Generator
) -> tuple[Interval | None, Interval | None]:
    """Return the share of equal verdicts among two repeats, and Fleiss' kappa (1971), of `counts` (N, K).

    Row i counts how often item i got each of K verdicts; every row has the same sum R >= 2. Where all repeats agree the
    interval of the share is Wilson's over prompts. Kappa is None where only one verdict occurs.
    """
    repeats = counts[0].sum()
    agreed = (counts * (counts - 1)).sum(axis=1) / (repeats * (repeats - 1))
    parts = np.column_stack([np.ones(len(counts)), agreed, counts])

    def equal(total: np.ndarray) -> np.ndarray:
        return total[:, 1] / total[:, 0]

    def kappa(total: np.ndarray) -> np.ndarray:
        chance = ((total[:, 2:] / total[:, 2:].sum(axis=1, keepdims=True)) ** 2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(1 - chance > _TINY, (equal(total) - chance) / (1 - chance), np.nan)

    totals = sums(parts, prompts)
    found, beyond = bootstrap(totals, equal, rng), bootstrap(totals, kappa, rng)
    if agreed.min() == 1:
        found = wilson(len(totals), len(totals))
        beyond = beyond and _beyond(found, float(((counts.sum(axis=0) / counts.sum()) ** 2).sum()))
    return found, beyond


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic model: coefficients (K,), p-values (K,), 95% intervals (K, 2).

    `unbounded` (K,) bool: the data are separated along these columns, so that no finite coefficient fits best; what stands
    there is the penalised one.
    """

    values: np.ndarray
    p_values: np.ndarray
    intervals: np.ndarray
    unbounded: np.ndarray


def logistic(x: np.ndarray, y: np.ndarray, prompts: np.ndarray) -> Logistic:
    """Fit P(y = 1) = sigmoid(x b) to `x` (N, K) float64 of full rank and `y` (N,) of 0 and 1.

    Firth's penalised likelihood (1993), which stays finite for separated data and is less biased in small samples. Errors:
    the one-step delete-one-prompt jackknife (the cluster-robust CR3), Student's t with G - 1 degrees; the inverse information
    where the jackknife finds no spread at all. For separated data both fail, and the penalised likelihood ratio takes
    their place (Heinze and Schemper 2002), counted per prompt (times G / N), as if a prompt's rows said one thing.
    """
    from scipy.special import stdtr, stdtrit

    b = _firth(x, y)
    unbounded = _separated(x, y)
    groups = len(np.unique(prompts))
    if unbounded.any():
        found = [_profile(x, y, b, k, groups / len(y)) for k in range(len(b))]
        return Logistic(b, np.array([p for p, *_ in found]), np.array([ends for _, *ends in found]), unbounded)
    p = _sigmoid(x @ b)
    plain = np.diag(np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None])))
    spread = _jackknife(x, _residual(x, y, p), p, prompts)
    errors = np.sqrt(np.where(spread > 1e-9 * plain, spread, plain))
    freedom = max(groups - 1, 1)
    reach = stdtrit(freedom, 0.975) * errors
    p_values = 2 * stdtr(freedom, -abs(b) / errors)
    return Logistic(b, p_values, np.column_stack([b - reach, b + reach]), unbounded)


def _profile(x: np.ndarray, y: np.ndarray, b: np.ndarray, k: int, weight: float) -> tuple[float, float, float]:
    """Return p-value and ends of the 95% interval of coefficient k from the penalised likelihood ratio."""
    from scipy.optimize import brentq
    from scipy.special import chdtrc, chdtri

    best = _likelihood(x, y, b)

    def ratio(value: float) -> float:
        return 2 * weight * (best - _likelihood(x, y, _firth(x, y, (k, value))))

    def end(sign: int) -> float:
        def excess(reach: float) -> float:
            return ratio(b[k] + sign * reach) - float(chdtri(1, 0.05))

        far = next(r for r in (4.0**i for i in range(20)) if excess(r) > 0)  # the penalty sees to it
        return float(b[k] + sign * brentq(excess, 0, far, xtol=1e-3))

    return float(chdtrc(1, max(ratio(0.0), 0.0))), end(-1), end(1)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(z, -500, 500)))


def _residual(x: np.ndarray, y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """Return y - p + h (1/2 - p), h the leverages: what Firth's score sums."""
    root = x * np.sqrt(p * (1 - p))[:, None]
    leverage = np.einsum("ij,jk,ik->i", root, np.linalg.pinv(root.T @ root, hermitian=True), root)
    return y - p + leverage * (0.5 - p)


def _likelihood(x: np.ndarray, y: np.ndarray, b: np.ndarray) -> float:
    """Return the log-likelihood plus half the log-determinant of the information (Jeffreys' prior)."""
    p = _sigmoid(x @ b)
    sign, log_det = np.linalg.slogdet(x.T @ (x * (p * (1 - p))[:, None]))
    return float(-np.logaddexp(0, np.where(y == 1, -1, 1) * (x @ b)).sum() + log_det / 2) if sign > 0 else -math.inf


def _firth(x: np.ndarray, y: np.ndarray, fixed: tuple[int, float] | None = None) -> np.ndarray:
    """Return the penalised estimate, one coefficient `fixed` (which, value) or none.

    Newton steps, halved while the penalised likelihood falls.
    """
    b = np.zeros(x.shape[1])
    free = np.ones(len(b), dtype=bool)
    if fixed:
        b[fixed[0]], free[fixed[0]] = fixed[1], False
    best = _likelihood(x, y, b)
    for _ in range(200 if free.any() else 0):
        p = _sigmoid(x @ b)
        part, step = x[:, free], np.zeros(len(b))
        information = part.T @ (part * (p * (1 - p))[:, None])
        step[free] = np.linalg.lstsq(information, part.T @ _residual(x, y, p), rcond=None)[0]
        step *= min(1.0, 5 / max(abs(step).max(), _TINY))
        while (new := _likelihood(x, y, b + step)) < best - 1e-10 and abs(step).max() > 1e-10:
            step /= 2
        b, best = b + step, new
        if abs(step).max() < 1e-8:
            break
    return b


def _jackknife(x: np.ndarray, residual: np.ndarray, p: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Return the variances (K,) of one-step estimates with each prompt left out."""
    _, own = np.unique(prompts, return_inverse=True)
    scores = sums(x * residual[:, None], own)
    weighted = x * np.sqrt(p * (1 - p))[:, None]
    each = sums(weighted[:, :, None] * weighted[:, None, :], own)
    moves = np.einsum("gij,gj->gi", np.linalg.pinv(each.sum(axis=0) - each, hermitian=True), scores)
    return (len(moves) - 1) / len(moves) * (moves**2).sum(axis=0)


def _separated(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return (K,) bool: columns that part the ones from the zeros, each alone, or else together.

    Together is found by Konis' linear programme (2007): is there b with no row on the wrong side, and some not on the border?
    """
    from scipy.optimize import linprog

    sided = x * np.where(y == 1, 1.0, -1.0)[:, None]
    alone = np.asarray((sided > 0).all(axis=0) | (sided < 0).all(axis=0))
    if alone.any():
        return alone
    found = linprog(-sided.sum(axis=0), A_ub=-sided, b_ub=np.zeros(len(y)), bounds=(-1, 1), method="highs")
    parted = found.status == 0 and -found.fun > 1e-7
    return np.asarray(abs(found.x) > 1e-7 if parted else np.zeros(x.shape[1], dtype=bool))


def full_rank(columns: Sequence[np.ndarray]) -> list[int]:
    """Return the indices of columns (N,) that are no combination of the ones before them."""
    kept: list[int] = []
    for i in range(len(columns)):
        if np.linalg.matrix_rank(np.column_stack([columns[k] for k in [*kept, i]])) > len(kept):
            kept.append(i)
    return kept


@dataclass(frozen=True)
class Calibration:
    """How probabilities `p` of an event meet its outcomes `y`.

    `bins` (10, 3): number, mean p, share of y per equal-width bin (NaN in empty ones). The Brier score is reliability -
    resolution + uncertainty + `within`, the last being what varies inside bins (Stephenson et al. 2008).
    """

    ece: Interval
    brier: Interval
    log_loss: Interval
    reliability: float
    resolution: float
    uncertainty: float
    within: float
    bins: np.ndarray
    n: int
    clipped: int


def calibration(p: np.ndarray, y: np.ndarray, prompts: np.ndarray, rng: np.random.Generator) -> Calibration:
    """Return the calibration of `p` (N,) in [0, 1] against `y` (N,) of 0 and 1, N >= 1; intervals by bootstrap over prompts.

    ECE is the mean of |mean p - share of y| over 10 equal-width bins, weighted by their numbers; resampling inflates it, and
    its interval is moved by that much. For the log loss p is kept within [1e-6, 1 - 1e-6]; `clipped` counts where that bit.
    """
    rows = binned(p, y)
    safe = np.clip(p, 1e-6, 1 - 1e-6)
    losses = np.column_stack([np.ones(len(p)), (p - y) ** 2, -np.where(y == 1, np.log(safe), np.log(1 - safe))])

    per_bin, per_loss = sums(rows, prompts), sums(losses, prompts)
    figures = [
        bootstrap(per_bin, calibration_error, rng, shift=True),
        bootstrap(per_loss, lambda total: total[:, 1] / total[:, 0], rng),
        bootstrap(per_loss, lambda total: total[:, 2] / total[:, 0], rng),
    ]
    found_ece, brier, log_loss = [f for f in figures if f is not None]
    found_ece = Interval(found_ece.value, max(0.0, found_ece.low), found_ece.high)
    table = rows.sum(axis=0)
    with np.errstate(invalid="ignore"):
        number, mean, rate = table[:, 0], table[:, 1] / table[:, 0], table[:, 2] / table[:, 0]
    weight, base = number / len(p), float(y.mean())
    reliability = float(np.nansum(weight * (mean - rate) ** 2))
    resolution = float(np.nansum(weight * (rate - base) ** 2))
    uncertainty = base * (1 - base)
    within = brier.value - (reliability - resolution + uncertainty)
    bins = np.column_stack([number, mean, rate])
    clipped = int((safe != p).sum())
    return Calibration(found_ece, brier, log_loss, reliability, resolution, uncertainty, within, bins, len(p), clipped)
