"""Final answers: where a text states one, and whether it is the gold one.

Pure functions on strings, usable alone. Nothing here runs text as code. A text in which no answer is found is never
scored 0 or 1: it has the outcome "unparseable_answer", and a gold text without one "unparseable_gold".

Where an answer is looked for, in this order: the first `#### n` line with a number (GSM8K, Cobbe et al. 2021, official
code; the last `####` line where none holds a number), the last `\\boxed{...}` (MATH, Hendrycks et al. 2021), the last
"answer is ..." or "Answer: ...", and what the kind falls back on (the last number, the option letter, the whole text).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tamis import mathcheck
from tamis.numerals import Number, as_number, last_number, same_number, stated_number, unify

Kind = Literal["auto", "exact", "numeric", "math", "choice", "regex"]
Label = Literal["correct", "wrong", "unparseable_answer", "unparseable_gold", "no_gold"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of comparing one text with its gold answers: a label and the two answers that were compared."""

    label: Label
    extracted: str = ""
    gold: str = ""

    @property
    def score(self) -> float | None:
        """1.0 for correct, 0.0 for wrong, None where there was nothing to compare."""
        return {"correct": 1.0, "wrong": 0.0}.get(self.label)


def normalise(text: str) -> str:
    """Return the text as "exact" compares it: one typography, casefolded, spaces collapsed, bare of wrapping marks."""
    text = re.sub(r"\s+", " ", unify(text)).strip().casefold()
    stripped = text.strip("*_`\"' \t").rstrip(".").strip("*_`\"' \t")
    return stripped or text


def number_in(text: str) -> Number | None:
    """Return the final number a text states: the marked one, else the last one; None where there is none."""
    segment = marked(text)
    if segment is not None and (found := stated_number(segment)):
        return found
    return last_number(text)


_HASHES = re.compile(r"####[ \t]*(\S[^\n]*)")
_STATED = re.compile(
    r"""(?i)\banswer (?:\s+(?:to|for)\b[^.:\n]{0,80}?)? \s*+(?:\([^)\n]*+\)\s*+)? [*_]*+ \s*+ (?:\bis\b|\bare\b|[:=])
    [\s:*_]*+ (\S[^\n]*)""",
    re.VERBOSE,
)


def marked(text: str) -> str | None:
    """Return the answer that a text marks as final (`#### n`, `\\boxed{n}`, "answer is n", "Answer: n"), or None."""
    hashes = [m.strip() for m in _HASHES.findall(text)]
    if hashes:
        return next((h for h in hashes if re.match(r"[-+$€£\d.\\]", h) and stated_number(h)), hashes[-1])
    box = boxed(text)
    if box is not None:
        return box
    stated = [_sentence(s) for s in _STATED.findall(text)]
    return next((s for s in reversed(stated) if s), None)


def statements(text: str) -> list[str]:
    """Return what could be the answer, best first: the marked one, all text after the last mark, the whole text.

    For scorers that read answers of several lines (boards, tables).
    """
    found = [marked(text), text.strip()]
    marks = list(_STATED.finditer(text))
    if marks:
        found.insert(1, text[marks[-1].start(1) :].strip())
    return list(dict.fromkeys(f for f in found if f))


def _sentence(line: str) -> str:
    line = re.split(r"(?<=[^\s.])(?<!\b[A-Z])\.(?:\s+(?=[A-Z\\(])|\s*$)", line, maxsplit=1)[0]
    return line.strip().strip("*_`").strip()


def boxed(text: str) -> str | None:
    """Return the content of the last complete, non-empty `\\boxed{...}` (braces matched), or None."""
    starts = {m.end() for m in re.finditer(r"\\f?boxed\s*\{", text)}
    still_open: list[int] = []
    found: dict[int, str] = {}
    for brace in re.finditer(r"[{}]", text) if starts else ():
        if brace[0] == "{":
            still_open.append(brace.end())
        elif still_open:
            start = still_open.pop()
            if start in starts and (content := text[start : brace.start()].strip()):
                found[start] = content
    return found[max(found)] if found else None


def final_text(gold: str) -> str:
    """Return the answer inside a gold text: after `####`, in `\\boxed{}`, stated in the last line, or the whole text."""
    if "####" in gold or boxed(gold) is not None:
        return marked(gold) or gold.strip()
    last = gold.strip().split("\n")[-1]
    return marked(last) or gold.strip()


