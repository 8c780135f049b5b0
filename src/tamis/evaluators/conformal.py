"""conformal: what a promised risk costs this model, tested on prompts that the calibration never saw (row 75)."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from tamis import hashing
from tamis.conformal import CLMConfig, SetScore, build, missed
from tamis.conformal_answers import Answers, alike, answers, calibrated, quality_of
from tamis.errors import DataError
from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.pool import Pool
from tamis.records import Law
from tamis.registry import evaluator, option


@evaluator("conformal", row=75, paper="Conformal Language Modeling (Quach et al., ICLR 2024)")
class Conformal:
    """Risk, size and draws of sets that were promised to lack an acceptable answer for at most a share eps of prompts.

    `k_max` draws of every held-out prompt; a random half of the prompts calibrates (see the sampler `conformal`), the other
    half tests: "conformal risk" is its share of sets without an acceptable answer (score at least 0.5), "conformal set size"
    and "conformal draws" are means. Where no rule can be promised there is no set: the risk is 1, and there are no other
    figures. The notes hold the promise in words.

    Raises DataError where a half is empty, ConfigError when nothing was judged, ModelError for the likelihood of a model
    without log-probabilities.
    """

    contract: ClassVar[dict[str, Any]] = {"quality": "agreement", "eps": 0.9, "delta": 0.5, "k_max": 4}

    eps: float = option(0.2, "share of prompts that may lack an acceptable answer", gt=0, lt=1)
    delta: float = option(0.05, "chance, over the calibration, that more do", source="paper", gt=0, lt=1)
    k_max: int = option(20, "most draws of a prompt", source="paper", ge=1)
    set_score: SetScore = option("max", "what ends drawing: number of draws, best, sum or geometric sum of quality")
    quality: Literal["likelihood", "agreement"] = option("likelihood", "quality of an answer")
    opt_frac: float = option(0.3, "share of the calibration that chooses what is tested", source="code", gt=0, lt=1)
    n_grid: int = option(25, "quantiles tried of each threshold", source="code", ge=2)
    temperature: float = option(0.7, "divides the logits", gt=0)
    max_new_tokens: int = option(256, "most tokens of a completion", ge=1)

    def draws(self) -> Sequence[Draw]:
        """Ask for `k_max` draws of every prompt."""
        return (Draw(Law(self.temperature, max_new_tokens=self.max_new_tokens), self.k_max),)

    def measure(self, view: View) -> list[Metric]:
        """Return risk, set size and draws on the test half."""
        pool, rows = outcomes.drawn(view, *self.draws())
        half = {i: hashing.rng("conformal", i).random() < 0.5 for i in rows}
        ids, calibration = [i for i in rows if not half[i]], [i for i in rows if half[i]]
        if not ids or not calibration:
            raise DataError(f"{len(rows)} held-out prompts are too few to calibrate and test", hint="Raise `heldout`.")
        data, seen = (self._answers(pool, [rows[i] for i in part]) for part in (ids, calibration))
        rule = calibrated(seen, self.eps, self.delta, self.set_score, self.n_grid, self.opt_frac, seed=0)
        notes = {"promise": rule.sentence, **outcomes.counts(pool, rows)}
        if not isinstance(rule, CLMConfig):
            return [self._metric("conformal risk", ids, np.ones(len(ids)), notes)]
        sets = build(rule, data.scores, data.sims)
        return [
            self._metric("conformal risk", ids, missed(sets, data.labels), notes),
            self._metric("conformal set size", ids, sets.kept.sum(axis=1), {}),
            self._metric("conformal draws", ids, sets.draws, {}),
        ]

    def _answers(self, pool: Pool, rows: Sequence[Sequence[int]]) -> Answers:
        texts, scores = [], []
        for row in rows:
            own = [pool.completions[i] for i in row]
            texts.append([c.text for c in own])
            similar = [alike(c.text, texts[-1][:k]) for k, c in enumerate(own)]
            scores.append([quality_of(c, self.quality, s, None) for c, s in zip(own, similar, strict=True)])
        return answers(texts, scores, [[outcomes.right(pool, i) for i in row] for row in rows])

    @staticmethod
    def _metric(name: str, ids: list[str], values: np.ndarray, notes: dict[str, float | int | str]) -> Metric:
        items = np.asarray(values, dtype=np.float64)
        risk = name == "conformal risk"
        interval = (
            stats.wilson(items.sum(), len(items)) if risk else stats.bootstrap_mean(items, rng=hashing.rng(name, ids))
        )
        per_item = dict(zip(ids, items.tolist(), strict=True))
        unit = "share" if risk else "answers" if name.endswith("size") else "draws"
        return Metric(name, *interval, len(ids), per_item, unit, higher_is_better=False, notes=notes)
