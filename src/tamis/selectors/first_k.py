"""Selector `first_k`: plain rejection sampling."""

import numpy as np

from tamis.context import Context
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core


@selector("first_k")
class FirstK:
    """Keep the first k accepted completions of every prompt, in sample order.

    This is plain rejection sampling: no completion is preferred for its length or likelihood. Prompts with none accepted
    are counted. In a pool without verdicts every completion is accepted.
    """

    k: int = option(1, "completions to keep of each prompt", ge=1)
    threshold: float = option(0.5, "least score of an accepted completion")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, prompts in pool order."""
        chosen: list[int] = []
        for indices in pool.by_prompt.values():
            accepted = [i for i in indices if pool.accepted(i, self.threshold)]
            if not accepted:
                ctx.count("prompts without an accepted completion")
            chosen += accepted[: self.k]
        return core.selection(pool, np.array(chosen, dtype=np.int64), "" if chosen else core.NOTHING_ACCEPTED)
