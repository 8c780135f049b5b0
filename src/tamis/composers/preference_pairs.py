"""Composer `preference_pairs`: pairs of a better and a worse completion of the same prompt."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from tamis.composers.accepted import (
    Truncated,
    rendered_completion,
    training_prompts,
    usable,
)
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool
from tamis.records import Example, Prompt, Verdict
from tamis.registry import composer, option

Pairing = Literal["best_worst", "all", "random"]


@composer("preference_pairs")
class PreferencePairs:
    """Pair completions of one prompt, chosen over rejected, by score or by pairwise verdicts.

    Margin: the difference of scores; where a prompt has pairwise verdicts (two completion ids, label "A", "B" or "tie"), the
    votes for the chosen one minus those for the other, over all votes on the pair, in (0, 1]. A tie never makes a pair, nor
    does a verdict without a score or with another label, nor two equal texts; all are counted. An example's weight is the
    mean of its two completions' weights.
    """

    pairing: Pairing = option(
        "best_worst", "best_worst: widest margins, no text twice; all: every pair; random: drawn uniformly"
    )
    max_pairs: int | None = option(
        None, "most pairs of one prompt; none: one for best_worst, no limit for all; random needs it", ge=1
    )
    min_margin: float = option(0.0, "least margin of a pair; it is always above 0", ge=0)
    threshold: float | None = option(
        None, "if set, the chosen score is at least this and the rejected one below (scores only)"
    )
    truncated: Truncated = option(
        "drop", "completions cut at the length limit: left out, trained without an end, or trained as whole"
    )

    def __post_init__(self) -> None:
        if self.pairing == "random" and self.max_pairs is None:
            raise ValueError("max_pairs: needed for pairing 'random' (how many pairs are drawn for each prompt)")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield preference examples. Raises ConfigError when the pool has completions but no verdict."""
        if len(pool) and not pool.judged():
            raise ConfigError(
                "there is no verdict to tell better completions from worse", hint="Put a judge stage before this one."
            )
        for prompt, indices in training_prompts(pool):
            indices = _distinct(pool, indices)
            if not indices:
                continue
            made = (self._example(prompt, *pair, pool, ctx) for pair in self._pairs(prompt, indices, pool, ctx))
            examples = [example for example in made if example is not None]
            yield from examples
            if not examples:
                ctx.count("prompts without a pair")

    def _pairs(self, prompt: Prompt, indices: list[int], pool: Pool, ctx: Context) -> list[tuple[int, int, float]]:
        """Chosen index, rejected index and margin of the pairs of one prompt."""
        indices = [i for i in indices if usable(pool.completions[i], self.truncated, ctx)]
        margins = self._margins(indices, pool, ctx)
        texts = [pool.completions[i].text for i in indices]
        allowed = (margins > 0) & (margins >= self.min_margin)
        ctx.count("pairs below min_margin", int(((margins > 0) & ~allowed).sum()))
        pairs = pick(np.where(allowed, margins, 0.0), texts, self.pairing, self.max_pairs, ctx.rng(prompt.id, "pairs"))
        return [(indices[a], indices[b], float(margins[a, b])) for a, b in pairs]

    def _margins(self, indices: list[int], pool: Pool, ctx: Context) -> np.ndarray:
        ids = [pool.completions[i].id for i in indices]
        votes = [v for v in _verdicts(pool, ids) if len(v.completion_ids) == 2]
        if votes:
            return vote_margins(ids, votes, ctx)
        scores = np.array([np.nan if (s := pool.score(i)) is None else s for i in indices], dtype=np.float64)
        ctx.count("completions without a score", int(np.isnan(scores).sum()))
        margins = np.nan_to_num(scores[:, None] - scores[None, :], nan=0.0)
        ties = np.triu(scores[:, None] == scores[None, :], k=1)
        ctx.count("ties", int(ties.sum()))
        if self.threshold is not None:
            margins = margins * ((scores >= self.threshold)[:, None] & (scores < self.threshold)[None, :])
        return margins

    def _example(
        self, prompt: Prompt, chosen: int, rejected: int, margin: float, pool: Pool, ctx: Context
    ) -> Example | None:
        pair = (pool.completions[chosen], pool.completions[rejected])
        better, worse = (rendered_completion(prompt, c, self.truncated, ctx) for c in pair)
        if better is None or worse is None:
            return None
        ids = [c.id for c in pair]
        verdicts = [v.id for v in _verdicts(pool, ids) if set(v.completion_ids) <= set(ids)]
        return Example(
            "preference",
            prompt.id,
            better,
            rejected=worse,
            margin=margin,
            weight=(pool.weight(chosen) + pool.weight(rejected)) / 2,
            sources=(*ids, *verdicts),
        )


