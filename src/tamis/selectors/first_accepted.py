"""Selector `first_accepted`: the trim of difficulty-aware rejection tuning."""

from typing import Literal

import numpy as np

from tamis import difficulty
from tamis.context import Context
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core


@selector("first_accepted", row=25, paper="DART-Math (Tong et al. 2024)")
class FirstAccepted:
    """Keep of each prompt the first t accepted completions, t set by the prompt's difficulty.

    Goes with the sampler `dart`, under the same `policy`, `k` and `n_probe`. uniform: t = k. prop2diff:
    t = max(1, ceil(k * d / max d)), where d = 1 - pass rate over the first `n_probe` tries. Sample order, never the shortest
    or likeliest; exact duplicates of a prompt's text count once.
    """

    policy: difficulty.Policy = option("uniform", "equal targets, or in proportion to the fail rate", source="paper")
    k: int = option(4, "correct completions of each prompt (uniform) or of the hardest one (prop2diff)", ge=1)
    n_probe: int = option(8, "tries that measure the difficulty, for prop2diff", ge=1)
    dedup: Literal["exact", "none"] = option("exact", "whether equal texts of a prompt count once")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, prompts in pool order; notes hold tries, correct ones, targets and tokens."""
        groups = pool.by_prompt
        wanted = dict(zip(groups, self._targets(pool, list(groups.values())).tolist(), strict=True))
        chosen: list[int] = []
        for prompt_id, indices in groups.items():
            accepted = [i for i in indices if pool.accepted(i)]
            usable = difficulty.distinct([pool.completions[i].text for i in accepted], self.dedup)
            chosen += [accepted[j] for j in usable[: wanted[prompt_id]]]
        account = difficulty.account(pool, wanted, self.dedup)
        return core.selection(
            pool,
            np.array(chosen, dtype=np.int64),
            f"{len(account.unmet)} of {len(groups)} prompts fell short of their target" if account.unmet else "",
            tries=int(account.tries.sum()),
            correct=int(account.correct.sum()),
            target=int(account.target.sum()),
            unmet_prompts=len(account.unmet),
            sampled_tokens=int(account.tokens.sum()),
        )

    def _targets(self, pool: Pool, groups: list[list[int]]) -> np.ndarray:
        probes = [[i for i in g if pool.completions[i].index < self.n_probe] or g for g in groups]
        rates = [float(np.mean([pool.accepted(i) for i in probe])) for probe in probes]
        return difficulty.targets(np.array(rates), self.policy, self.k)
