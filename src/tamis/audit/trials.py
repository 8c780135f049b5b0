"""Verdicts as arrays: one row per time that a pair, or a single answer, was judged."""

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tamis.asking import read_label
from tamis.audit.asking import Sitting, winner
from tamis.errors import DataError
from tamis.preferences import Item, KnownAnswers
from tamis.records import Verdict

_ITEM = r"[^\S\n]*(?:[-*+•]|\d+[.)])\s+\S"
STYLES: dict[str, re.Pattern[str]] = {
    "headings": re.compile(r"^#{1,6} \S", re.MULTILINE),
    "lists": re.compile(rf"^{_ITEM}.*\n(?:.*\n)*?{_ITEM}", re.MULTILINE),
    "bold": re.compile(r"\*\*[^\s*][^*\n]*\*\*|__[^\s_][^_\n]*__"),
    "numbers": re.compile(r"(?m)(?<!^)(?<![\w.])\d+(?:[.,]\d+)*(?![.)]\s)"),
    "citations": re.compile(r"https?://|\[\d+\]|\bet al\b|\bdoi:|\([^()\n]*\b(?:1[5-9]|20)\d\d\)", re.IGNORECASE),
}
"""Features of style by name; an answer has one where the pattern is found in it."""

GOOD = {"1", "1.0", "true", "yes", "y", "good", "right", "correct", "accepted", "pass", "positive"}
BAD = {"0", "0.0", "-1", "false", "no", "n", "bad", "wrong", "incorrect", "rejected", "fail", "negative"}


def styles(text: str) -> np.ndarray:
    """Return (5,) float64: 1 for every feature of `STYLES` that the text has."""
    return np.array([bool(pattern.search(text)) for pattern in STYLES.values()], dtype=np.float64)


