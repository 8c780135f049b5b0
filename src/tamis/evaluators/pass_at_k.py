"""pass@k: at least one of k samples is right."""

from collections.abc import Sequence

import numpy as np

from tamis import hashing
from tamis.errors import ConfigError
from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.records import Law
from tamis.registry import evaluator, option


@evaluator("pass_at_k", paper="Evaluating Large Language Models Trained on Code (Chen et al., 2021)")
class PassAtK:
    """Chance that at least one of k samples is right, for each k: mean over prompts of 1 - C(n - c, k) / C(n, k).

    n samples are drawn per prompt, c of them are right (score at least 0.5; one without a score is not right and stands in
    the notes). The estimate is unbiased for every k up to n (Chen et al. 2021, eq. 1). The interval is a bootstrap over
    prompts; `per_item` holds each prompt's estimate.

    Raises ConfigError when a k exceeds n or nothing was judged, DataError when a prompt has fewer than n samples.
    """

    k: list[int] = option([1, 8], "numbers of tries", min_length=1)
    n: int | None = option(None, "samples per prompt; none: the largest k", ge=1)
    temperature: float = option(0.7, "sampling temperature", gt=0)
    top_p: float = option(1.0, "nucleus", gt=0, le=1)
    max_new_tokens: int = option(256, "longest completion, in tokens", ge=1)

    def __post_init__(self) -> None:
        if min(self.k) < 1 or max(self.k) > self._samples:
            raise ConfigError(
                f"every k must lie between 1 and n = {self._samples}, not {self.k}", where="evaluator 'pass_at_k'"
            )

    @property
    def _samples(self) -> int:
        return self.n or max(self.k)

    def draws(self) -> Sequence[Draw]:
        """Ask for n samples per prompt."""
        law = Law(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)
        return (Draw(law, self._samples),)

    def measure(self, view: View) -> list[Metric]:
        """Return one metric "pass@k" per k."""
        pool, rows = outcomes.drawn(view, *self.draws())
        ids = list(rows)
        n = np.array([len(rows[i]) for i in ids])
        c = np.array([sum(outcomes.right(pool, row) for row in rows[i]) for i in ids])
        notes = outcomes.counts(pool, rows)
        return [self._metric(k, ids, stats.pass_at_k(n, c, k), notes) for k in dict.fromkeys(self.k)]

    @staticmethod
    def _metric(k: int, ids: list[str], values: np.ndarray, notes: dict[str, float | int | str]) -> Metric:
        interval = stats.bootstrap_mean(values, rng=hashing.rng("pass_at_k", k, ids))
        per_item = dict(zip(ids, values.tolist(), strict=True))
        return Metric(f"pass@{k}", *interval, n=len(ids), per_item=per_item, unit="share", notes=notes)
