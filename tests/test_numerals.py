"""Numbers in text, against Python's own exact arithmetic."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.numerals import Number, as_number, last_number, same_number, stated_number, unify


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        ("18.", "18"),
        ("18.0", "18"),
        ("+7", "7"),
        ("- 3", "-3"),
        ("−5", "-5"),
        ("1,234", "1234"),
        ("12,34,567.5", "1234567.5"),
        ("1\u202f000", "1000"),
        (".5", "1/2"),
        ("-3/4", "-3/4"),
        ("½", "1/2"),
        ("1½", "3/2"),
        ("1 1/2", "3/2"),
        ("5e3", "5000"),
        ("2.5E-3", "1/400"),
        ("3.5 x 10^3", "3500"),
        ("3.5 \\times 10^{3}", "3500"),
        ("3.5×10⁻²", "0.035"),
        ("$18.50", "18.5"),
        ("\\$18", "18"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("€1,000", "1000"),
        ("$18$", "18"),
        ("**42**", "42"),
        ("50%", "50"),
        ("\\frac{3}{4}", "3/4"),
        ("-\\dfrac{1}{2}", "-1/2"),
        ("1\\frac{1}{2}", "3/2"),
        ("\\frac12", "1/2"),
        ("1{,}000", "1000"),
        ("1,\\!000", "1000"),
    ],
)
def test_reads_what_people_write(text, value):
    assert as_number(text) is not None
    assert as_number(text).value == Fraction(value)


@pytest.mark.parametrize(
    "text",
    ["", "abc", "2+3", "3 pm", "1,2", "1/0", "10^3", "0x10", "x2", "1e999999999", "9" * 5000, "1.2.3", "4/5/2024"],
)
def test_what_is_no_single_number_is_none(text):
    assert as_number(text) is None


@given(st.integers(-(10**15), 10**15), st.booleans())
def test_whole_numbers_with_and_without_commas(n, commas):
    assert as_number(f"{n:,}" if commas else str(n)).value == n
    assert str(as_number(f"{n}.00")) == str(n)


@given(st.decimals(-(10**9), 10**9, allow_nan=False, places=6))
def test_decimals_are_exact(d):
    assert as_number(f"{d:f}").value == Fraction(d)
    assert Fraction(str(as_number(f"{d:f}"))) == Fraction(d)


@given(st.integers(-999, 999), st.integers(1, 999))
def test_fractions_are_exact(a, b):
    assert as_number(f"{a}/{b}").value == Fraction(a, b)
    assert as_number(f"\\frac{{{a}}}{{{b}}}").value == Fraction(a, b)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_any_float_as_python_prints_it(x):
    assert float(as_number(repr(x)).value) == x


@given(st.integers(-(10**6), 10**6), st.integers(-(10**6), 10**6))
def test_whole_numbers_are_equal_only_when_they_are(a, b):
    assert same_number(Number(Fraction(a)), Number(Fraction(b)), 0.5) == (a == b)


@given(st.fractions(-100, 100, max_denominator=50), st.fractions(-100, 100, max_denominator=50))
def test_tolerance_is_relative_to_the_gold_value(a, b):
    expected = a == b if a.denominator == b.denominator == 1 else abs(a - b) <= Fraction(0.01) * abs(b)
    assert same_number(Number(a), Number(b), 0.01) == expected


def test_percentages():
    half, fifty, percent = (as_number(t) for t in ("0.5", "50", "50%"))
    assert same_number(percent, half)
    assert same_number(percent, fifty)
    assert same_number(half, percent)
    assert not same_number(half, fifty)
    assert not same_number(percent, as_number("0.5%"))


@given(st.text(max_size=60))
def test_never_raises(text):
    for read in (as_number, last_number, stated_number):
        found = read(text)
        assert found is None or str(found)
    assert isinstance(unify(text), str)


@given(st.text(max_size=40))
def test_one_typography_is_reached_in_one_step(text):
    assert unify(unify(text)) == unify(text) or "^" in unify(text) or " " in unify(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a 3, then 10-3", 3),
        ("from -4 to -7", -7),
        ("5 cm^2", 5),
        ("48/2 = <<48/2=24>>24 clips", 24),
        ("it is 3.5.", 3.5),
        ("he pays $1,200 a month", 1200),
        ("version2 costs 8", 8),
    ],
)
def test_last_number(text, value):
    assert last_number(text).value == Fraction(value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18 dollars", 18),
        ("3 + 4 = 7", 7),
        ("9*2 = $18", 18),
        ("18 (check: 18/2 = 9)", 18),
        ("x = 5", 5),
        ("about $3.50 each", 3.5),
    ],
)
def test_stated_number(text, value):
    assert stated_number(text).value == Fraction(value)