@dataclass(frozen=True)
class Trials:
    """Verdicts on pairs, all arrays over N rows: with `swapped`, the rows of the file's order and then those of the other.

    `prompts` (int64) numbers equal prompts from 0; `pairs` the pairs. `good` is 1 where the better answer was shown first, else
    -1. `said` is 1 for a verdict for the first, -1 for the second, 0 for a tie, NaN for none. `probability` is that of the
    first being better (NaN where not given). `length` is the difference in characters, `style` (N, 5) that of the features,
    both first minus second; `longest` the length of the longer answer.
    """

    prompts: np.ndarray
    pairs: np.ndarray
    good: np.ndarray
    said: np.ndarray
    probability: np.ndarray
    length: np.ndarray
    longest: np.ndarray
    style: np.ndarray
    swapped: bool

    @property
    def decided(self) -> np.ndarray:
        """(N,) bool: rows whose verdict names one answer."""
        return abs(self.said) == 1

    @property
    def right(self) -> np.ndarray:
        """(N,) bool: rows whose verdict names the better answer."""
        return self.said == self.good

    def where(self, rows: np.ndarray) -> "Trials":
        """Return the rows where `rows` (N,) is true."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Trials(**{name: v[rows] if isinstance(v, np.ndarray) else v for name, v in parts.items()})


def trials(data: KnownAnswers, sitting: Sitting) -> Trials:
    """Return the verdicts on pairs as arrays."""
    cases = data.pairs
    numbers = _numbered([c.pair.prompt.messages for c in cases])
    good = np.array([1.0 - 2 * c.better for c in cases])
    sizes = np.array([(len(c.pair.first.text), len(c.pair.second.text)) for c in cases], dtype=np.float64)
    length = sizes[:, 0] - sizes[:, 1]
    style = np.array([styles(c.pair.first.text) - styles(c.pair.second.text) for c in cases])
    verdicts = [*sitting.there, *sitting.back]
    signs = (1.0, -1.0) if sitting.back else (1.0,)

    def both(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values * sign for sign in signs])

    def twice(values: np.ndarray) -> np.ndarray:
        return np.tile(values, len(signs))

    said = np.array([winner(v) for v in verdicts])
    probability = np.array([math.nan if v.probability is None else v.probability for v in verdicts])
    pairs = np.arange(len(cases))
    return Trials(
        twice(numbers), twice(pairs), both(good), said, probability, both(length), twice(sizes.max(axis=1)), both(style),
        bool(sitting.back),
    )  # fmt: skip


@dataclass(frozen=True)
class Labelled:
    """Verdicts on single answers, all arrays over N rows.

    `known` and `said` are numbers of `labels` (`said` -1 where the judge gave none). With two labels the good one has the
    number 0. `confidence` is the probability of the label given, `score` the judge's score, `rating` the human's (NaN where
    there is none); `length` in characters, `style` (N, 5).
    """

    labels: tuple[str, ...]
    prompts: np.ndarray
    known: np.ndarray
    said: np.ndarray
    confidence: np.ndarray
    score: np.ndarray
    rating: np.ndarray
    length: np.ndarray
    style: np.ndarray


def labelled(data: KnownAnswers, sitting: Sitting, judge: Any) -> Labelled:
    """Return the verdicts on single answers as arrays.

    Labels are those of the judge's option `labels` where the data use them; else yes/no, right/wrong, true/false, 1/0 and the
    like, against a score of at least 0.5. Raises DataError for a label that is neither, or where all are the same.
    """
    items, verdicts = data.items, sitting.there
    own = tuple(getattr(judge, "labels", ()))
    names = own if all(read_label(i.label, own) for i in items) and own else ("good", "bad")
    known = np.array([_code(i, names, own) for i in items])
    if len(set(known.tolist())) == 1:
        raise DataError(
            f"all {len(items)} answers are labelled '{names[known[0]]}': a judge that always says so would agree everywhere",
            where=data.path,
            hint="Add answers with another label; agreement beyond chance (kappa) cannot be told without them.",
        )
    said = np.array([_said(v, names, own) for v in verdicts])
    return Labelled(
        names,
        _numbered([i.prompt.messages for i in items]),
        known,
        said,
        _numbers([v.probability for v in verdicts]),
        _numbers([v.score for v in verdicts]),
        _numbers([i.rating for i in items]),
        np.array([float(len(i.completion.text)) for i in items]),
        np.array([styles(i.completion.text) for i in items]),
    )


def _code(item: Item, names: tuple[str, ...], own: tuple[str, ...]) -> int:
    if names == own:
        return names.index(str(read_label(item.label, names)))
    said = item.label.casefold()
    if said not in GOOD | BAD:
        raise DataError(
            f"the label '{item.label}' is none that is known"
            + (f" (the judge's labels: {', '.join(own)})" if own else ""),
            where=item.where,
            hint="Use yes and no, right and wrong, true and false, or 1 and 0"
            + ("; or give the judge your labels: --set labels='[good, bad]'." if own else "."),
        )
    return int(said in BAD)


def _said(verdict: Verdict, names: tuple[str, ...], own: tuple[str, ...]) -> int:
    if names == own:
        return names.index(verdict.label) if verdict.label in names else -1
    return -1 if verdict.score is None else int(verdict.score < 0.5)


def _numbered(keys: Sequence[Any]) -> np.ndarray:
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if v is None else v for v in values], dtype=np.float64)


def repeat_counts(sitting: Sitting, pairs: bool) -> np.ndarray:
    """Return (N, K): how often each pair (or answer) got each of the K verdicts that occur among the repeats."""
    said = [[_kind(v, pairs) for v in row] for row in sitting.repeats]
    kinds = sorted({kind for row in said for kind in row})
    return np.array([[sum(row[i] == k for row in said) for k in kinds] for i in range(len(said[0]))], dtype=np.float64)


def _kind(verdict: Verdict, pairs: bool) -> str:
    if pairs:
        found = winner(verdict)
        return "none" if math.isnan(found) else str(found)
    return verdict.label if verdict.score is None else f"{verdict.label}, {verdict.score >= 0.5}"
