"""Judge `score`: a model gives each completion a whole number of points."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

from tamis.asking import read_json
from tamis.context import Context
from tamis.judges.asking import FACTS, AsksEach
from tamis.records import Completion, Verdict, total_cost
from tamis.registry import judge, option


@judge("score", needs=("text",))
class Score(AsksEach):
    """Let a model give every completion points for how well it answers.

    The reply is JSON: {"reason": text, "score": whole number in [low, high]}. The verdict's score is
    (points - low) / (high - low), in [0, 1], the mean over `samples` readable replies; its label is "scored", its rationale
    the first reason. Where no reply can be read there is no score.
    """

    wording: ClassVar[str] = "score"
    gives: ClassVar[tuple[str, ...]] = (*FACTS, "low", "high")

    low: int = option(1, "least points")
    high: int = option(10, "most points")
    samples: int = option(1, "replies to each question, averaged", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low >= self.high:
            raise ValueError("low: must be below high")

    def verdicts(
        self, completions: Sequence[Completion], facts: Sequence[Mapping[str, Any]], ctx: Context
    ) -> Iterator[Verdict]:
        """Return one verdict per completion, in order."""
        given = [{**fields, "low": self.low, "high": self.high} for fields in facts]
        schema = {
            "type": "object",
            "required": ["reason", "score"],
            "properties": {
                "reason": {"type": "string"},
                "score": {"type": "integer", "minimum": self.low, "maximum": self.high},
            },
        }
        answers = self.ask(ctx, given, lambda t: read_json(t, schema), samples=self.samples, schema=schema)
        return map(self._verdict, completions, answers)

    def _verdict(self, completion: Completion, answers: Sequence) -> Verdict:
        read = [a.value for a in answers if a.value is not None]
        mean = sum(v["score"] for v in read) / len(read) if read else None
        return Verdict(
            completion.prompt_id,
            (completion.id,),
            "score",
            score=None if mean is None else (mean - self.low) / (self.high - self.low),
            label="scored" if read else answers[0].fault,
            rationale=read[0]["reason"] if read else answers[0].text,
            cost=total_cost(answers),
        )
