"""Selector `token_length`: the longest completions, those within a range of lengths, or longer ones more often."""

from typing import ClassVar, Literal

import numpy as np

from tamis.context import Context
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core

Mode = Literal["longest", "weighted", "range"]


def token_length(
    lengths: np.ndarray,
    k: int,
    rng: np.random.Generator,
    mode: Mode = "longest",
    range: tuple[int, int] | None = None,
) -> np.ndarray:
    """Return k indices chosen by length, (k,) int64. `lengths` (N,) int are in tokens.

    longest: the k largest, in falling order, ties to the lower index. range: uniform among low <= length <= high, in draw
    order. weighted: without replacement, each draw with probability proportional to length, in draw order. Raises
    ValueError for k outside 1..N, negative lengths, an unknown mode, a missing or empty range, or fewer than k
    items of positive probability.
    """
    lengths = core.check_finite(lengths, "length")
    core.check_count(k, len(lengths))
    if lengths.min() < 0:
        raise ValueError(f"length {int(np.argmin(lengths))} is negative")
    if mode == "longest":
        return core.falling(lengths)[:k]
    if mode not in ("weighted", "range"):
        raise ValueError(f"mode must be 'longest', 'weighted' or 'range', not {mode!r}")
    possible = np.flatnonzero(_possible(lengths, mode, range))
    if len(possible) < k:
        raise ValueError(f"only {len(possible)} of {len(lengths)} items can be drawn, fewer than k = {k}")
    if mode == "range":
        return possible[rng.choice(len(possible), k, replace=False)]
    arrival = rng.exponential(size=len(possible)) / lengths[possible]
    return possible[np.argsort(arrival, kind="stable")[:k]]


def _possible(lengths: np.ndarray, mode: Mode, bounds: tuple[int, int] | None) -> np.ndarray:
    if mode != "range":
        return lengths > 0 if mode == "weighted" else np.ones(len(lengths), dtype=bool)
    if bounds is None or bounds[0] > bounds[1]:
        raise ValueError(f"mode 'range' needs range = (lowest, highest length), not {bounds}")
    return (lengths >= bounds[0]) & (lengths <= bounds[1])


@selector("token_length", row=89, paper="Rethinking Data Selection at Scale (Xia et al. 2024)")
class TokenLength:
    """Keep k accepted completions by their length in tokens.

    Lengths are counted by the tokenizer of the model to be tuned, without the chat template, and cut at `max_length`.
    The figure `tokens` of the selection says how much text it holds: compare with random at equal tokens, not only at
    equal numbers. The weighted mode draws by exponential arrival times (Efraimidis and Spirakis 2006). O(total text).
    """

    k: int | None = option(None, "completions to keep", ge=1)
    fraction: float | None = option(None, "share of the pool to keep, instead of k", gt=0, le=1)
    mode: Mode = option("longest", "longest; range: uniform within `range`; weighted: by chance proportional to length")
    of: core.Part = option("total", "what is measured: query and response, response, or query", source="paper")
    range: tuple[int, int] | None = option(None, "lowest and highest length in tokens, for mode range")
    max_length: int = option(4096, "lengths are cut here", source="paper", ge=1)

    contract: ClassVar[dict] = {"k": 3}

    def __post_init__(self) -> None:
        core.check_budget(self.k, self.fraction)
        if (self.mode == "range") != (self.range is not None):
            raise ValueError("`range` goes with mode 'range', and that mode needs it")
        if self.range is not None and not 0 <= self.range[0] <= self.range[1]:
            raise ValueError(f"range: lowest and highest length are wanted, in this order, not {list(self.range)}")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, longest first or in draw order."""
        among = core.candidates(pool, ctx)
        k, reason = core.budget(self.k, self.fraction, len(among))
        lengths = np.minimum(core.token_counts(pool, among, self.of), self.max_length)
        possible = int(_possible(lengths, self.mode, self.range).sum())
        if possible < k:
            asked = reason or f"{k} were asked for"
            k, reason = possible, f"{asked}, only {possible} have a length that can be chosen"
        if k == 0:
            return core.selection(pool, among[:0], reason)
        return core.selection(
            pool, among[token_length(lengths, k, ctx.rng("token_length"), self.mode, self.range)], reason
        )
