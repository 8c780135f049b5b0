"""Selector `knockout`: candidates meet in pairs, round by round, until one is left."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from tamis.answers import Kind, extract, options_in
from tamis.context import Context
from tamis.errors import ConfigError, ModelError
from tamis.judges.pairs import Pair
from tamis.numerals import as_number
from tamis.pool import Pool, Selection
from tamis.records import Prompt, Verdict
from tamis.registry import option, selector
from tamis.selectors import core

Tie = Literal["random", "first", "drop_both"]
Outcome = tuple[bool, bool] | None
"""Whether the first and the second of a match are right; None where the judge could not be understood."""


class Match(NamedTuple):
    """Two candidates that meet, in the order in which they are shown, and the number of their bracket."""

    bracket: int
    first: int
    second: int


@dataclass
class Bracket:
    """The tournament of one prompt: who is in, what was played in each round, and who won.

    `teams` (N): candidates of equal team have the same answer and are never judged against each other; None is a team of
    its own. `rounds` lists the judged matches of each round as (first, second, outcome).
    """

    teams: Sequence[Hashable]
    rng: np.random.Generator
    survivors: list[int] = field(init=False)
    rounds: list[list[tuple[int, int, Outcome]]] = field(default_factory=list)
    ties: int = 0
    malformed: int = 0
    byes: int = 0
    unjudged: int = 0

    def __post_init__(self) -> None:
        if not self.teams:
            raise ValueError("a knockout needs at least one candidate")
        self.survivors = list(range(len(self.teams)))

    @property
    def calls(self) -> int:
        """Matches that were judged, at most N - 1."""
        return sum(map(len, self.rounds))

    @property
    def over(self) -> bool:
        """Whether one candidate or one team is left."""
        return all(self._same(self.survivors[0], other) for other in self.survivors[1:])

    def winner(self) -> int:
        """Return one of those left, by chance."""
        return self.survivors[int(self.rng.integers(len(self.survivors)))]

    def _same(self, a: int, b: int) -> bool:
        return self.teams[a] is not None and self.teams[a] == self.teams[b]

    def draw(self) -> list[tuple[int, int]]:
        """Begin a round: return its matches, each in random slot order. Pairs of one team are settled by chance here."""
        self.rounds.append([])
        waiting = [self.survivors[i] for i in self.rng.permutation(len(self.survivors))]
        matches = []
        while len(waiting) > 1:
            a = waiting.pop(0)
            b = waiting.pop(next((i for i, other in enumerate(waiting) if not self._same(a, other)), 0))
            if self.rng.random() < 0.5:
                a, b = b, a
            if self._same(a, b):
                self.unjudged += 1
                self.survivors.remove(b)
            else:
                matches.append((a, b))
        self.byes += len(waiting)
        return matches

    def settle(self, first: int, second: int, outcome: Outcome, tie: Tie) -> None:
        """Enter a match's outcome. Raises ValueError for one that is neither None nor two truth values."""
        if outcome is not None and not (len(outcome) == 2 and all(isinstance(said, bool) for said in outcome)):
            raise ValueError(f"candidates {first} and {second}: a verdict is two truth values or None, not {outcome!r}")
        self.rounds[-1].append((first, second, outcome))
        self.malformed += outcome is None
        if outcome is not None and outcome[0] != outcome[1]:
            self.survivors.remove(second if outcome[0] else first)
            return
        self.ties += 1
        if tie == "drop_both" and outcome == (False, False) and len(self.survivors) > 2:
            self.survivors.remove(first)
            self.survivors.remove(second)
        else:
            self.survivors.remove(second if tie == "first" or self.rng.random() < 0.5 else first)


def knockout(
    fields: Sequence[Sequence[Hashable]],
    judge: Callable[[list[Match]], Sequence[Outcome]],
    rngs: Sequence[np.random.Generator],
    tie: Tie = "random",
) -> list[Bracket]:
    """Return the finished bracket of each prompt.

    `fields` holds the candidates' teams, prompt by prompt. The matches of a round, over all prompts, are handed to `judge`
    in one call. Raises ValueError for a prompt without candidates and for a malformed verdict.
    """
    brackets = [Bracket(teams, rng) for teams, rng in zip(fields, rngs, strict=True)]
    while playing := [i for i, bracket in enumerate(brackets) if not bracket.over]:
        matches = [Match(i, *pair) for i in playing for pair in brackets[i].draw()]
        for match, outcome in zip(matches, judge(matches) if matches else [], strict=True):
            brackets[match.bracket].settle(match.first, match.second, outcome, tie)
    return brackets


OUTCOMES: dict[str, Outcome] = {
    "A": (True, False),
    "B": (False, True),
    "both_right": (True, True),
    "both_wrong": (False, False),
    "tie": (True, True),
}
"""What the labels of pairwise verdicts say; any other label is a fault."""


