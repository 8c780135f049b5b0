"""Selector `within_clusters`: diversity before quality, by any score inside clusters of embeddings."""

from typing import ClassVar, Literal

import numpy as np

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.pool import Pool, Selection
from tamis.registry import option, selector
from tamis.selectors import core
from tamis.selectors.clusters import cluster_labels

MOST_CLUSTERS = 1000


def within_clusters(
    labels: np.ndarray, score: np.ndarray | None, k: int, rng: np.random.Generator, minimum: int = 0
) -> np.ndarray:
    """Return the best k indices under a quota for each cluster, (k,) int64 in order of falling score.

    Cluster c of n_c items gets k * n_c / N by largest remainder (equal remainders to the lower cluster), after
    min(minimum, n_c) each. Inside a cluster the highest `score` (N,) float wins, ties to the lower index; without score the
    draw is random (stratified sampling), in draw order. Raises ValueError for k outside 1..N, no labels, unequal
    lengths, a NaN score, or a minimum that takes more than k.
    """
    labels, sizes = core.check_groups(labels, len(np.asarray(labels)) if score is None else len(score))
    core.check_count(k, len(labels))
    order = rng.permutation(len(labels)) if score is None else core.falling(score)
    return core.best_of_groups(labels, order, core.quotas_with_minimum(k, sizes, minimum))


@selector("within_clusters", row=89, paper="Rethinking Data Selection at Scale (Xia et al. 2024)", needs=("embedder",))
class WithinClusters:
    """Keep the best completions of every cluster, clusters in proportion to their size.

    Texts are embedded and clustered by mini-batch k-means; cluster c gets k * n_c / N places by largest remainder, which go
    to the highest score inside it. `score: random` is stratified random sampling. O(N C d) time, memory in blocks.
    """

    k: int | None = option(None, "completions to keep", ge=1)
    fraction: float | None = option(None, "share of the pool to keep, instead of k", gt=0, le=1)
    score: Literal["random", "verdict", "length"] = option(
        "random", "what is best inside a cluster: chance, the judge's score, or the length in tokens"
    )
    n_clusters: int | None = option(None, "clusters; none: the square root of the pool's size, at most 1000", ge=1)
    minimum: int = option(0, "places that every cluster gets first", ge=0)
    of: core.Part = option("total", "what is embedded: query and response, response, or query")

    contract: ClassVar[dict] = {"k": 3, "n_clusters": 2}

    def __post_init__(self) -> None:
        core.check_budget(self.k, self.fraction)

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the kept completions, best first or in draw order."""
        if pool.embed is None:
            raise ConfigError(
                "selector 'within_clusters' needs an embedder, and this run has none",
                hint="Set `embedder:` in the recipe.",
            )
        among = self._scored(core.candidates(pool, ctx), pool, ctx)
        k, reason = core.budget(self.k, self.fraction, len(among))
        if k == 0:
            return core.selection(pool, among, reason)
        clusters = min(self.n_clusters or min(round(len(among) ** 0.5), MOST_CLUSTERS), len(among))
        labels = cluster_labels(pool.embed(self._texts(pool, among)), clusters, ctx.rng("clusters"))
        try:
            chosen = within_clusters(labels, self._scores(pool, among), k, ctx.rng("within_clusters"), self.minimum)
        except ValueError as error:
            raise ConfigError(
                str(error), where="selector 'within_clusters'", hint="Lower `minimum`, or raise k."
            ) from None
        return core.selection(pool, among[chosen], reason, clusters=len(np.unique(labels)))

    def _scored(self, among: np.ndarray, pool: Pool, ctx: Context) -> np.ndarray:
        return core.with_score(pool, among, ctx) if self.score == "verdict" else among

    def _scores(self, pool: Pool, among: np.ndarray) -> np.ndarray | None:
        if self.score == "random":
            return None
        if self.score == "length":
            return core.token_counts(pool, among)
        return pool.take(list(among)).scores()

    def _texts(self, pool: Pool, among: np.ndarray) -> list[str]:
        parts = [core.text_parts(pool, i) for i in among]
        return [{"query": q, "response": r, "total": f"{q}\n{r}"}[self.of] for q, r in parts]