_WORDS = re.compile(r"\\?[A-Za-z]+")
_FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "log",
        "ln",
        "exp",
        "sqrt",
        "pi",
        "arcsin",
        "arccos",
        "arctan",
        "sinh",
        "cosh",
        "tanh",
    ]
)


def _mathematical(text: str) -> bool:
    if "\\" in text or "^" in text:
        return True
    words = _WORDS.findall(text)
    plain = all(len(w) == 1 or w in _FUNCTIONS for w in words)
    return bool(words) and plain and bool(re.search(r"[\d+*/=()]", text)) and not re.search(r"[:;?!\"']", text)


def kind_of(gold: str, options: Mapping[str, str] | None = None) -> Literal["exact", "numeric", "math", "choice"]:
    """Return how answers to a gold text are compared.

    numeric: a number after `####` or a plain number; choice: one of the `options` letters; math: LaTeX or a formula;
    else exact (normalised text).
    """
    final = final_text(gold)
    if as_number(final) or ("####" in gold and stated_number(final)):
        return "numeric"
    if options and _letter(final, options):
        return "choice"
    return "math" if _mathematical(final) else "exact"


def options_in(text: str) -> dict[str, str]:
    """Return the lettered options a prompt lists, one a line ("A. ...", "(B) ..."), empty unless A and B are there."""
    lines = re.findall(r"(?m)^[ \t]*\(?([A-J])[).:][ \t]+(\S.*)$", text)
    found = {letter: option.strip() for letter, option in lines}
    return found if {"A", "B"} <= found.keys() else {}


def _letter(text: str, options: Mapping[str, str]) -> str | None:
    match = re.fullmatch(r"[\W_]*([A-Za-z])[\W_]*", text)
    letter = match[1].upper() if match else ""
    return letter if letter in options else None


def choice_in(text: str, options: Mapping[str, str]) -> str | None:
    """Return the letter of the option a text settles on, by letter or by the option's own text; None where unclear."""
    segment = marked(text)
    if segment is not None and (found := _chosen(segment, options)):
        return found
    if found := _letter(text, options) or _by_text(text, options):
        return found
    letters = re.findall(r"\(([A-J])\)|\b[Oo]ption\s+([A-J])\b|\b[Cc]hoice\s+([A-J])\b", text)
    letters += re.findall(r"^\s*([A-J])[).:](?:\s)()()", text)
    named = {next(filter(None, groups)) for groups in letters} & options.keys()
    return named.pop() if len(named) == 1 else None


def _chosen(segment: str, options: Mapping[str, str]) -> str | None:
    if found := _letter(segment, options) or _by_text(segment, options):
        return found
    start = re.match(
        r"[\W_]*(?:[Oo]ption|[Cc]hoice)?\s*\(?([A-J])(?:[).:,]|\s*$|\s+(?=[-(]))\s*(.*)", segment, re.DOTALL
    )
    if not start or start[1] not in options:
        return None
    rivals = set(re.findall(r"(?:\b(?:or|and)\s+|[,/]\s*)\(?([A-J])\b", segment)) - {start[1]}
    return None if rivals & options.keys() else start[1]


def _by_text(text: str, options: Mapping[str, str]) -> str | None:
    said = normalise(text)
    matches = [letter for letter, option in options.items() if option and normalise(option) == said]
    return matches[0] if len(matches) == 1 else None