@selector("knockout", row=60, paper="PairJudge RM: Best-of-N Sampling with Knockout Tournament (Liu et al. 2025)")
class Knockout:
    """Keep one completion of each prompt: the winner of a knockout tournament between its answers.

    Candidates with the same final answer are a team and never meet before a judge. In every round all that are left are
    shuffled; each meets the next one of another team, in random slot order. Right against wrong wins; two equal verdicts,
    and a reply that cannot be read, are a tie. Pairs of one team, left where there is no other, lose one by chance. One that
    finds no partner has a bye. It ends when one candidate or one team is left: at most N - 1 questions for N candidates.
    All matches of a round, over all prompts, are asked together. The judge stands beside the selector:
    `select: {knockout: {}, judge: {pair_verdicts: {}}}`.

    `drop_both` drops both of a match where both are called wrong (as the published code is reported to do) unless nobody
    would be left. For independent candidates, a share c right, and error rates fp and fn of a label, one round without
    teams maps c to c^2 + 2 c (1 - c) a with a = 1 - (fp + fn) / 2.
    """

    kind: Kind | None = option(
        "auto", "how the final answer is found (see judge answer); none: no teams, every candidate for itself"
    )
    pattern: str = option("", "regular expression of the answer, for kind regex")
    tie: Tie = option("random", "who goes on from a tie: one by chance, the one shown first, or none if both are wrong")

    needs_judge: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if (self.kind == "regex") != bool(self.pattern):
            raise ValueError("pattern: goes with kind regex, and that kind needs it")

    def select(self, pool: Pool, ctx: Context) -> Selection:
        """Return the winners, prompts in pool order.

        Raises ConfigError where a match has no judge, ModelError (with the pairs) where the judge fails.
        """
        groups: dict[str, list[int]] = {prompt_id: [] for prompt_id in pool.by_prompt}
        for index in core.candidates(pool, ctx).tolist():
            groups[pool.completions[index].prompt_id].append(index)
        groups = {prompt_id: group for prompt_id, group in groups.items() if group}
        members = list(groups.values())

        def judged(matches: list[Match]) -> list[Outcome]:
            pairs = [
                Pair(pool.prompt(members[n][a]), *(pool.completions[members[n][i]] for i in (a, b)))
                for n, a, b in matches
            ]
            return [OUTCOMES.get(verdict.label) for verdict in compared(pairs, ctx)]

        teams = [[self._team(pool.prompt(i), pool.completions[i].text) for i in group] for group in members]
        brackets = knockout(teams, judged, [ctx.rng("knockout", prompt_id) for prompt_id in groups], self.tie)
        _count(brackets, ctx)
        winners = [group[bracket.winner()] for group, bracket in zip(members, brackets, strict=True)]
        rounds = max((len(bracket.rounds) for bracket in brackets), default=0)
        return core.selection(
            pool, np.array(winners, dtype=np.int64), "" if winners else core.NOTHING_ACCEPTED, rounds=rounds
        )

    def _team(self, prompt: Prompt, text: str) -> str | None:
        if self.kind is None:
            return None
        answer = extract(text, self.kind, options=options_in(prompt.text), pattern=self.pattern)
        return None if answer is None else str(as_number(answer) or answer)


def _count(brackets: Sequence[Bracket], ctx: Context) -> None:
    for bracket in brackets:
        ctx.count("matches judged", bracket.calls)
        ctx.count("matches tied", bracket.ties)
        ctx.count("matches without a readable verdict", bracket.malformed)
        ctx.count("byes", bracket.byes)
        ctx.count("pairs of one answer, not judged", bracket.unjudged)
        ctx.count("prompts settled without a match", int(not bracket.calls))


def compared(pairs: list[Pair], ctx: Context) -> list[Verdict]:
    """Return the judge's verdicts. Raises ConfigError without a judge, ModelError that names the pairs where it fails."""
    if ctx.compare is None:
        raise ConfigError(
            "selector 'knockout' needs a judge that compares two answers",
            hint="Put one beside it: select: {knockout: {}, judge: {pair_verdicts: {}}}.",
        )
    try:
        found = ctx.compare(pairs)
    except Exception as error:
        shown = ", ".join(f"{a} against {b}" for a, b in (pair.ids for pair in pairs[:3]))
        more = f" and {len(pairs) - 3} more" if len(pairs) > 3 else ""
        raise ModelError(f"the judge failed: {error}", where=f"selector 'knockout', {shown}{more}") from error
    if [v.completion_ids for v in found] != [pair.ids for pair in pairs]:
        raise ModelError(
            "the judge did not answer about the pairs that it was asked about",
            where="selector 'knockout'",
            hint="`compare` returns one verdict per pair, in the order of the pairs.",
        )
    return found
