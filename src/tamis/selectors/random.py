"""Selector `random`: the baseline every other selector has to beat."""

from typing import ClassVar

import numpy as np

from tamis.context import Context
from tamis.errors import ConfigError, nearest
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core


def random_select(n: int, k: int, rng: np.random.Generator, groups: np.ndarray | None = None) -> np.ndarray:
    """Return k of n indices without replacement, (k,) int64 in draw order.

    With `groups` (n,) every group gets the same number; one that runs out passes its rest to the others evenly. Raises
    ValueError for k outside 1..n, empty groups, or groups of another length than n.
    """
    core.check_count(k, n)
    if groups is None:
        return rng.choice(n, k, replace=False)
    labels, sizes = core.check_groups(groups, n)
    return core.best_of_groups(labels, rng.permutation(n), core.even_quotas(k, sizes))


@selector("random", row=89, paper="Rethinking Data Selection at Scale (Xia et al. 2024)")
class Random:
    """Keep k accepted completions at random, without replacement.

    With `balance` every source gets an equal quota, and a source that runs out passes its rest to the others evenly. The
    selection depends on the seed and on which completions there are, not on their order. Run several seeds: one random
    draw is not a baseline. O(N log N).
    """

    k: int | None = option(None, "completions to keep", ge=1)
    fraction: float | None = option(None, "share of the pool to keep, instead of k", gt=0, le=1)
    balance: str | None = option(
        None, "equal quotas over the values of this: task, model, or a field of the prompts' metadata", source="paper"
    )

    contract: ClassVar[dict] = {"k": 3}

    def __post_init__(self) -> None:
        core.check_budget(self.k, self.fraction)

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions in draw order."""
        among = core.candidates(pool, ctx)
        k, reason = core.budget(self.k, self.fraction, len(among))
        if k == 0:
            return core.selection(pool, among, reason)
        groups = None if self.balance is None else _values(pool, among, self.balance)
        return core.selection(pool, among[random_select(len(among), k, ctx.rng("random"), groups)], reason)


def _values(pool: Pool, among: np.ndarray, field: str) -> np.ndarray:
    """Return the value of `field` of each completion as text, (M,)."""
    if field == "model":
        return np.array([pool.completions[i].model for i in among])
    if field == "task":
        return np.array([pool.prompt(i).task for i in among])
    metadata = [pool.prompt(i).metadata for i in among]
    known = {name for fields in metadata for name in fields}
    if field not in known:
        raise ConfigError(
            f"no prompt has a metadata field '{field}'",
            where="selector 'random'.balance",
            hint=nearest(field, known | {"task", "model"}),
        )
    return np.array([str(fields.get(field, "")) for fields in metadata])