def vote_margins(ids: Sequence[str], verdicts: Sequence[Verdict], ctx: Context) -> np.ndarray:
    """Return (n, n) float64: [a, b] = (votes for a over b - votes for b over a) / votes on the pair.

    A "tie" is a vote for neither; a verdict with any other label than "A", "B" and "tie" is no vote and counted. Verdicts on
    completions that are not among `ids` are left out.
    """
    at = {completion_id: i for i, completion_id in enumerate(ids)}
    net, total = np.zeros((len(ids), len(ids))), np.zeros((len(ids), len(ids)))
    for verdict in verdicts:
        first, second = verdict.completion_ids
        if first not in at or second not in at:
            continue
        if verdict.label not in ("A", "B", "tie"):
            ctx.count("pairwise verdicts without a preference")
            continue
        vote = {"A": 1.0, "B": -1.0, "tie": 0.0}[verdict.label]
        a, b = at[first], at[second]
        net[a, b] += vote
        net[b, a] -= vote
        total[a, b] += 1
        total[b, a] += 1
    ctx.count("ties", int((np.triu(total, k=1) > 0).sum() - (np.triu(np.abs(net), k=1) > 0).sum()))
    return net / np.maximum(total, 1)


def pick(
    margins: np.ndarray,
    texts: Sequence[str],
    pairing: Pairing,
    max_pairs: int | None,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return (chosen, rejected) positions of the pairs to train on.

    `margins` (n, n) float64: [a, b] > 0 where a may be chosen over b. Two positions with equal texts are never paired, and of
    pairs with the same two texts only the first is taken. Order, and what a limit keeps: widest margin first, then the
    greater difference of the row sums (net wins), then the lower positions; for "random" the order drawn.
    """
    kind = np.unique(np.array(texts, dtype=object), return_inverse=True)[1] if texts else np.zeros(0, np.int64)
    wins = np.where(margins > 0, margins, 0.0)
    chosen, rejected = np.nonzero(wins)
    apart = kind[chosen] != kind[rejected]
    chosen, rejected = chosen[apart], rejected[apart]
    net = wins.sum(axis=1) - wins.sum(axis=0)
    order = np.lexsort((rejected, chosen, net[rejected] - net[chosen], -wins[chosen, rejected]))
    pairs = [(int(chosen[i]), int(rejected[i])) for i in order]
    first_of = {(kind[a], kind[b]): (a, b) for a, b in reversed(pairs)}
    pairs = [pair for pair in pairs if first_of[kind[pair[0]], kind[pair[1]]] == pair]
    if pairing == "random":
        pairs = [pairs[i] for i in rng.permutation(len(pairs))]
    if pairing == "best_worst":
        return _disjoint(pairs, kind)[: max_pairs or 1]
    return pairs[:max_pairs]


def _disjoint(pairs: list[tuple[int, int]], kind: np.ndarray) -> list[tuple[int, int]]:
    used: set[int] = set()
    taken = []
    for a, b in pairs:
        if used.isdisjoint((kind[a], kind[b])):
            used.update((kind[a], kind[b]))
            taken.append((a, b))
    return taken


def _distinct(pool: Pool, indices: list[int]) -> list[int]:
    """The indices without repeats of a completion that a selector picked more than once."""
    first: dict[str, int] = {}
    for index in indices:
        first.setdefault(pool.completions[index].id, index)
    return list(first.values())


def _verdicts(pool: Pool, ids: Sequence[str]) -> list[Verdict]:
    found = {verdict.id: verdict for i in ids for verdict in pool.verdicts_of.get(i, ())}
    return list(found.values())
