"""Judge `label`: a model puts each completion into one of several classes, with a probability."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tamis.asking import label_probabilities
from tamis.context import Context
from tamis.judges.asking import FACTS, AsksEach
from tamis.records import Completion, Cost, Verdict
from tamis.registry import judge, option


@judge("label", needs=("text",))
class Label(AsksEach):
    """Let a model label every completion, and take its probabilities of the labels.

    The probabilities are the model's own where it gives log-probabilities (one pass, nothing is sampled), else shares of
    `samples` replies, which `temperature`, `max_new_tokens` and `retries` are for. The verdict's label is the most probable
    one, ties to the first; its score is the probability of the first label, so the first is the good one; `probability` is
    that of the label given.
    """

    wording: ClassVar[str] = "label"
    gives: ClassVar[tuple[str, ...]] = (*FACTS, "labels")

    temperature: float = option(1.0, "temperature of the replies; 0 is greedy", ge=0)
    max_new_tokens: int = option(64, "most tokens of a reply", ge=1)
    retries: int = option(0, "further tries where a reply names no label, sampled at 0.7 or more", ge=0)
    labels: tuple[str, ...] = option(("yes", "no"), "the labels, the good one first", min_length=2)
    samples: int = option(8, "replies to each question where the model gives no log-probabilities", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({label.strip().casefold() for label in self.labels}) < len(self.labels):
            raise ValueError("labels: two are the same")

    def verdicts(
        self, completions: Sequence[Completion], facts: Sequence[Mapping[str, Any]], ctx: Context
    ) -> Iterator[Verdict]:
        """Return one verdict per completion, in order."""
        said = " or ".join(self.labels)
        questions = [self.asked_with.render(**fields, labels=said) for fields in facts]
        law, retries = self.law, self.retries
        shares, costs = label_probabilities(ctx, questions, self.labels, law, samples=self.samples, retries=retries)
        return map(self._verdict, completions, shares, costs)

    def _verdict(self, completion: Completion, shares: np.ndarray, cost: Cost) -> Verdict:
        readable = not np.isnan(shares).any()
        best = int(shares.argmax()) if readable else 0
        return Verdict(
            completion.prompt_id,
            (completion.id,),
            "label",
            score=float(shares[0]) if readable else None,
            label=self.labels[best] if readable else "unparseable_verdict",
            probability=float(shares[best]) if readable else None,
            cost=cost,
        )
