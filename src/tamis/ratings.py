"""Pairs of answers with ratings: what people or judges said of which of two is better."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from tamis.errors import DataError
from tamis.judges.pairs import TIES, Pair
from tamis.records import Completion, Prompt, Turn, Verdict

_Said = tuple[float, tuple[str, ...]]
"""A rating of the first of a pair, and the ids of the verdicts that it comes from."""

_SIDES = {"A": 1.0, "B": 0.0, **dict.fromkeys(TIES, 0.5)}


@dataclass(frozen=True, slots=True)
class RatedPair:
    """Two answers and their ratings in [0, 1]: 1 where the first is preferred, 0 the second, 0.5 for a tie.

    `sources` are ids of the completions and verdicts it came from.
    """

    pair: Pair
    ratings: tuple[float, ...]
    sources: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of the raters who prefer the first; ties count half."""
        return sum(self.ratings) / len(self.ratings)

    @property
    def content(self) -> tuple[Any, ...]:
        """What is shown, in whichever order."""
        return self.pair.prompt.messages, frozenset((self.pair.first.text, self.pair.second.text))


def own_pair(prompt: Prompt, field: str = "ratings") -> RatedPair | None:
    """Return the pair that a data row holds itself, None where it holds none.

    Either a reference and `metadata["rejected"]` (data with chosen and rejected: one rating, for the reference, unless `field`
    has others), or two references and ratings in `metadata[field]`: one or a list of numbers in [0, 1], "A", "B" or "tie".
    The prompt of the pair has no references, so that no judge is shown an answer as the correct one. Raises DataError for
    ratings that are empty or none of these.
    """
    rejected, given = prompt.metadata.get("rejected"), prompt.metadata.get(field)
    texts = (*prompt.references[:1], str(rejected)) if rejected is not None else prompt.references
    if len(texts) != 2 or texts[0].strip() == texts[1].strip() or (rejected is None and given is None):
        return None
    ratings = (1.0,) if given is None else _ratings(given, prompt, field)
    made = [
        Completion(prompt.id, (Turn("assistant", text),), index=i, model="data", sampler="gold")
        for i, text in enumerate(texts)
    ]
    return RatedPair(Pair(without_references(prompt), *made), ratings, tuple(c.id for c in made))


def without_references(prompt: Prompt) -> Prompt:
    """Return the prompt, under its id, without the references that a wording would show as correct answers."""
    return replace(prompt, references=(), id=prompt.id)


def _ratings(given: Any, prompt: Prompt, field: str) -> tuple[float, ...]:
    values = given if isinstance(given, list | tuple) else [given]
    if not values:
        raise DataError(
            f"'{field}' is empty", where=prompt.source, hint="Give at least one rating, or leave the row out."
        )
    return tuple(_rating(value, prompt, field) for value in values)


def _rating(value: Any, prompt: Prompt, field: str) -> float:
    found = _SIDES.get(value) if isinstance(value, str) else value
    if not isinstance(found, int | float) or not 0 <= found <= 1:
        raise DataError(
            f"'{field}' holds {value!r:.40}, which is no rating",
            where=prompt.source,
            hint='A rating is a number from 0 (the second is better) to 1 (the first is), or "A", "B" or "tie".',
        )
    return float(found)


def judged_pairs(
    prompt: Prompt, completions: Sequence[Completion], verdicts_of: Mapping[str, Sequence[Verdict]]
) -> list[RatedPair]:
    """Return the pairs of different completions of a prompt on which anything was said.

    Every verdict on the two is a rating: its probability, or 1, 0 or 0.5 by its label; so is every judge that scored both one
    by one, 1 where the first has more. Verdicts that say nothing are no rating.
    """
    found = []
    for first, second in combinations(completions, 2):
        if first.text.strip() == second.text.strip():
            continue
        pair = Pair(prompt, first, second)
        said = [*_compared(pair, verdicts_of), *_scored(pair, verdicts_of)]
        if said:
            sources = dict.fromkeys([first.id, second.id, *(source for _, ids in said for source in ids)])
            found.append(RatedPair(pair, tuple(rating for rating, _ in said), tuple(sources)))
    return found


def _compared(pair: Pair, verdicts_of: Mapping[str, Sequence[Verdict]]) -> list[_Said]:
    found: list[_Said] = []
    for verdict in verdicts_of.get(pair.first.id, ()):
        rating = verdict.probability if verdict.probability is not None else _SIDES.get(verdict.label)
        if rating is not None and set(verdict.completion_ids) == set(pair.ids):
            found.append((rating if verdict.completion_ids == pair.ids else 1 - rating, (verdict.id,)))
    return found


def _scored(pair: Pair, verdicts_of: Mapping[str, Sequence[Verdict]]) -> list[_Said]:
    first, second = (
        {v.judge: v for v in verdicts_of.get(i, ()) if len(v.completion_ids) == 1 and v.score is not None}
        for i in pair.ids
    )
    found: list[_Said] = []
    for judge in first.keys() & second.keys():
        a, b = first[judge].score, second[judge].score
        assert a is not None
        assert b is not None
        found.append((0.5 if a == b else float(a > b), (first[judge].id, second[judge].id)))
    return sorted(found, key=lambda said: said[1])
