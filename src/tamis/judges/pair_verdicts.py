"""Judge `pair_verdicts`: a model looks at two solutions together and says of each whether it is right."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import ClassVar

from tamis.asking import read_label
from tamis.context import Context
from tamis.judges.pairs import AsksPairs, Pair, pairs_of
from tamis.records import Completion, Prompt, Verdict
from tamis.registry import judge, option

LABELS = {(True, False): "A", (False, True): "B", (True, True): "both_right", (False, False): "both_wrong"}
"""Label of a verdict for (the first is right, the second is right)."""

_WORDS = {True: ("right", "correct"), False: ("wrong", "incorrect")}
_SAID = {f"A {a}, B {b}": said for said in LABELS for a, b in product(_WORDS[said[0]], _WORDS[said[1]])}


def verdict_line(first: bool, second: bool) -> str:
    """Return the line that a reply ends in: "Verdict: A right, B wrong"."""
    return f"Verdict: A {_WORDS[first][0]}, B {_WORDS[second][0]}"


def two_verdicts(text: str) -> tuple[bool, bool] | None:
    """Return (A is right, B is right) as the text's verdict line says it, or None. "correct" and "incorrect" are read too."""
    said = read_label(text, tuple(_SAID))
    return None if said is None else _SAID[said]


@judge(
    "pair_verdicts",
    row=60,
    paper="PairJudge RM: Best-of-N Sampling with Knockout Tournament (Liu et al. 2025)",
    needs=("text",),
)
class PairVerdicts(AsksPairs):
    """Let a model check two solutions side by side and say of each whether it is right.

    The reply is a check in words and ends in "Verdict: A right, B wrong" (each right or wrong). The label is "A" or "B" where
    one alone is right, else "both_right" or "both_wrong"; a reply without two verdicts is asked for again, then it has the
    label of its fault. Each pair is asked about once; a judge stage shows it in a random order, derived from the seed and
    the two ids, and names the completions in the order shown. The selector `knockout` draws the order itself.
    """

    wording: ClassVar[str] = "pair_verdicts"

    max_new_tokens: int = option(1024, "most tokens of a reply", ge=1)
    both_orders: bool = option(False, "ask in both orders; answers that follow the place are a tie and counted")

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per pair of completions of the same prompt, recorded failures left out."""
        pairs = pairs_of(prompts, completions, self.pairing)
        shown = [p.swapped() if ctx.rng("slots", sorted(p.ids)).random() < 0.5 else p for p in pairs]
        yield from self.compare(shown, ctx)

    def in_order(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, each shown once, in the order given."""
        answers = self.ask(ctx, [pair.facts() for pair in pairs], two_verdicts)
        return [
            Verdict(
                pair.prompt.id,
                pair.ids,
                "pair_verdicts",
                label=answer.fault if answer.value is None else LABELS[answer.value],
                rationale=answer.text,
                cost=answer.cost,
            )
            for pair, (answer,) in zip(pairs, answers, strict=True)
        ]
