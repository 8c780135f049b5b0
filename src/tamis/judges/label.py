"""Judge `label`: a model puts each completion into one of several classes, with a probability."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np

from tamis.asking import label_probabilities
from tamis.context import Context
from tamis.judges.asking import FACTS, AsksModel, facts, failed, prompt_of
from tamis.records import Completion, Cost, Prompt, Verdict
from tamis.registry import judge, option


@judge("label", needs=("text",))
class Label(AsksModel):
    """Let a model label every completion, and take its probabilities of the labels.

    The probabilities are the model's own where it gives log-probabilities (one pass, nothing is sampled), else shares of
    `samples` sampled replies. The verdict's label is the most probable one, ties to the first; its score is the probability
    of the first label, so the first is the good one; `probability` is that of the label given.
    """

    wording: ClassVar[str] = "label"
    gives: ClassVar[tuple[str, ...]] = (*FACTS, "labels")

    labels: tuple[str, ...] = option(("yes", "no"), "the labels, the good one first", min_length=2)
    samples: int = option(8, "replies to each question where the model gives no log-probabilities", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({label.strip().casefold() for label in self.labels}) < len(self.labels):
            raise ValueError("labels: two are the same")

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order."""
        asked = [c for c in completions if c.finish_reason != "error"]
        questions = [
            self.asked_with.render(**facts(prompt_of(prompts, c), c), labels=" or ".join(self.labels)) for c in asked
        ]
        shares = iter(label_probabilities(ctx, questions, self.labels, samples=self.samples))
        for completion in completions:
            yield failed(completion, "label") or self._verdict(completion, next(shares))

    def _verdict(self, completion: Completion, shares: np.ndarray) -> Verdict:
        readable = not np.isnan(shares).any()
        best = int(shares.argmax()) if readable else 0
        return Verdict(
            completion.prompt_id,
            (completion.id,),
            "label",
            score=float(shares[0]) if readable else None,
            label=self.labels[best] if readable else "unparseable_verdict",
            probability=float(shares[best]) if readable else None,
            cost=Cost(judge_calls=1),
        )
