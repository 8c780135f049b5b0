"""Judge `prefer`: a model names the better of two completions."""

from collections.abc import Sequence
from typing import ClassVar

from tamis.asking import read_label
from tamis.context import Context
from tamis.judges.pairs import PREFERENCES, AsksPairs, Pair, voted
from tamis.records import Verdict
from tamis.registry import judge, option


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
        answers = self.ask(ctx, given, lambda text: read_label(text, PREFERENCES), samples=self.votes)
        return [voted(pair, "prefer", found) for pair, found in zip(pairs, answers, strict=True)]
