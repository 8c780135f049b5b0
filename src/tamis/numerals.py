"""Numbers written in text: read exactly (as fractions), compared with a tolerance, never evaluated as code."""

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, Inexact, localcontext
from fractions import Fraction

_LONGEST_NUMBER = 400
_LARGEST_EXPONENT = 1000


@dataclass(frozen=True, slots=True)
class Number:
    """A number read from text, exactly; `percent` says that it was written with a percent sign (value 50 for "50%")."""

    value: Fraction
    percent: bool = False

    def __str__(self) -> str:
        if self.value.denominator == 1:
            return str(self.value.numerator)
        with localcontext(prec=60) as context:
            decimal = Decimal(self.value.numerator) / Decimal(self.value.denominator)
            return str(self.value) if context.flags[Inexact] else format(decimal.normalize(), "f")


_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SIGNS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "⁄": "/", "∕": "/", "’": "'", "‘": "'", "“": '"', "”": '"'})


def unify(text: str) -> str:
    """Return the text in one typography: NFKC, plain minus signs, slashes and quotes, `x²` as `x^2`, `1½` as `1 1/2`."""
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)[\u00a0\u202f\u2009](?=\d{3})", "", text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda m: "^" + m[0].translate(_SUPERSCRIPT), text)
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


_LATEX = (
    (re.compile(r"\\[dt]?frac\s*\{\s*([-+]?[\d.,]+)\s*\}\s*\{\s*([-+]?[\d.,]+)\s*\}"), r" \1/\2 "),
    (re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)"), r" \1/\2 "),
    (re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,:; ])(?=\d{3})"), ","),
    (re.compile(r"\\(?:text|mathrm|mbox)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\times|\\cdot"), "×"),
    (re.compile(r"\^\s*\{\s*([-+]?\d+)\s*\}"), r"^\1"),
    (re.compile(r"\\left|\\right|\\[!,:; ]"), ""),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"([-+])\s+(?=\d+/\d)"), r"\1"),
)
_DIGITS = r"(?>\d{1,3}(?:,\d{2,3})*,\d{3}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"""(?: (?<![\w)\]}}.%^$]) (?P<sign>[-+]) (?:\s?[$€£¥]\s?)? | [$€£¥]\s?(?P<inner>[-+])? | (?<![\w.^]) )
    (?: (?P<whole>\d+)\s+(?P<above>\d+)/(?P<below>\d+)(?!\s*/)
      | (?P<body>{_DIGITS})
        (?: [eE](?P<exponent>[-+]?\d+)(?!\w) | \s*[×x*]\s*10\s*(?:\^|\*\*)\s*\(?(?P<power>[-+]?\d+)\)? )?
        (?: \s*/\s*(?P<divisor>[-+]?{_DIGITS})(?!\s*/) )? )
    (?!\s*\^) (?:\s*(?P<percent>%|percent\b))?""",
    re.VERBOSE,
)


def _typeset(text: str) -> str:
    text = unify(text)
    if "\\" in text or "{" in text:
        for pattern, replacement in _LATEX:
            text = pattern.sub(replacement, text)
    return text


def _value(match: re.Match[str]) -> Number | None:
    if len(match[0]) > _LONGEST_NUMBER:
        return None
    exponent = int(match["exponent"] or match["power"] or 0)
    if abs(exponent) > _LARGEST_EXPONENT:
        return None
    if match["whole"]:
        below = int(match["below"])
        value = Fraction(int(match["whole"])) + Fraction(int(match["above"]), below) if below else None
    else:
        value = Fraction(match["body"].replace(",", "")) * Fraction(10) ** exponent
        if match["divisor"]:
            divisor = Fraction(match["divisor"].replace(",", ""))
            value = value / divisor if divisor else None
    if value is None:
        return None
    negative = "-" in (match["sign"] or match["inner"] or "")
    return Number(-value if negative else value, bool(match["percent"]))


def as_number(text: str) -> Number | None:
    """Return the number that the whole text is ("1,234", "$18.50", "-3/4", "1 1/2", "5e3", "50%"), or None."""
    bare = _typeset(text).strip().strip("*_`").removesuffix(".").strip()
    if len(bare) > 1 and bare[0] == bare[-1] == "$":
        bare = bare[1:-1].strip()
    match = _NUMBER.fullmatch(re.sub(r"^([-+])\s+", r"\1", bare))
    return _value(match) if match else None


def stated_number(segment: str) -> Number | None:
    """Return the number of a short answer: the first, or what follows the last "=" where the first begins a sum."""
    if whole := as_number(segment):
        return whole
    segment = _typeset(segment)
    match = _NUMBER.search(segment)
    if match and "=" in segment and re.match(r"\s*[-+*/×÷=]", segment[match.end() :]):
        match = _NUMBER.search(segment, segment.rindex("=") + 1) or match
    return _value(match) if match else None


def last_number(text: str) -> Number | None:
    """Return the last number of a text, or None."""
    matches = list(_NUMBER.finditer(_typeset(text)))
    return _value(matches[-1]) if matches else None


def same_number(answer: Number, gold: Number, tolerance: float = 1e-6) -> bool:
    """Whether two numbers are equal: whole numbers exactly, others within `tolerance` of the gold value (relative).

    A percentage equals its number and its fraction ("50%" is 50 and 0.5), but two percentages compare as written.
    """
    limit = Fraction(tolerance)
    one_sided = answer.percent != gold.percent
    answers = [answer.value] + ([answer.value / 100] if one_sided and answer.percent else [])
    golds = [gold.value] + ([gold.value / 100] if one_sided and gold.percent else [])
    return any(_close(a, g, limit) for a in answers for g in golds)


def _close(a: Fraction, b: Fraction, limit: Fraction) -> bool:
    if a.denominator == b.denominator == 1:
        return a == b
    return abs(a - b) <= limit * abs(b)
