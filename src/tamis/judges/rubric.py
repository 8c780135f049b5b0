"""Judge `rubric`: a model names the answer that meets more of a written rubric."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pydantic
from pydantic.dataclasses import dataclass as validated

from tamis import rubrics
from tamis.asking import Answer, read_label
from tamis.context import Context
from tamis.hashing import derive_seed
from tamis.judges.pairs import PAIR_FACTS, PREFERENCES, SWAPPED, AsksPairs, Pair, voted
from tamis.records import Verdict
from tamis.registry import judge, option


@validated(frozen=True, kw_only=True, config=pydantic.ConfigDict(extra="forbid", allow_inf_nan=False))
class ByRubric(AsksPairs):
    """Options of judges that go by a rubric, and the vote. A subclass gives the rubric."""

    wording: ClassVar[str] = "rubric_prefer"
    gives: ClassVar[tuple[str, ...]] = (*PAIR_FACTS, "rubric")

    temperature: float = option(0.7, "temperature of the votes", ge=0)
    votes: int = option(5, "votes on each pair, the majority counts", source="paper", ge=1)
    both_orders: bool = option(False, "all votes in both orders; by default each vote is in a random order of its own")

    def rubric(self, ctx: Context) -> rubrics.Rubric:
        """Return the rubric to judge by."""
        raise NotImplementedError

    def compare(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, in order."""
        return super().compare(pairs, ctx) if self.both_orders else self._voted(pairs, ctx, shuffled=True)

    def in_order(self, pairs: Sequence[Pair], ctx: Context) -> list[Verdict]:
        """Return one verdict per pair, each shown in the order given in all votes."""
        return self._voted(pairs, ctx, shuffled=False)

    def _voted(self, pairs: Sequence[Pair], ctx: Context, shuffled: bool) -> list[Verdict]:
        if not pairs:
            return []
        text = self.rubric(ctx).text
        cast: list[list[Answer[str]]] = [[] for _ in pairs]
        for vote in range(self.votes):
            swaps = [shuffled and ctx.rng("vote", p.ids, vote).random() < 0.5 for p in pairs]
            shown = [pair.swapped() if swap else pair for pair, swap in zip(pairs, swaps, strict=True)]
            fields = [{**pair.facts(), "rubric": text} for pair in shown]
            asking = replace(ctx, seed=derive_seed(ctx.seed, "vote", vote))
            answers = self.ask(asking, fields, lambda reply: read_label(reply, PREFERENCES))
            for votes, (answer,), swap in zip(cast, answers, swaps, strict=True):
                said = SWAPPED.get(answer.value, answer.value) if swap and answer.value else answer.value
                votes.append(replace(answer, value=said))
        return [voted(pair, self.component.name, votes) for pair, votes in zip(pairs, cast, strict=True)]


@judge("rubric", needs=("text",))
class RubricJudge(ByRubric):
    """Let a model name the better of two answers by a rubric that you wrote, or that `auto_rubric` learned.

    The rubric is a YAML file: {themes: [{statement: TEXT, tips: [TEXT]}]}. Of `votes` replies, each to the pair in a random
    order, the majority counts; equal counts are a tie. `probability` is the share of votes for the first, ties counted
    half. Replies that cannot be read do not vote.
    """

    contract: ClassVar[dict] = {"path": "rubric.yaml"}

    path: str = option(..., "the YAML file of the rubric", min_length=1)

    @cached_property
    def _rubric(self) -> rubrics.Rubric:
        return rubrics.read(Path(self.path))

    def rubric(self, ctx: Context) -> rubrics.Rubric:
        """Return the rubric of the file."""
        return self._rubric

    def fingerprint(self) -> Sequence[str]:
        """Return the content of the wording and of the rubric."""
        return [*super().fingerprint(), self._rubric.text]
