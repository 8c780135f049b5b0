"""Equations that a solution states: finding them, and checking their arithmetic without `eval`.

A finder maps a text to its equations in order ("2+3=5", "5*4=20"). An evaluator maps an expression to a number, or to
None when it is not evaluable. Source of the rule: RFT (Yuan et al. 2023), section 3.3 and its calculator marks.
"""

import re
from collections.abc import Callable

Finder = Callable[[str], list[str]]
Evaluator = Callable[[str], float | None]

LARGEST_RESULT = 1e15
LARGEST_EXPONENT = 64
DEEPEST_NESTING = 100

_TOKEN = re.compile(r"\s*(?:([0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)|(\*\*|[-+*/%()]))")
_NUMBER = r"(?>[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?)%?"
_OPERAND = rf"\(*[-−]?\$?{_NUMBER}\)*"
_SUM = rf"(?>{_OPERAND}(?:[ \t]*(?:\*\*|[-−+*/×÷x])[ \t]*{_OPERAND})+)"
_GOES_ON = r"[ \t]+[0-9]|[ \t]*(?:[*/×÷x+][ \t]*[\w($]|[-−][ \t]*[0-9($])"
_RESULT = rf"[ \t]*=[ \t]*([-−]?\$?{_NUMBER})(?!{_GOES_ON})"
_INFIX = re.compile(rf"(?<![\w.()])(?!(?<=[0-9] )[0-9])({_SUM})(?:{_RESULT})?")
_TERM_BEFORE = re.compile(r"[\w)%] *(?:\*\*|[-−+*/×÷x]) *\$?$")
_PLAIN = str.maketrans({"−": "-", "×": "*", "x": "*", "÷": "/", "$": None})


def marks(opening: str, closing: str) -> Finder:
    """Return the finder of all texts between two calculator marks, as in "<<1+2=3>>"."""
    if not opening or not closing:
        raise ValueError("both calculator marks need at least one character")

    def find(text: str) -> list[str]:
        found = []
        start = text.find(opening)
        while start >= 0 and (end := text.find(closing, start + len(opening))) >= 0:
            found.append(text[start + len(opening) : end])
            start = text.find(opening, end + len(closing))
        return found

    return find


def infix(text: str) -> list[str]:
    """Return the plain equations "x op y = z" of a text (any number of operands).

    Dollar signs are dropped; the signs × x ÷ − are read as * * / -. The end of a longer expression, such as
    "2 + 3 = 9" in "x + 2 + 3 = 9", is no equation; the parenthesis of an aside "(2+3=5)" does not belong to it.
    """
    found = []
    for match in filter(lambda m: m[2], _INFIX.finditer(text)):
        left = match[1].removeprefix("(" * max(0, match[1].count("(") - match[1].count(")")))
        is_tail = _TERM_BEFORE.search(text, max(0, match.start() - 20), match.start())
        if left.count("(") == left.count(")") and not is_tail:
            found.append(f"{left}={match[2]}".translate(_PLAIN))
    return found


def marks_or_infix(text: str) -> list[str]:
    """Return the equations between << and >>; in a text without such marks, the plain ones."""
    return GSM8K_MARKS(text) or infix(text)


GSM8K_MARKS = marks("<<", ">>")
FINDERS: dict[str, Finder] = {"marks": GSM8K_MARKS, "infix": infix, "auto": marks_or_infix}


def reasoning_key(text: str, equations: Finder = GSM8K_MARKS) -> str:
    """Return the ordered equations of a text, spaces removed, joined by "|"; "" when it states none."""
    return "|".join("".join(equation.split()) for equation in equations(text))


def safe_arithmetic(text: str) -> float | None:
    """Return the value of an arithmetic expression, or None when it is not evaluable.

    Numbers (commas dropped), + - * / **, % as percent, unary minus and parentheses, with Python's precedence. Not evaluable:
    any other token, division by zero, an exponent above 64, any result above 1e15 (both in absolute value), a power
    that is not real, nesting deeper than 100.
    """
    tokens = _tokens(text)
    if tokens is None:
        return None
    try:
        return _Parser(tokens).value()
    except (ArithmeticError, ValueError):
        return None


def modular(modulus: int) -> Evaluator:
    """Return the evaluator of integer arithmetic modulo `modulus`; a value that is not whole is not evaluable."""
    if modulus < 2:
        raise ValueError(f"modulus must be at least 2, not {modulus}")

    def evaluate(text: str) -> float | None:
        value = safe_arithmetic(text)
        return None if value is None or value != int(value) else float(int(value) % modulus)

    return evaluate


def check_equations(
    text: str, tol: float = 1e-3, equations: Finder = GSM8K_MARKS, evaluate: Evaluator = safe_arithmetic
) -> bool:
    """Return whether every equation stated in `text` is true: |evaluate(left) - evaluate(right)| < tol.

    The left side ends at the first "=". An equation without "=" or with a side that is not evaluable fails; a text
    without equations passes.
    """
    for equation in equations(text):
        left, equals, right = equation.partition("=")
        a, b = evaluate(left), evaluate(right)
        if not equals or a is None or b is None or not abs(a - b) < tol:
            return False
    return True


def _tokens(text: str) -> list[str | float] | None:
    """Return numbers and operators, or None when the text holds anything else or nothing."""
    tokens: list[str | float] = []
    at, text = 0, text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            return None
        tokens.append(float(match[1].replace(",", "")) if match[1] else match[2])
        at = match.end()
    return tokens or None


class _Parser:
    """Recursive descent over tokens: sum > product > unary minus > power > percent > number or parenthesis."""

    def __init__(self, tokens: list[str | float]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def value(self) -> float:
        result = self._sum()
        if self.at < len(self.tokens):
            raise ValueError("something is left over")
        return result

    def _sum(self) -> float:
        value = self._product()
        while (operator := self._take("+", "-")) is not None:
            right = self._product()
            value = _bounded(value + right if operator == "+" else value - right)
        return value

    def _product(self) -> float:
        value = self._unary()
        while (operator := self._take("*", "/")) is not None:
            right = self._unary()
            value = _bounded(value * right if operator == "*" else value / right)
        return value

    def _unary(self) -> float:
        self.depth += 1
        if self.depth > DEEPEST_NESTING:
            raise ValueError("nested too deeply")
        value = -self._unary() if self._take("-") else self._power()
        self.depth -= 1
        return value

    def _power(self) -> float:
        base = self._percent()
        return _power(base, self._unary()) if self._take("**") else base

    def _percent(self) -> float:
        value = self._primary()
        while self._take("%"):
            value /= 100
        return value

    def _primary(self) -> float:
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise ValueError("a parenthesis is not closed")
            return value
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if not isinstance(token, float):
            raise ValueError("a number is missing")
        self.at += 1
        return _bounded(token)

    def _take(self, *operators: str) -> str | None:
        token = self.tokens[self.at] if self.at < len(self.tokens) else None
        if isinstance(token, str) and token in operators:
            self.at += 1
            return token
        return None


def _power(base: float, exponent: float) -> float:
    if abs(exponent) > LARGEST_EXPONENT or (base < 0 and exponent != int(exponent)):
        raise ValueError("the power is too large or not real")
    return _bounded(base**exponent)


def _bounded(value: float) -> float:
    if not abs(value) <= LARGEST_RESULT:
        raise OverflowError("the result is too large")
    return value
