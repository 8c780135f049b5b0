"""The text of a mosaic: written under a drawn rule, and read back."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np

from tamis.errors import ConfigError, DataError, nearest
from tamis.mosaic.rules import MASKS, ORDERS, STRATEGIES, Strategy, Version
from tamis.mosaic.wordings import (
    DEFAULT,
    MARK_BRACKETS,
    MARK_WORDS,
    PUNCTUATION,
    SEPARATORS,
    SEQUENCE_TAGS,
    TAGS,
    Wordings,
)
from tamis.records import Example

Pair = tuple[str, str]
T = TypeVar("T")
MARK_DRAWS = 20
"""Marks that are tried until one stands in no response; then there are none."""
JOIN = "\n\n"
"""What stands between two responses."""


@dataclass(frozen=True)
class Rule:
    """The rule of a mosaic. `method` names the order or the mask, "" for format alone. `tag` is what stands before and after
    a number (None: no numbers), `marks` what begins and ends a response (None: nothing)."""

    strategy: Strategy = "format"
    method: str = ""
    tag: Pair | None = None
    marks: Pair | None = None

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "Rule":
        """Return the rule of plain data, as an example's metadata holds it under "rule"."""
        tag, marks = (None if plain[name] is None else tuple(plain[name]) for name in ("tag", "marks"))
        return cls(plain["strategy"], plain["method"], tag, marks)

    def number(self, number: int) -> str:
        """Return what stands before instruction `number` (from 1) and before its response."""
        return "" if self.tag is None else f"{self.tag[0]}{number}{self.tag[1]}"


@dataclass(frozen=True)
class Mosaic:
    """One mosaic: what is asked, what is answered, and where what stands.

    `shown` are indices of the instructions in the order in which their responses stand, `ignored` those without a response;
    `spans` are start and end of each shown response in `output`, in characters. `rows` are the places of the instructions
    in the data that they were taken from, `part` the pass.
    """

    prompt: str
    output: str
    shown: tuple[int, ...]
    ignored: tuple[int, ...]
    rule: Rule
    spans: tuple[tuple[int, int], ...]
    rows: tuple[int, ...] = field(default=())
    part: int = 0


def write_mosaic(
    instructions: Sequence[str],
    responses: Sequence[str],
    rng: np.random.Generator,
    version: Version = "both",
    wordings: Wordings = DEFAULT,
) -> Mosaic:
    """Return a mosaic of the instructions under a rule drawn from `rng`; of a single one always under format alone.

    Raises DataError for no row and for an empty instruction or response, ConfigError for an unknown version.
    """
    _check(instructions, responses, version)
    n = len(instructions)
    strategies = STRATEGIES[version]
    strategy = strategies[int(rng.integers(len(strategies)))]
    tag, gap, meta_first = _tag(rng), _one(("\n", "\n\n"), rng), rng.random() < 0.5
    marks, meta = _format(responses, rng, wordings)
    rule = Rule("format", "", tag, marks)
    shown, said = list(range(n)), ""
    if n > 1 and strategy != "format":
        methods = ORDERS if strategy == "order" else MASKS
        rule = Rule(strategy, _one(tuple(methods), rng), tag, marks)
        shown = methods[rule.method](instructions, rng)
        said = _said(rule, shown, n, rng, wordings)
    asked = [f"{rule.number(i + 1)}{text}" for i, text in enumerate(instructions)]
    body = [meta, *asked] if meta_first else [*asked, meta]
    output, spans = _written(rule, shown, responses)
    ignored = tuple(i for i in range(n) if i not in shown)
    return Mosaic(gap.join(filter(None, (said, *body))), output, tuple(shown), ignored, rule, spans)


def _check(instructions: Sequence[str], responses: Sequence[str], version: str) -> None:
    if version not in STRATEGIES:
        raise ConfigError(f"there is no version '{version}' of a mosaic", hint=nearest(version, STRATEGIES))
    if not instructions:
        raise DataError("a mosaic needs at least one row")
    for what, texts in (("instruction", instructions), ("response", responses)):
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise DataError(f"the {what} is empty", where=f"row {number} of the mosaic", hint="Leave the row out.")


def _one(choices: Sequence[T], rng: np.random.Generator) -> T:
    return choices[int(rng.integers(len(choices)))]


