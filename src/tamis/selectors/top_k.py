"""Selector `top_k`: the completions a judge scored highest."""

from typing import Literal

import numpy as np

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core


def top_k(score: np.ndarray, k: int) -> np.ndarray:
    """Return the indices (k,) int64 of the k highest scores in falling order, ties to the lower index.

    Raises ValueError for k outside 1..N or a NaN score.
    """
    core.check_count(k, len(score))
    return core.falling(score)[:k]


@selector("top_k")
class TopK:
    """Keep the k completions with the highest score, of every prompt or of the whole pool.

    With `per: prompt` and k = 1 this is best-of-n. Completions without a score (an answer or verdict that could not be
    read) are never kept; they are written aside with their label. Ties go to the earlier sample of a prompt, and over the
    whole pool to the lower id.
    """

    k: int = option(1, "completions to keep", ge=1)
    per: Literal["prompt", "pool"] = option("prompt", "k of each prompt, or k of the whole pool")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, best first (of each prompt, prompts in pool order)."""
        if len(pool) and not pool.judged():
            raise ConfigError(
                "selector 'top_k' needs scores, and no completion was judged", hint="Put a judge stage before it."
            )
        if self.per == "prompt":
            groups = list(pool.by_prompt.values())
        else:
            groups = [sorted(range(len(pool)), key=lambda i: pool.completions[i].id)]
        chosen = [self._best(pool, np.array(group, dtype=np.int64), ctx) for group in groups]
        indices = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
        short = self.per == "pool" and len(indices) < self.k
        reason = f"{self.k} were asked for, only {len(indices)} have a score" if short else ""
        return core.selection(pool, indices, reason if len(indices) else "no completion has a score")

    def _best(self, pool: Pool, group: np.ndarray, ctx: Context) -> np.ndarray:
        scored = core.with_score(pool, group, ctx)
        if not len(scored):
            return scored
        return scored[top_k(pool.take(list(scored)).scores(), min(self.k, len(scored)))]
