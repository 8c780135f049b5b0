"""Judge `proper_score`: rewards a stated probability so that the honest one earns most."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tamis.calibration import CLIP, Rule, parse_probability, proper_score
from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.asking import failed, prompt_of
from tamis.records import Completion, Prompt, Verdict
from tamis.registry import judge, option


@judge(
    "proper_score",
    row=113,
    paper="Judging with Confidence: Calibrating Autoraters to Preference Distributions (Li et al. 2025)",
)
class ProperScore:
    """Score a reply that states a probability ("[P: 0.70]") against the prompt's rating by a strictly proper rule.

    The prompt asks about two answers (the wording of the judge `probability`), and `metadata[rating]` says how one rater chose:
    1 for the first, 0 for the second, or a share of several. brier: -(p - z)^2; log: z ln q + (1 - z) ln(1 - q), q within
    [clip, 1 - clip]. Expected over raters both are highest at the share of them, so that one rating a pair is enough: the
    same pair with other ratings stays in the data (task `data` with `dedupe: none`), never merged into a majority.

    A reply that states none, or more than one, gets the rule's lowest value and the label "invalid": it must not pay to say
    nothing. A prompt without a rating gives no score. As a reward this needs advantages that are centred and not divided by
    the group's standard deviation (`calibration.centred_advantages`); keeping the best replies is no substitute, as the best
    for one rating is always 0 or 1.
    """

    rule: Rule = option("brier", "brier is quadratic, log logarithmic", source="paper")
    clip: float = option(CLIP, "least distance from 0 and 1 under the rule log", gt=0, lt=0.5)
    rating: str = option("rating", "field of the prompt's metadata that holds the rating", min_length=1)

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order. Raises ConfigError for a rating outside [0, 1]."""
        for completion in completions:
            yield failed(completion, "proper_score") or self._verdict(prompt_of(prompts, completion), completion)

    def _verdict(self, prompt: Prompt, completion: Completion) -> Verdict:
        z, p = prompt.metadata.get(self.rating), parse_probability(completion.text)
        if z is None:
            return Verdict(prompt.id, (completion.id,), "proper_score", label="no_rating", probability=p)
        stated = np.array([np.nan if p is None else p])
        score = proper_score(stated, [_number(z, prompt)], self.rule, clip=self.clip, invalid=np.isnan(stated))
        label = "invalid" if p is None else "stated"
        return Verdict(prompt.id, (completion.id,), "proper_score", float(score[0]), label, p)


def _number(z: Any, prompt: Prompt) -> float:
    if isinstance(z, int | float) and 0 <= z <= 1:
        return float(z)
    raise ConfigError(
        f"the rating is {z!r:.40}, not a number from 0 to 1",
        where=prompt.source or prompt.id,
        hint="1: the first is better.",
    )
