"""Judge `critique`: a model says in words what is right and wrong with a completion, and concludes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamis.context import Context
from tamis.critiques import criticise
from tamis.judges.asking import AsksEach
from tamis.records import Completion, Verdict
from tamis.registry import judge, option


@judge("critique", row=27, paper="Critique Fine-Tuning (Wang et al. 2025)", needs=("text",))
class Critic(AsksEach):
    """Let a model criticise every completion in words and conclude whether it is right.

    The critique is the verdict's rationale. Its last line "Conclusion: right" or "Conclusion: wrong" decides: score 1.0
    ("right") or 0.0 ("wrong"). A critique without a conclusion, cut at the limit, or empty, has no score and the label
    "unparseable_verdict". The critic sees the reference answer only with `show_reference`.
    """

    wording: ClassVar[str] = "critique"

    temperature: float = option(0.3, "temperature of the critiques", source="paper", ge=0)
    max_new_tokens: int = option(1024, "most tokens of a critique; the paper takes 3200", ge=1)
    show_reference: bool = option(False, "show the critic the prompt's first reference", source="paper")

    def verdicts(
        self, completions: Sequence[Completion], facts: Sequence[Mapping[str, Any]], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per completion, in order."""
        given = facts if self.show_reference else [{**fields, "reference": ""} for fields in facts]
        made = criticise(ctx, self.asked_with, given, self.law, self.retries)
        for completion, critique in zip(completions, made, strict=True):
            yield Verdict(
                completion.prompt_id,
                (completion.id,),
                "critique",
                score=None if critique.fault else float(critique.conclusion == "right"),
                label="unparseable_verdict" if critique.fault else str(critique.conclusion),
                rationale=critique.text or critique.fault,
                cost=critique.cost,
            )
