"""Rounds of one stage on growing random parts of its prompts, and what the whole stage takes by them."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tamis.plan.estimate import Span, total
from tamis.records import Completion, Prompt, Verdict

FIRST_ROWS = 8
"""Completions of the first round that is timed; the one before it is a single prompt, which loads what is loaded late."""

Work = Callable[[list[Prompt]], tuple[list[Completion], list[Verdict]]]


@dataclass
class Round:
    """One go of a stage on the prompts `ids`."""

    ids: list[str]
    seconds: float
    completions: list[Completion]
    verdicts: list[Verdict]

    @property
    def records(self) -> list[Completion | Verdict]:
        """What was made; a judge that asks a model has costs of its own."""
        return [*self.completions, *self.verdicts]

    @property
    def tokens(self) -> int:
        """Sampled tokens."""
        return sum(record.cost.sampled_tokens for record in self.records)

    @property
    def rows(self) -> float:
        """Records per prompt."""
        return max(len(self.completions), len(self.verdicts), 1) / len(self.ids)

    def per_prompt(self, figure: Callable[[Completion | Verdict], float]) -> list[float]:
        """Return the sum of a figure over what was made, prompt by prompt."""
        sums = dict.fromkeys(self.ids, 0.0)
        for record in self.records:
            sums[record.prompt_id] += figure(record)
        return list(sums.values())


def grow(
    order: Sequence[Prompt],
    work: Work,
    most: int,
    seconds: float,
    *,
    forget: Callable[[], None],
    enough: Callable[[], bool],
) -> list[Round]:
    """Return rounds of `work` on the next prompts of `order`, each larger than the last while `seconds` allow.

    A round has at most `most` records. `forget` is called before each further round, `enough` after each.
    """
    rounds: list[Round] = []
    size, left, started = 1, list(order), time.perf_counter()
    while left and size:
        if rounds:
            forget()
        part, left = left[:size], left[size:]
        began = time.perf_counter()
        completions, verdicts = work(part)
        rounds.append(Round([p.id for p in part], time.perf_counter() - began, completions, verdicts))
        if enough():
            break
        size = _next_size(rounds, most, seconds - (time.perf_counter() - started))
    return rounds


def _next_size(rounds: Sequence[Round], most: int, time_left: float) -> int:
    """Return how many prompts the next round takes; 0 ends."""
    last = rounds[-1]
    if len(rounds) == 1:
        return max(1, min(math.ceil(FIRST_ROWS / last.rows), int(most / last.rows) - 1))
    fits = int(min(time_left * len(last.ids) / last.seconds, most / last.rows))
    return fits if fits > len(last.ids) else 0


def estimate(rounds: Sequence[Round], population: int) -> dict[str, Any]:
    """Return the figures of a stage of `population` prompts: means over all rounds, and the rate of the last, largest one.

    What the first round took beyond that rate is start-up (loading a model), and is counted once.
    """

    def over(figure: Callable[[Completion | Verdict], float]) -> Span:
        return total([value for r in rounds for value in r.per_prompt(figure)], population)

    tokens = over(lambda record: record.cost.sampled_tokens)
    first, last = rounds[0], rounds[-1]
    work = tokens if last.tokens else Span.exact(population)
    done = [r.tokens if last.tokens else len(r.ids) for r in (first, last)]
    rate = last.seconds / done[1]
    late = max(0.0, first.seconds - rate * done[0]) if len(rounds) > 1 else 0.0
    return {
        "prompts": population,
        "completions": over(lambda record: isinstance(record, Completion)),
        "sampled_tokens": tokens,
        "prompt_tokens": over(lambda record: record.cost.prompt_tokens),
        "judge_calls": over(lambda record: record.cost.judge_calls),
        "seconds": Span.exact(late) + work * rate,
    }
