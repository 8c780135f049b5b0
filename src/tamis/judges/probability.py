"""Judge `probability`: a model states how probable it is that the first of two completions is preferred."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np

from tamis.asking import Template, label_probabilities, template
from tamis.calibration import parse_probability
from tamis.context import Context
from tamis.judges.pairs import AsksPairs, Pair
from tamis.records import Cost, Verdict, total_cost
from tamis.registry import judge, option


@judge(
    "probability",
    row=113,
    paper="Judging with Confidence: Calibrating Autoraters to Preference Distributions (Li et al. 2025)",
    needs=("text",),
)
class Probability(AsksPairs):
    """Let a model state which share of people would prefer the first of two completions.

    stated: the reply ends in "[P: 0.70]" (`calibration.parse_probability`); `probability` is the mean of what the readable ones
    of `samples` replies state, since a model tuned on shares answers with their distribution. labels: the model's own
    probability of answering "A" rather than "B" (shares of `samples` replies where it gives no log-probabilities), the
    baseline without training. The share of votes in whole comparisons is the judge `prefer` with `votes`.

    The label is "A" above 1/2, "B" below, else "tie". Each pair is shown in one order, so that a bias to a place stays visible;
    with `both_orders` the probability is (g(a, b) + 1 - g(b, a)) / 2. Without a readable reply there is none, and the label
    names the fault.
    """

    wording: ClassVar[str] = "probability"

    how: Literal["stated", "labels"] = option(
        "stated", "a probability in words, or the model's own of the labels A and B"
    )
    samples: int = option(8, "replies to each question, averaged", ge=1)
    temperature: float = option(1.0, "temperature of the replies; 0 is greedy", ge=0)
    both_orders: bool = option(False, "ask in both orders and average")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how == "stated" and self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "samples: at temperature 0 all replies are equal; set samples to 1 or raise the temperature"
            )

    @property
    def asked_with(self) -> Template:
        """The wording in force. Raises ConfigError where it uses a field that this judge does not fill in."""
        return template(self.template or (self.wording if self.how == "stated" else "better_label"), self.gives)

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order."""
        return [replace(v, label=_label(v), id="") for v in super().compare(pairs, ctx)]

    def in_order(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, each shown once, in the order given."""
        return self._by_labels(pairs, ctx) if self.how == "labels" else self._stated(pairs, ctx)

    def _stated(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        answers = self.ask(ctx, [pair.facts() for pair in pairs], parse_probability, samples=self.samples)
        found = []
        for pair, replies in zip(pairs, answers, strict=True):
            said = [a.value for a in replies if a.value is not None]
            mean = float(np.mean(said)) if said else None
            found.append(_verdict(pair, mean, replies[0].fault, replies[0].text, total_cost(replies)))
        return found

    def _by_labels(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        questions = [self.asked_with.render(**pair.facts()) for pair in pairs]
        shares, costs = label_probabilities(
            ctx, questions, ("A", "B"), self.law, samples=self.samples, retries=self.retries
        )
        return [
            _verdict(pair, None if np.isnan(p) else p, "unparseable_verdict", "", cost)
            for pair, p, cost in zip(pairs, shares[:, 0].tolist(), costs, strict=True)
        ]


def _verdict(pair: Pair, p: float | None, fault: str, said: str, cost: Cost) -> Verdict:
    made = Verdict(pair.prompt.id, pair.ids, "probability", None, fault, p, said, cost)
    return replace(made, label=_label(made), id="")


def _label(verdict: Verdict) -> str:
    p = verdict.probability
    return verdict.label if p is None else "A" if p > 0.5 else "B" if p < 0.5 else "tie"
