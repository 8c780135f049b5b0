"""Whether a model says when it does not know: accuracy on what it is willing to answer, and how well its certainty ranks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tamis import hashing
from tamis.certainty import StatesCertainty, average_precision, sure_probabilities
from tamis.errors import ConfigError
from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.records import Completion, Law, Prompt
from tamis.refusals import refuses, unanswerable
from tamis.registry import evaluator, option

RESAMPLES = 2000


@dataclass(frozen=True)
class Answered:
    """N answers, by prompt id: `right` (N,) of 0 and 1, `sure` (N,) in [0, 1], `confidence` (N,), NaN where it is unknown."""

    prompts: list[Prompt]
    right: np.ndarray
    sure: np.ndarray
    confidence: np.ndarray

    @property
    def willing(self) -> np.ndarray:
        """Whether the model stands by each answer, (N,) bool: sure > 0.5."""
        return self.sure > 0.5

    @property
    def score(self) -> np.ndarray:
        """What ranks the answers: 0.5 confidence + 0.5 sure, sure alone where the confidence is unknown."""
        return np.where(np.isnan(self.confidence), self.sure, 0.5 * self.confidence + 0.5 * self.sure)

    def take(self, at: np.ndarray) -> "Answered":
        """Return the answers at these indices."""
        return Answered([self.prompts[i] for i in at], self.right[at], self.sure[at], self.confidence[at])


@evaluator(
    "willing",
    row=88,
    paper="R-Tuning: Instructing Large Language Models to Say 'I Don't Know' (Zhang et al., NAACL 2024)",
    needs=("tokens",),
)
class Willing(StatesCertainty):
    """Accuracy on the questions that a model is willing to answer, and how well its certainty ranks its answers.

    After its greedy answer the model is asked whether it is sure; s = p(sure) / (p(sure) + p(unsure)) by next-token
    probabilities, and it is willing where s > 0.5. The wording must be that of training. With form *refuse* it is willing where
    its answer is no refusal (`tamis.refusals`). Confidence c = (prod_t p_t)^(1/T) over the T answer tokens before the stop;
    the score is 0.5 c + 0.5 s (paper's code).

    Figures: accuracy, of all and when willing (read it with the share willing), over-refusal (unwilling of right answers),
    false trust (willing of wrong ones), average precision of "right" by the score and by s alone, ECE of s over ten bins.
    Prompts without an answer (metadata answerable: false, or a refusal as reference) count in the refusal rate alone. Figures
    over a part of the prompts that depends on the model are not compared prompt by prompt. Intervals: Wilson; bootstrap over
    prompts for average precision and ECE.

    Raises ConfigError when no answer has a score or the replies share a token where they part, DataError without prompts.
    """

    form: Literal["sure", "refuse"] = option(
        "sure", "how the model was tuned to say that it does not know", source="paper"
    )
    max_new_tokens: int = option(15, "most tokens of an answer", source="paper", ge=1)
    stop: tuple[str, ...] = option((".",), "texts that end an answer", source="paper")

    def draws(self) -> Sequence[Draw]:
        """Ask for one greedy answer per prompt."""
        return (Draw(Law(temperature=0.0, max_new_tokens=self.max_new_tokens, stop=self.stop)),)

    def measure(self, view: View) -> list[Metric]:
        """Return the figures; those of which there is no case (no wrong answer, nothing willing) are left out."""
        whole = self.answered(view)
        open_ones = np.array([unanswerable(p) for p in whole.prompts])
        found = whole.take(np.flatnonzero(~open_ones))
        right, willing = found.right == 1, found.willing
        metrics = [
            _share("accuracy", found, right),
            _share("accuracy when willing", found, right, willing),
            _share("share willing", found, willing),
            _share("over-refusal", found, ~willing, right, higher_is_better=False),
            _share("false trust", found, willing, ~right, higher_is_better=False),
            _share("refusal rate, unanswerable", whole, ~whole.willing, open_ones),
            *(self._ranking(found) if len(found.prompts) else []),
        ]
        return [metric for metric in metrics if metric is not None]

    def answered(self, view: View) -> Answered:
        """Return the answers with what the model says of them, in the order of prompt ids."""
        pool, rows = outcomes.drawn(view, *self.draws())
        if all(pool.score(row[0]) is None for row in rows.values()):
            raise ConfigError(
                "no answer has a score", hint="Give the evaluate stage a judge that can read the answers."
            )
        prompts = [pool.prompts[i] for i in rows]
        made = [pool.completions[row[0]] for row in rows.values()]
        right = np.array([float(outcomes.right(pool, row[0])) for row in rows.values()])
        if self.form == "refuse":
            sure = np.array([float(not refuses(c.text)) for c in made])
        else:
            sure = sure_probabilities(view.model, prompts, [c.text for c in made], self)
        return Answered(prompts, right, sure, np.array([_confidence(c, view.model.chat) for c in made]))

    def _ranking(self, found: Answered) -> list[Metric]:
        unknown = int(np.isnan(found.confidence).sum())
        notes: dict[str, float | int | str] = {"answers without log-probabilities": unknown} if unknown else {}
        metrics = [_precision("average precision", found, found.score, notes)]
        if self.form == "sure":
            metrics += [_precision("average precision, sure alone", found, found.sure, {}), _calibration(found)]
        return metrics


def _confidence(completion: Completion, chat: Any) -> float:
    """Return the geometric mean of the probabilities of the tokens before the stop, 0 of no token, NaN if unknown."""
    if not completion.raw_logprobs:
        return float("nan")
    ids, long = completion.token_ids, len(completion.text)
    n = next((n for n in range(len(ids)) if len(chat.decode(ids[:n])) >= long), len(ids))
    return float(np.exp(np.mean(completion.raw_logprobs[:n]))) if n else 0.0


def _share(
    name: str, found: Answered, hits: np.ndarray, among: np.ndarray | None = None, *, higher_is_better: bool = True
) -> Metric | None:
    """Return the share of `hits` (N,) bool, of the answers `among` which it is counted; None where there are none."""
    base = np.ones(len(hits), dtype=bool) if among is None else among
    n = int(base.sum())
    if not n:
        return None
    ids = [p.id for p in found.prompts]
    per_item = dict(zip(ids, hits.astype(float).tolist(), strict=True)) if among is None else {}
    interval = stats.wilson(int((hits & base).sum()), n)
    return Metric(name, *interval, n=n, per_item=per_item, unit="share", higher_is_better=higher_is_better)


def _precision(name: str, found: Answered, score: np.ndarray, notes: dict[str, float | int | str]) -> Metric:
    n, rng = len(score), hashing.rng("willing", name, [p.id for p in found.prompts])
    drawn = [average_precision(found.right[at], score[at]) for at in rng.integers(0, n, (RESAMPLES, n))]
    value, (low, high) = average_precision(found.right, score), np.quantile(drawn, [0.025, 0.975])
    return Metric(name, value, min(value, float(low)), max(value, float(high)), n=n, notes=notes)


def _calibration(found: Answered) -> Metric:
    from tamis.audit.statistics import calibration

    rng = hashing.rng("willing", "ece", [p.id for p in found.prompts])
    ece = calibration(found.sure, found.right, np.arange(len(found.prompts)), rng).ece
    low, high = min(ece.low, ece.value), max(ece.high, ece.value)
    return Metric("ECE of sure", ece.value, low, high, n=len(found.prompts), higher_is_better=False)
