"""Judge `critique`: a model says in words what is right and wrong with a completion, and concludes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamis.context import Context
from tamis.critiques import criticise
from tamis.judges.asking import AsksEach
from tamis.records import Completion, Law, Verdict
from tamis.registry import judge, option


@judge("critique", row=27, paper="Critique Fine-Tuning (Wang et al. 2025)", needs=("text",))
class Critic(AsksEach):
    """Let a model criticise every completion in words and conclude whether it is right.

    The critique is the verdict's rationale. Its last line "Conclusion: right" or "Conclusion: wrong" decides: score 1.0
    ("right") or 0.0 ("wrong"). There is no score where the critic gave no reply (label "no_reply"), was cut at the limit
    ("cut_reply"), or did not conclude ("unparseable_verdict"). The critic sees the reference answer only with
    `show_reference`.
    """

    wording: ClassVar[str] = "critique"

    temperature: float = option(0.3, "temperature of the critiques", source="paper", ge=0)
    top_p: float = option(0.95, "most likely tokens that hold this share are drawn from", source="paper", gt=0, le=1)
    max_new_tokens: int = option(1024, "most tokens of a critique; the paper takes 3200", ge=1)
    show_reference: bool = option(False, "show the critic the prompt's first reference", source="paper")

    @property
    def law(self) -> Law:
        """Law of the critiques."""
        return Law(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens)

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
                label=critique.fault or str(critique.conclusion),
                rationale=critique.text,
                cost=critique.cost,
            )
