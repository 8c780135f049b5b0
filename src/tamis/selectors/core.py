"""What all selectors share: input checks, tie rules, quotas, and the way from a pool to arrays and back.

Array functions raise ValueError; functions over a pool raise ConfigError or give fewer items with a reason.
Candidates are handed to the array cores in the order of their ids, so that a selection does not depend on the order of
the pool.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool, Selection

Part = Literal["total", "response", "query"]
NOTHING_ACCEPTED = "the pool has no accepted completion with a text"


def check_count(k: int, n: int) -> None:
    """Raise ValueError unless 1 <= k <= n."""
    if not 1 <= k <= n:
        raise ValueError(f"k must be between 1 and the number of items, {n}, not {k}")


def check_finite(values: np.ndarray, what: str = "score") -> np.ndarray:
    """Return a one-dimensional array. Raises ValueError that names the first NaN, or for another shape."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not of shape {array.shape}")
    if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
        raise ValueError(f"{what} {int(np.argmax(np.isnan(array)))} is NaN")
    return array


def check_groups(labels: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (labels as 0..C-1 (N,) int64, group sizes (C,) int64). Raises ValueError for no labels or another length."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError("groups must be a one-dimensional array with at least one item")
    if len(labels) != n:
        raise ValueError(f"there are {len(labels)} group labels for {n} items")
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return inverse.astype(np.int64), sizes.astype(np.int64)


def falling(score: np.ndarray) -> np.ndarray:
    """Return the indices (N,) int64 in order of falling score, ties to the lower index."""
    score = check_finite(score)
    signed = score.astype(np.int64) if score.dtype.kind in "bui" else score
    return np.argsort(-signed, kind="stable")


def largest_remainder(total: int, sizes: np.ndarray) -> np.ndarray:
    """Return quotas (C,) int64 in proportion to `sizes` that add up to `total` exactly.

    Each group gets the whole part of total * size / sum(sizes); what is left goes by largest remainder, equal remainders
    to the lower group. Exact integer arithmetic. Raises ValueError when total exceeds the sum of sizes or is negative.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    everything = int(sizes.sum())
    if not 0 <= total <= everything:
        raise ValueError(f"cannot share {total} over groups of {everything} items")
    if total == 0:
        return np.zeros_like(sizes)
    quotas, remainders = np.divmod(total * sizes, everything)
    winners = np.argsort(-remainders, kind="stable")[: total - int(quotas.sum())]
    quotas[winners] += 1
    return quotas


def quotas_with_minimum(total: int, sizes: np.ndarray, minimum: int = 0) -> np.ndarray:
    """Return quotas (C,) int64: min(minimum, size) to each group first, the rest in proportion to what each has left.

    Raises ValueError when the minimum alone takes more than `total`.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if minimum < 0:
        raise ValueError(f"minimum must not be negative, but is {minimum}")
    first = np.minimum(minimum, sizes)
    if first.sum() > total:
        raise ValueError(f"a minimum of {minimum} takes {first.sum()} items, more than k = {total}")
    return first + largest_remainder(total - int(first.sum()), sizes - first)


def even_quotas(total: int, sizes: np.ndarray) -> np.ndarray:
    """Return equal quotas (C,) int64; a group that runs out passes its rest to the others evenly, odd ones to the lower group.

    Raises ValueError when total exceeds the sum of sizes or is negative.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    if not 0 <= total <= sizes.sum():
        raise ValueError(f"cannot share {total} over groups of {sizes.sum()} items")
    quotas = np.zeros_like(sizes)
    while (left := total - int(quotas.sum())) > 0:
        open_groups = np.flatnonzero(quotas < sizes)
        share = left // len(open_groups)
        if share == 0:
            quotas[open_groups[:left]] += 1
        else:
            quotas[open_groups] = np.minimum(quotas[open_groups] + share, sizes[open_groups])
    return quotas


def best_of_groups(labels: np.ndarray, order: np.ndarray, quotas: np.ndarray) -> np.ndarray:
    """Return, in the order of `order`, the items that are among the first quotas[label] of their label.

    `labels` (N,) are 0..C-1, `order` (N,) is a permutation with the best first, `quotas` (C,).
    """
    sizes = np.bincount(labels, minlength=len(quotas))
    grouped = order[np.argsort(labels[order], kind="stable")]
    rank = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[grouped[rank < np.repeat(quotas, sizes)]] = True
    return order[chosen[order]]


def check_budget(k: int | None, fraction: float | None) -> None:
    """Raise ValueError unless exactly one of `k` and `fraction` is given."""
    if (k is None) == (fraction is None):
        raise ValueError("give either `k` (a number of completions) or `fraction` (a share of the pool)")


def budget(k: int | None, fraction: float | None, n: int) -> tuple[int, str]:
    """Return how many of `n` candidates to take, and the reason when that is fewer than asked."""
    asked = k if k is not None else max(1, int((fraction or 0) * n + 0.5))
    if n == 0:
        return 0, NOTHING_ACCEPTED
    return min(asked, n), f"{asked} were asked for, the pool has only {n}" if asked > n else ""


def candidates(pool: Pool, ctx: Context) -> np.ndarray:
    """Return the pool indices (M,) int64 of accepted completions with a text, in the order of their ids.

    Completions that are not accepted are counted, empty ones are written aside.
    """
    kept = []
    for index, completion in enumerate(pool.completions):
        if not pool.accepted(index):
            ctx.count("not accepted")
        elif not completion.text.strip():
            ctx.drop(completion.id, "empty response")
        else:
            kept.append(index)
    kept.sort(key=lambda i: (pool.completions[i].id, i))
    return np.array(kept, dtype=np.int64)


def with_score(pool: Pool, indices: np.ndarray, ctx: Context) -> np.ndarray:
    """Return those `indices` whose completion has a score; the others are written aside with their verdict's label."""
    has = np.array([pool.score(i) is not None for i in indices], dtype=bool)
    for i in indices[~has]:
        verdicts = pool.verdicts_of.get(pool.completions[i].id, [])
        ctx.drop(pool.completions[i].id, "no score", label=verdicts[-1].label if verdicts else "not judged")
    return indices[has]


def text_parts(pool: Pool, index: int) -> tuple[str, str]:
    """Return (query, response) of a completion: all messages of its prompt, all its turns."""
    query = "\n".join(m.content for m in pool.prompt(index).messages)
    return query, "\n".join(t.content for t in pool.completions[index].turns)


def token_counts(pool: Pool, indices: Sequence[int] | np.ndarray, of: Part = "total") -> np.ndarray:
    """Return the token counts (len(indices),) int64 of queries, responses or both, by the tokenizer of the model to be tuned.

    A query shared by several completions is counted once and used for each. Raises ConfigError without a tokenizer.
    """
    if pool.count_tokens is None:
        raise ConfigError(
            "lengths in tokens need the tokenizer of the model to be tuned, and this run has none",
            hint="Use a model that is a local folder, a hub id or a packaged model.",
        )
    counts = np.zeros(len(indices), dtype=np.int64)
    if of in ("total", "query"):
        counts += _query_counts(pool, indices, pool.count_tokens)
    if of in ("total", "response") and len(indices):
        counts += pool.count_tokens([text_parts(pool, i)[1] for i in indices])
    return counts


def _query_counts(
    pool: Pool, indices: Sequence[int] | np.ndarray, count_tokens: Callable[[Sequence[str]], np.ndarray]
) -> np.ndarray:
    ids = [pool.completions[i].prompt_id for i in indices]
    first = {prompt_id: text_parts(pool, i)[0] for prompt_id, i in zip(ids, indices, strict=True)}
    counts = dict(zip(first, count_tokens(list(first.values())), strict=True)) if first else {}
    return np.array([counts[i] for i in ids], dtype=np.int64)


def selection(pool: Pool, indices: np.ndarray, reason: str = "", **notes: float | int | str) -> Selection:
    """Return the selection of `indices`, with the tokens it holds where they can be counted."""
    if pool.count_tokens is not None:
        notes["tokens"] = int(token_counts(pool, indices).sum())
    return Selection(np.asarray(indices, dtype=np.int64), reason=reason, notes=notes)
