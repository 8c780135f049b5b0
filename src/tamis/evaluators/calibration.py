"""Calibration of the model as a judge of pairs: do its probabilities meet the shares of raters?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tamis.calibration import Reported, calibration_report
from tamis.evaluators.pairs import both_orders, heldout_pairs, judged_by, pair_judge
from tamis.metrics import Draw, Metric, View
from tamis.records import Verdict
from tamis.registry import evaluator, option

_BETTER_HIGH = ("agreement", "consistency")
_UNITS = {
    "mse": "squared probability",
    "brier": "squared probability",
    "ece": "probability",
    "positional bias": "probability",
    "log loss": "nats",
}


@evaluator(
    "calibration",
    row=113,
    paper="Judging with Confidence: Calibrating Autoraters to Preference Distributions (Li et al. 2025)",
    needs=("text",),
)
class Calibration:
    """How the probabilities that the model states as a judge meet the raters of held-out pairs.

    The measured model itself judges every pair in both orders, by the judge `judge`. A pair is a held-out row's own (two
    answers and `ratings`, or chosen and rejected). Figures (`calibration.calibration_report`): brier, ece, log loss,
    agreement, positional bias, consistency, invalid; and mse to the share of raters where every pair has two ratings or more
    (then ece and the rest are held against the share too). Nothing invalid is left out: it counts as the worst that could
    have been said. Intervals are bootstraps over pairs, both orders one unit; `per_item` is each pair's own part, which for
    the ece is its gap with the sign of its bin. Held-out prompts without a pair stand in the notes.

    Raises DataError when no held-out prompt has a pair, ConfigError for a judge that does not compare.
    """

    judge: dict[str, Any] | str = option(
        {"probability": {}}, "a pairwise judge that gives probabilities, without `model`"
    )
    ratings: str = option("ratings", "field of a prompt's metadata that holds the ratings", min_length=1)
    bins: int = option(10, "equal-width bins of the ece", source="paper", ge=1)

    contract = {"judge": {"probability": {"samples": 2, "max_new_tokens": 8, "retries": 0}}}  # noqa: RUF012

    def __post_init__(self) -> None:
        pair_judge(self.judge)

    def fingerprint(self) -> Any:
        """Return what the judge's options only point at."""
        judge = pair_judge(self.judge)
        return [judge.component.version, judge.fingerprint() if hasattr(judge, "fingerprint") else ""]

    def draws(self) -> Sequence[Draw]:
        """Ask for no samples."""
        return ()

    def measure(self, view: View) -> list[Metric]:
        """Return one metric per figure."""
        rated = heldout_pairs(view, self.ratings)
        compare = judged_by(pair_judge(self.judge), view.model, view.ctx)
        there, back = both_orders(compare, [r.pair for r in rated.values()])
        shares = np.array([r.share for r in rated.values()])
        dense = all(len(r.ratings) > 1 for r in rated.values())
        found = calibration_report(
            _probabilities(there), _probabilities(back), shares if dense else None, shares, bins=self.bins
        )
        notes = {"without a pair": len(view.prompts) - len(rated)} if len(rated) < len(view.prompts) else {}
        return [_metric(name, figure, list(rated), notes) for name, figure in found.items()]


def _probabilities(verdicts: Sequence[Verdict]) -> np.ndarray:
    return np.array([np.nan if v.probability is None else v.probability for v in verdicts], dtype=np.float64)


def _metric(name: str, figure: Reported, ids: Sequence[str], notes: Mapping[str, float | int | str]) -> Metric:
    return Metric(
        name,
        *figure.interval,
        n=len(ids),
        per_item=dict(zip(ids, figure.per_pair.tolist(), strict=True)),
        unit=_UNITS.get(name, "share"),
        higher_is_better=name in _BETTER_HIGH,
        notes=notes,
    )
