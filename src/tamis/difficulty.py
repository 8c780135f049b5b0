"""Difficulty-aware budgets: how many correct completions each prompt should get, and how biased a data set is.

Source: DART-Math (Tong et al. 2024, arXiv 2407.13690). Difficulty of a prompt is its fail rate, 1 - pass rate.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tamis.pool import Pool

Policy = Literal["uniform", "prop2diff"]
ROUNDING_GUARD = 1e-9
LEAST_PASS_RATE = 1 / 16


def targets(pass_rate: np.ndarray, policy: Policy, k: int) -> np.ndarray:
    """Return the correct completions wanted of each prompt, (N,) int64.

    uniform: k everywhere. prop2diff: max(1, ceil(k * d_i / max_j d_j)) with d = 1 - pass_rate, so that the hardest prompt
    gets k and an always solved one still gets 1. `pass_rate` is (N,) in [0, 1]. Raises ValueError for k < 1, an unknown
    policy, or a pass rate that is NaN or outside [0, 1].
    """
    rates = _check_rates(pass_rate)
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if policy == "uniform":
        return np.full(len(rates), k, dtype=np.int64)
    if policy != "prop2diff":
        raise ValueError(f"policy must be 'uniform' or 'prop2diff', not {policy!r}")
    fail = 1.0 - rates
    hardest = fail.max(initial=0.0)
    if hardest == 0:
        return np.ones(len(rates), dtype=np.int64)
    return np.maximum(1, np.ceil(k * fail / hardest - ROUNDING_GUARD)).astype(np.int64)


def solve_k(pass_rate: np.ndarray, policy: Policy, total: int) -> int:
    """Return the k whose targets add up as near to `total` as possible (ties to the smaller k, at least 1)."""
    if total < 1 or not len(pass_rate):
        raise ValueError(f"total and the number of prompts must be at least 1, not {total} and {len(pass_rate)}")

    def rows(k: int) -> int:
        return int(targets(pass_rate, policy, k).sum())

    ks = range(1, total + 1)  # rows(k) >= k unless every prompt is always solved
    above = 1 + bisect_left(ks, total, key=rows)
    if above == 1:
        return 1
    below = 1 + bisect_left(ks, rows(above - 1), key=rows)
    return below if total - rows(below) <= abs(rows(above) - total) else above


def round_size(
    tries: np.ndarray,
    correct: np.ndarray,
    target: np.ndarray,
    max_tries: int | None,
    cap: int = 32,
    floor: float = LEAST_PASS_RATE,
) -> np.ndarray:
    """Return the tries to ask of each prompt in the next round, (N,) int64; 0 where its target or `max_tries` is reached.

    ceil((target - correct) / max(p, floor)) with p = (correct + 1) / (tries + 2), at most `cap` and what `max_tries` leaves.
    """
    tries, correct, target = (np.asarray(a, dtype=np.int64) for a in (tries, correct, target))
    rate = np.maximum((correct + 1) / (tries + 2), floor)
    wanted = np.minimum(np.ceil((target - correct) / rate), cap)
    if max_tries is not None:
        wanted = np.minimum(wanted, max_tries - tries)
    return np.maximum(wanted, 0).astype(np.int64)


@dataclass(frozen=True)
class DifficultyBias:
    """Rows of a data set by difficulty bin: bin i holds prompts with difficulty in [edges[i], edges[i+1]).

    `prompts` and `rows` are (bins,) int64, `covered` (bins,) float64 is the share of the bin's prompts with a row (NaN in
    an empty bin), `without_rows` the share of all prompts with no row, `correlation` Spearman's between rows and difficulty
    (NaN when either is constant). The last bin holds difficulty 1 too.
    """

    edges: np.ndarray
    prompts: np.ndarray
    rows: np.ndarray
    covered: np.ndarray
    without_rows: float
    correlation: float


def difficulty_bias(rows: np.ndarray, pass_rate: np.ndarray, bins: int = 10) -> DifficultyBias:
    """Return how the rows of a data set fall over difficulty. `rows` (N,) int, `pass_rate` (N,) in [0, 1].

    Raises ValueError for unequal lengths, no prompts, negative rows, bins < 1 or a bad pass rate.
    """
    rates, rows = _check_rates(pass_rate), np.asarray(rows)
    if rows.shape != rates.shape or not len(rows):
        raise ValueError(f"rows and pass_rate must have one equal, positive length, not {rows.shape} and {rates.shape}")
    if rows.min() < 0 or bins < 1:
        raise ValueError("rows must not be negative and bins must be at least 1")
    edges = np.linspace(0, 1, bins + 1)
    at = np.clip(np.searchsorted(edges, 1 - rates + ROUNDING_GUARD, side="right") - 1, 0, bins - 1)
    prompts = np.bincount(at, minlength=bins)
    with_rows = np.bincount(at, weights=rows > 0, minlength=bins)
    covered = np.divide(with_rows, prompts, out=np.full(bins, np.nan), where=prompts > 0)
    return DifficultyBias(
        edges=edges,
        prompts=prompts.astype(np.int64),
        rows=np.bincount(at, weights=rows, minlength=bins).astype(np.int64),
        covered=covered,
        without_rows=float(np.mean(rows == 0)),
        correlation=_spearman(rows, 1 - rates),
    )


def vanilla_rows(pass_rate: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the rows (N,) int64 that vanilla rejection tuning would give at about `total` rows.

    Every prompt gets M = round(total / sum of pass rates) tries; each try is correct with the prompt's pass rate. Raises
    ValueError when no prompt is ever solved.
    """
    rates = _check_rates(pass_rate)
    if not rates.sum() > 0:
        raise ValueError("no prompt was solved, so no number of tries gives rows")
    return rng.binomial(max(1, round(total / rates.sum())), rates)


