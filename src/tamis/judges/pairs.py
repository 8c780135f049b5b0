"""Pairwise judging: the protocol, which pairs a judge stage forms, and how verdicts of both orders become one.

A pairwise judge has `compare(pairs, ctx)`: one verdict per pair, on (first, second), labelled "A" (the first is better), "B",
a tie ("tie", "both_right", "both_wrong") or a fault. Selectors that choose their pairs as they go call it themselves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import ClassVar, Literal, Protocol, runtime_checkable

import pydantic
from pydantic.dataclasses import dataclass as validated

from tamis.asking import Answer
from tamis.context import Context
from tamis.judges.asking import AsksModel, asked, by_prompt, prompt_of
from tamis.records import Completion, Prompt, Verdict, total_cost
from tamis.registry import option

TIES = ("tie", "both_right", "both_wrong")
PREFERENCES = ("A", "B", "tie")
SWAPPED = {"A": "B", "B": "A"}
PAIR_FACTS = ("question", "first", "second", "reference")
Pairing = Literal["all", "neighbours"]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two completions of one prompt, in the order in which they are shown."""

    prompt: Prompt
    first: Completion
    second: Completion

    def swapped(self) -> "Pair":
        """Return the pair in the other order."""
        return Pair(self.prompt, self.second, self.first)

    @property
    def ids(self) -> tuple[str, str]:
        """Ids of the two completions."""
        return self.first.id, self.second.id

    def facts(self) -> dict[str, str]:
        """Return the fields of a pairwise wording."""
        return {**asked(self.prompt), "first": self.first.text, "second": self.second.text}


@runtime_checkable
class PairJudge(Protocol):
    """What selectors and audits ask of a pairwise judge."""

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order, with `completion_ids` = (first, second)."""
        ...


@validated(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class AsksPairs(AsksModel):
    """Options of pairwise judges that ask a model; gives the judge stage its pairs."""

    gives: ClassVar[tuple[str, ...]] = PAIR_FACTS

    pairing: Pairing = option("all", "which pairs of a prompt's completions a judge stage forms")
    both_orders: bool = option(True, "ask in both orders; answers that follow the place are a tie and counted")

    def judge(
        self, prompts: Mapping[str, Prompt], completions: Sequence[Completion], ctx: Context
    ) -> Iterator[Verdict]:
        """Yield one verdict per pair of completions of the same prompt, recorded failures left out."""
        yield from self.compare(list(pairs_of(prompts, completions, self.pairing)), ctx)

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order."""
        if not self.both_orders:
            return self.in_order(pairs, ctx)
        found = self.in_order([p for pair in pairs for p in (pair, pair.swapped())], ctx)
        return [merged(there, back, ctx) for there, back in zip(found[::2], found[1::2], strict=True)]

    def in_order(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, each shown once, in the order given."""
        raise NotImplementedError


def pairs_of(
    prompts: Mapping[str, Prompt], completions: Sequence[Completion], pairing: Pairing = "all"
) -> Iterator[Pair]:
    """Yield the pairs of each prompt's completions, recorded failures left out.

    all: every two, n (n - 1) / 2 of n; neighbours: each with the next in sample order, n - 1.
    """
    for group in by_prompt(completions).values():
        chosen = combinations(group, 2) if pairing == "all" else pairwise(group)
        for first, second in chosen:
            yield Pair(prompt_of(prompts, first), first, second)


def voted(pair: Pair, judge: str, answers: Sequence[Answer[str]]) -> Verdict:
    """Return the verdict of a vote of answers "A", "B" or "tie"; those that could not be read do not vote.

    The more frequent winner counts, equal counts are a tie; `probability` is the share of votes for the first, ties counted
    half. The rationale is the first reply.
    """
    votes = [a.value for a in answers if a.value is not None]
    net = votes.count("A") - votes.count("B")
    label = "A" if net > 0 else "B" if net < 0 else "tie"
    return Verdict(
        pair.prompt.id,
        pair.ids,
        judge,
        label=label if votes else answers[0].fault,
        probability=(1 + net / len(votes)) / 2 if votes else None,
        rationale=answers[0].text,
        cost=total_cost(answers),
    )


def merged(there: Verdict, back: Verdict, ctx: Context) -> Verdict:
    """Return one verdict of the two that a judge gave on a pair in both orders.

    The same winner in both orders wins. Two winners are a "tie", counted as "pairs flipped by their order"; a winner and a
    tie are a "tie". Probabilities are averaged. Where one order gave no verdict the other is not taken alone: its place
    may be what decided it.
    """
    label = back.label if back.label in TIES else SWAPPED.get(back.label, back.label)
    probability = None
    if there.probability is not None and back.probability is not None:
        probability = (there.probability + 1 - back.probability) / 2
    faults = [v.label for v in (there, back) if v.label not in (*SWAPPED, *TIES)]
    if faults:
        said, probability = faults[0], None
    elif there.label == label:
        said = label
    else:
        said = "tie"
        ctx.count("pairs flipped by their order", int(there.label in SWAPPED and label in SWAPPED))
    return Verdict(
        there.prompt_id,
        there.completion_ids,
        there.judge,
        label=said,
        probability=probability,
        rationale=_both(there.rationale, back.rationale),
        cost=there.cost + back.cost,
    )


def _both(there: str, back: str) -> str:
    return f"{there}\n\n[in the other order]\n{back}" if there or back else ""