def last_match(pattern: str, text: str) -> str | None:
    """Return group 1 (the whole match where there is no group) of the pattern's last match in the text, or None."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    found = matches[-1]
    return found[1] if found.re.groups and found[1] is not None else found[0]


def extract(
    text: str, kind: Kind = "auto", *, options: Mapping[str, str] | None = None, pattern: str = ""
) -> str | None:
    """Return the final answer of a text in a form that can be compared and counted (for votes), or None.

    numeric: "18" for "$18.00"; choice: the letter; regex: the last match; math: the marked expression; exact: normalised
    text. "auto" is numeric where the marked answer (without one, the text) holds a number, else exact.
    """
    if kind == "numeric":
        number = number_in(text)
        return None if number is None else str(number)
    if kind == "choice":
        return choice_in(text, options or {})
    if kind == "regex":
        return last_match(pattern, text)
    if kind == "math":
        return _expression(text)
    if kind == "auto" and (number := stated_number(marked(text) or "") or as_number(text)):
        return str(number)
    if kind == "auto" and marked(text) is None:
        return extract(text, "numeric") or normalise(text) or None
    return normalise(marked(text) or text) or None


def final_answer(text: str) -> str | None:
    """Return the final answer of a text whose kind is not known: `extract(text, "auto")`."""
    return extract(text, "auto")


_INLINE = re.compile(r"\$\$(.+?)\$\$|\$([^$]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)


def _expression(text: str) -> str | None:
    segment = marked(text)
    inline = [next(filter(None, groups)).strip() for groups in _INLINE.findall(segment or text)]
    if segment is not None:
        return inline[0] if inline else segment
    if inline:
        return inline[-1]
    bare = text.strip()
    if "\n" not in bare and (as_number(bare) or _mathematical(bare)):
        return bare
    number = number_in(text)
    if number is not None:
        return str(number)
    return bare if bare and "\n" not in bare and len(bare.split()) <= 4 else None


def _same_expression(answer: str, gold: str, tolerance: float) -> Label:
    got, want = as_number(answer), as_number(gold)
    if got and want:
        return "correct" if same_number(got, want, tolerance) else "wrong"
    if normalise(answer) == normalise(gold):
        return "correct"
    if any(re.fullmatch(r"[^\W\d_]{3,}(?:[\s'-]+[^\W\d_]+)*", t.strip()) for t in (answer, gold)):
        return "wrong"
    return mathcheck.compare(gold, answer)


def _outcome(got: str | None, want: str | None, equal: Callable[[], bool | Label]) -> Outcome:
    if want is None:
        return Outcome("unparseable_gold", got or "", "")
    if got is None:
        return Outcome("unparseable_answer", "", want)
    found = equal()
    return Outcome(found if isinstance(found, str) else "correct" if found else "wrong", got, want)


def _check_numeric(text: str, gold: str, tolerance: float) -> Outcome:
    got, want = number_in(text), number_in(gold)
    return _outcome(
        None if got is None else str(got),
        None if want is None else str(want),
        lambda: got is not None and want is not None and same_number(got, want, tolerance),
    )


def _check_exact(text: str, gold: str) -> Outcome:
    said = statements(text)
    if marked(text) is None:
        said.append(text.strip().split("\n")[-1])
    want = normalise(final_text(gold)) or None
    hit = next((s for s in said if normalise(s) == want), said[0])
    return _outcome(normalise(hit) or None, want, lambda: normalise(hit) == want)


def _check_regex(text: str, gold: str, pattern: str, tolerance: float) -> Outcome:
    got = last_match(pattern, text)
    want = last_match(pattern, gold)
    want = (gold.strip() or None) if want is None else want

    def equal() -> bool:
        a, b = as_number(got or ""), as_number(want or "")
        return same_number(a, b, tolerance) if a and b else normalise(got or "") == normalise(want or "")

    return _outcome(got, want, equal)


def check(
    text: str,
    gold: str,
    kind: Kind = "auto",
    *,
    options: Mapping[str, str] | None = None,
    pattern: str = "",
    tolerance: float = 1e-6,
) -> Outcome:
    """Compare the final answer of a text with a gold answer or solution.

    `options` maps letters to texts (choice), `pattern` is a regular expression whose last match is the answer (regex; its
    group 1 where it has one; the gold text is taken whole where it does not match), `tolerance` is relative.
    """
    options = options or {}
    kind = kind_of(gold, options) if kind == "auto" else kind
    if kind == "numeric":
        return _check_numeric(text, gold, tolerance)
    if kind == "choice":
        want = choice_in(gold, options)
        got = choice_in(text, options)
        return _outcome(got, want, lambda: got == want)
    if kind == "regex":
        return _check_regex(text, gold, pattern, tolerance)
    if kind == "math":
        wanted, found = final_text(gold), _expression(text)
        return _outcome(found, wanted or None, lambda: _same_expression(found or "", wanted, tolerance))
    return _check_exact(text, gold)


_ORDER: tuple[Label, ...] = ("correct", "wrong", "unparseable_answer", "unparseable_gold", "no_gold")


def check_any(
    text: str,
    golds: Sequence[str],
    kind: Kind = "auto",
    *,
    options: Mapping[str, str] | None = None,
    pattern: str = "",
    tolerance: float = 1e-6,
) -> Outcome:
    """Compare a text with several gold answers: correct when any matches, "no_gold" when there is none."""
    outcomes = [check(text, g, kind, options=options, pattern=pattern, tolerance=tolerance) for g in golds]
    return min(outcomes, key=lambda o: _ORDER.index(o.label), default=Outcome("no_gold"))