@dataclass(frozen=True)
class Account:
    """What sampling cost and gave, per prompt in pool order: all arrays are (N,) int64.

    `correct` counts accepted completions, `usable` those that count toward the target (no exact duplicates unless they are
    allowed), `tokens` the sampled tokens.
    """

    prompt_ids: tuple[str, ...]
    tries: np.ndarray
    correct: np.ndarray
    usable: np.ndarray
    target: np.ndarray
    tokens: np.ndarray

    @property
    def pass_rate(self) -> np.ndarray:
        """Correct tries by tries, (N,) float64."""
        return self.correct / self.tries

    @property
    def unmet(self) -> tuple[str, ...]:
        """Ids of the prompts that fell short of their target."""
        return tuple(i for i, short in zip(self.prompt_ids, self.usable < self.target, strict=True) if short)


def account(pool: Pool, wanted: Mapping[str, int], dedup: Literal["exact", "none"] = "exact") -> Account:
    """Return tries, correct ones, targets and tokens of every prompt of a judged pool. `wanted` maps prompt ids to targets."""
    groups = pool.by_prompt
    right = {p: [i for i in indices if pool.accepted(i)] for p, indices in groups.items()}
    usable = [len(distinct((pool.completions[i].text for i in right[p]), dedup)) for p in groups]
    tokens = [sum(pool.completions[i].cost.sampled_tokens for i in indices) for indices in groups.values()]
    columns = (
        [len(indices) for indices in groups.values()],
        [len(right[p]) for p in groups],
        usable,
        [wanted[p] for p in groups],
        tokens,
    )
    return Account(tuple(groups), *(np.array(c, dtype=np.int64) for c in columns))


def distinct(texts: Iterable[str], dedup: Literal["exact", "none"] = "exact") -> list[int]:
    """Return the positions of texts that count: the first of each text ("exact"), or all ("none")."""
    if dedup == "none":
        return list(range(len(list(texts))))
    first: dict[str, int] = {}
    for position, text in enumerate(texts):
        first.setdefault(text, position)
    return list(first.values())


def _check_rates(pass_rate: np.ndarray) -> np.ndarray:
    rates = np.asarray(pass_rate, dtype=np.float64)
    bad = np.flatnonzero(~((rates >= 0) & (rates <= 1)))
    if len(bad):
        raise ValueError(f"pass rate {bad[0]} is {rates[bad[0]]}; pass rates must lie in [0, 1]")
    return rates


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(spearmanr(a, b).statistic)
