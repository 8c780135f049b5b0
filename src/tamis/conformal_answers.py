"""What conformal sets (`tamis.conformal`) see of sampled answers: how alike they are and how good each seems."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from tamis.conformal import Abstain, CLMConfig, SetScore, calibrate, least_prompts, parts, percent
from tamis.errors import ModelError
from tamis.records import Completion

Quality = Literal["likelihood", "agreement", "judge"]


class Answers(NamedTuple):
    """Draws of n prompts as `conformal.calibrate` takes them: scores (n, K), sims (n, K, K), labels (n, K)."""

    scores: np.ndarray
    sims: np.ndarray
    labels: np.ndarray


def alike(text: str, others: Sequence[str]) -> list[float]:
    """Return how alike `text` is to each of `others`, in [0, 1]: twice their common words in order, by their words."""
    from rapidfuzz.distance import Indel

    words = text.split()
    return [Indel.normalized_similarity(words, other.split()) for other in others]


def quality_of(
    completion: Completion, quality: Quality, similar: Sequence[float], judged: float | None
) -> float | None:
    """Return how good an answer seems without its reference, in [0, 1]; None for a draw that failed.

    likelihood: exp of the mean log-probability of its tokens. agreement: the sum of `similar`, its likeness to each earlier
    draw of the prompt, divided by their number plus one. judge: `judged`, 0 where the judge gave no score. Rounded to
    six digits. Raises ModelError for a likelihood where the model gives no log-probabilities.
    """
    if completion.finish_reason == "error":
        return None
    if quality == "likelihood":
        if not completion.raw_logprobs:
            raise ModelError(
                "quality 'likelihood' takes the log-probabilities of the sampled tokens, and the model gives none",
                hint="Set quality: agreement, or quality: judge with a judge.",
            )
        return round(math.exp(math.fsum(completion.raw_logprobs) / len(completion.raw_logprobs)), 6)
    return round(sum(similar) / (len(similar) + 1) if quality == "agreement" else judged or 0.0, 6)


def answers(
    texts: Sequence[Sequence[str]], scores: Sequence[Sequence[float | None]], labels: Sequence[Sequence[bool]]
) -> Answers:
    """Return the draws of n prompts, all of K, as arrays."""
    k = len(texts[0])
    sims = np.zeros((len(texts), k, k))
    for i, own in enumerate(texts):
        for j in range(1, k):
            sims[i, j, :j] = alike(own[j], own[:j])
    found = [[-math.inf if q is None else q for q in row] for row in scores]
    return Answers(np.array(found), np.maximum(sims, sims.swapaxes(1, 2)), np.array(labels, dtype=np.int64))


def calibrated(
    data: Answers | None, eps: float, delta: float, set_score: SetScore, n_grid: int, opt_frac: float, seed: int
) -> CLMConfig | Abstain:
    """Return what `conformal.calibrate` finds, an abstention also where there are too few prompts (None: there are none)."""
    n = 0 if data is None else len(data.scores)
    left = len(parts(n, opt_frac, seed)[1]) if n > 1 else 0
    if data is None or left < least_prompts(eps, delta):
        return Abstain(eps, delta, left)
    return calibrate(*data, eps, delta, set_score, n_grid, opt_frac, seed)


def told(found: CLMConfig | Abstain) -> dict[str, Any]:
    """Return a calibration as a stage's finding: a sentence, and the tested risk against cost as the lines of a chart."""
    points = sorted(found.tested, key=lambda p: p.cost)
    costs, risks = [p.cost for p in points], [p.risk for p in points]
    lines = [["tested rules", costs, risks], [f"the {percent(found.eps)} asked", costs, [found.eps] * len(costs)]]
    if isinstance(found, CLMConfig):
        lines.append(["the rule taken", [found.found.cost], [found.found.risk]])
    chart = {
        "title": "Calibration prompts without an acceptable answer, by cost",
        "x_label": "draws and answers a prompt",
        "lines": lines,
    }
    return {"sentence": found.sentence, **({"chart": chart} if costs else {})}
