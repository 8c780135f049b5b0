"""Scripted pairwise judges with a known skill and known biases, for audits and for the checks of judging methods.

Everything they say is a function of the context's seed and record ids alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tamis.context import Context
from tamis.errors import ConfigError
from tamis.judges.pair_verdicts import LABELS
from tamis.judges.pairs import Pair
from tamis.records import Completion, Cost, Prompt, Verdict

Quality = Callable[[Prompt, Completion], float]


@dataclass(frozen=True)
class BiasedJudge:
    """Names the first of two completions with a probability that mixes quality with what should not count.

    P(A) = sigmoid(skill * (q_A - q_B) + position + length * (c_A - c_B) / 100 + sum_s style_s * (s_A - s_B)), q the quality, c
    the length in characters, s a feature of the text. `position` > 0 favours what is shown first, `length` > 0 the longer
    one; both are log-odds. `ties`: a share of verdicts that are "tie"; `unparseable`: a share without any. With
    `sure=True` the more probable one is always named (no noise beyond the biases).
    """

    quality: Quality
    skill: float = 4.0
    position: float = 0.0
    length: float = 0.0
    style: dict[Callable[[str], float], float] = field(default_factory=dict)
    ties: float = 0.0
    unparseable: float = 0.0
    sure: bool = False
    name: str = "biased"

    def __post_init__(self) -> None:
        if not (0 <= self.ties <= 1 and 0 <= self.unparseable <= 1):
            raise ConfigError("ties and unparseable are shares in [0, 1]")

    def log_odds(self, pair: Pair) -> float:
        """Return the log-odds that the first of the pair is named."""
        a, b = pair.first, pair.second
        odds = self.skill * (self.quality(pair.prompt, a) - self.quality(pair.prompt, b)) + self.position
        odds += self.length * (len(a.text) - len(b.text)) / 100
        return odds + sum(weight * (of(a.text) - of(b.text)) for of, weight in self.style.items())

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order; `probability` is P(A)."""
        return [self._verdict(pair, ctx) for pair in pairs]

    def _verdict(self, pair: Pair, ctx: Context) -> Verdict:
        unread, tie, luck = ctx.rng(self.name, *pair.ids).random(3)
        chance = 1 / (1 + math.exp(-max(-700.0, min(700.0, self.log_odds(pair)))))
        label = "A" if (0.5 if self.sure else luck) < chance else "B"
        label = "unparseable_verdict" if unread < self.unparseable else "tie" if tie < self.ties else label
        probability = None if label == "unparseable_verdict" else chance
        cost = Cost(judge_calls=1)
        return Verdict(pair.prompt.id, pair.ids, self.name, label=label, probability=probability, cost=cost)


@dataclass(frozen=True)
class TwoLabelJudge:
    """Says of each of two completions whether it is right, with set error rates per label.

    A right one is called wrong with probability `false_negatives`, a wrong one right with `false_positives`; the label of the
    verdict is "A", "B", "both_right" or "both_wrong". A share `unparseable` has none.
    """

    truth: Callable[[Prompt, Completion], bool]
    false_positives: float = 0.0
    false_negatives: float = 0.0
    unparseable: float = 0.0
    name: str = "two_label"

    def __post_init__(self) -> None:
        for rate in (self.false_positives, self.false_negatives, self.unparseable):
            if not 0 <= rate <= 1:
                raise ConfigError(f"an error rate lies in [0, 1], not at {rate}")

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order."""
        return [self._verdict(pair, ctx) for pair in pairs]

    def _verdict(self, pair: Pair, ctx: Context) -> Verdict:
        unread, *slips = ctx.rng(self.name, *pair.ids).random(3)
        rates = (self.false_positives, self.false_negatives)
        truths = [self.truth(pair.prompt, c) for c in (pair.first, pair.second)]
        first, second = (right != (slip < rates[right]) for right, slip in zip(truths, slips, strict=True))
        label = "unparseable_verdict" if unread < self.unparseable else LABELS[first, second]
        return Verdict(pair.prompt.id, pair.ids, self.name, label=label, cost=Cost(judge_calls=1))