def _tag(rng: np.random.Generator) -> Pair | None:
    """One of the tag styles with a punctuation and a space or a new line; none once in len(TAGS) + 1 draws."""
    style = _one((None, *TAGS), rng)
    ending = _one(PUNCTUATION, rng) + _one((" ", "\n"), rng)
    return None if style is None else (style[0], style[1] + ending)


def _format(responses: Sequence[str], rng: np.random.Generator, wordings: Wordings) -> tuple[Pair | None, str]:
    """Marks and the meta-instruction that names them, with p = 1/2; else with p = 1/2 a plain one, else neither."""
    marked, plain = rng.random() < 0.5, rng.random() < 0.5
    for _ in range(MARK_DRAWS if marked else 0):
        marks = _marks(rng)
        if not any(mark in response for mark in marks for response in responses):
            return marks, _one(wordings.marked, rng).format(begin=marks[0], end=marks[1])
    return None, _one(wordings.plain, rng) if plain else ""


def _marks(rng: np.random.Generator) -> Pair:
    (begin, end), (left, right) = _one(MARK_WORDS, rng), _one(MARK_BRACKETS, rng)
    if rng.random() < 0.5:
        begin, end = begin.lower(), end.lower()
    return f"{left}{begin}{right}", f"{left}{end}{right}"


def _said(rule: Rule, shown: Sequence[int], n: int, rng: np.random.Generator, wordings: Wordings) -> str:
    """The meta-instruction of an order or a mask."""
    phrasings = wordings.order if rule.strategy == "order" else wordings.mask
    left, right = _one(SEQUENCE_TAGS, rng)
    listed = shown if rule.strategy == "order" else [i for i in range(n) if i not in shown]
    sequence = _one(SEPARATORS, rng).join(f"{left}{i + 1}{right}" for i in listed)
    return _one(phrasings[rule.method], rng).format(sequence=sequence, count=len(listed))


def _written(rule: Rule, shown: Sequence[int], responses: Sequence[str]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The numbered and marked responses, and the span of each."""
    begin, end = (f"{rule.marks[0]} ", f" {rule.marks[1]}") if rule.marks else ("", "")
    heads = [f"{rule.number(i + 1)}{begin}" for i in shown]
    parts = [f"{head}{responses[i]}{end}" for head, i in zip(heads, shown, strict=True)]
    starts = accumulate((len(part) + len(JOIN) for part in parts[:-1]), initial=0)
    firsts = [start + len(head) for start, head in zip(starts, heads, strict=True)]
    spans = tuple((first, first + len(responses[i])) for first, i in zip(firsts, shown, strict=True))
    return JOIN.join(parts), spans


def parse_mosaic(example: Example) -> list[tuple[int, str]]:
    """Return (number from 1, response) of each response of a mosaic, in the order in which they stand; exact."""
    output = example.target.messages[-1].content
    told = example.metadata
    return [(n, output[a:b]) for n, (a, b) in zip(told["shown_order"], told["spans"], strict=True)]


def parse_output(text: str, rule: Rule, numbers: Sequence[int]) -> list[str | None]:
    """Return the response to each of `numbers` (in the order in which the rule wants them) in a text that a model wrote.

    The text is split at line starts that equal the next expected tag; None where it is missing. White space at the ends and the
    rule's marks are taken off. Raises ConfigError for a rule without numbers, whose text cannot be split.
    """
    if rule.tag is None:
        raise ConfigError(
            "the rule has no number tags, so a model's output cannot be split",
            hint="Read mosaics that were composed with `parse_mosaic`, or take rules with tags for evaluation.",
        )
    found: list[re.Match[str] | None] = []
    at = 0
    for number in numbers:
        tag = re.compile(rf"^{re.escape(rule.number(number).rstrip())}(?=\s|$)", re.MULTILINE)
        match = tag.search(text, at)
        found.append(match)
        at = match.end() if match else at
    starts = [match.start() for match in found if match]
    ends = iter([*starts[1:], len(text)])
    return [_unmarked(text[match.end() : next(ends)], rule) if match else None for match in found]


def _unmarked(text: str, rule: Rule) -> str:
    begin, end = rule.marks or ("", "")
    return text.strip().removeprefix(begin).removesuffix(end).strip()
