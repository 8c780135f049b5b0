"""Judge `prefer`: a model names the better of two completions."""

from collections.abc import Sequence
from typing import ClassVar

from tamis.asking import Answer, read_label
from tamis.context import Context
from tamis.judges.asking import total
from tamis.judges.pairs import AsksPairs, Pair
from tamis.records import Verdict
from tamis.registry import judge, option

_LABELS = ("A", "B", "tie")


@judge("prefer", needs=("text",))
class Prefer(AsksPairs):
    """Let a model name the better of two completions of a prompt, in both orders by default.

    The reply ends in "Verdict: A", "Verdict: B" or "Verdict: tie". Of `votes` replies in each order the most frequent label
    counts, equal counts are a tie; `probability` is the share of votes for the first, ties counted half.
    """

    wording: ClassVar[str] = "prefer"

    votes: int = option(1, "replies in each order; more than one needs a temperature above 0", ge=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("votes: at temperature 0 all replies are equal; raise the temperature")

    def in_order(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, each shown once, in the order given."""
        given = [pair.facts() for pair in pairs]
        answers = self.ask(ctx, given, lambda text: read_label(text, _LABELS), samples=self.votes)
        return [_verdict(pair, found) for pair, found in zip(pairs, answers, strict=True)]


def _verdict(pair: Pair, answers: Sequence[Answer[str]]) -> Verdict:
    votes = [a.value for a in answers if a.value is not None]
    net = votes.count("A") - votes.count("B")
    label = "A" if net > 0 else "B" if net < 0 else "tie"
    return Verdict(
        pair.prompt.id,
        pair.ids,
        "prefer",
        label=label if votes else answers[0].fault,
        probability=(1 + net / len(votes)) / 2 if votes else None,
        rationale=answers[0].text,
        cost=total(answers),
    )
