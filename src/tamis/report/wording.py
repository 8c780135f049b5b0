"""Figures and texts as the report prints them: numbers, p-values, cut texts, and what a comparison says in plain words."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from tamis.report.charts import plain

ALPHA = 0.05
HEAD, TAIL = 900, 400
TESTS = {"mcnemar": "exact McNemar test", "permutation": "paired permutation test"}
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


@dataclass(frozen=True)
class Finding:
    """What a metric's before/after says: a title of a few words, one sentence with every figure, and a class."""

    kind: Literal["better", "worse", "same", "untested", "single", "nothing"]
    title: str
    sentence: str


def count(n: int, noun: str, plural: str = "") -> str:
    """Return "1 prompt", "1,600 samples"."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def seconds(value: float) -> str:
    """Return a duration to read: "0.4 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def visible(text: str) -> str:
    """Return `text` with control, direction-changing and lone surrogate characters written out as ⟨U+202E⟩."""
    return _HIDDEN.sub(lambda m: f"⟨U+{ord(m[0]):04X}⟩", text.replace("\r\n", "\n"))


def cut(text: str, head: int = HEAD, tail: int = TAIL) -> str:
    """Return `text`, its middle replaced by a note when it is longer than `head + tail` characters."""
    left_out = len(text) - head - tail
    if left_out <= 80:
        return text
    return f"{text[:head]}\n[… {left_out:,} characters left out …]\n{text[-tail:]}"


def is_share(row: Mapping[str, Any]) -> bool:
    """Whether a metric is a share to print in percent: no other unit, and every figure within [0, 1]."""
    sides = [row[side] for side in ("before", "after") if row.get(side)]
    values = [side.get(k) for side in sides for k in ("value", "low", "high")]
    unit_fits = str(row.get("unit") or "").lower() in ("", "share", "fraction", "rate", "proportion")
    return unit_fits and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)


def figure(value: Any, share: bool) -> str:
    """Return a metric's value: "44.5%" for shares, else four significant digits, "–" where there is none."""
    if not finite(value):
        return "–"
    return f"{100 * value:.1f}%" if share else plain(value)


def change(value: Any, share: bool, unit: bool = True) -> str:
    """Return a signed difference, in percentage points for shares ("+13.5 points")."""
    if not finite(value):
        return "–"
    text = f"{100 * value:+.1f}" if share else f"{value:+.4g}"
    text = text.replace("-", "−")
    return f"{text} points" if share and unit else text


def paired_change(row: Mapping[str, Any]) -> str:
    """Return a row's paired difference with its unit: "+13.5 points", "+0.1421 nats per token"."""
    difference = row.get("difference") or {}
    text = change(difference.get("value"), is_share(row))
    unit = difference.get("unit")
    return f"{text} {unit}" if unit and finite(difference.get("value")) else text


def finite(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def p_value(p: Any) -> str:
    """Return "p < 0.001" or "p = 0.013", with as many digits as it takes to stay on its side of 0.05."""
    if not finite(p):
        return "no p-value"
    if p < 0.001:
        return "p < 0.001"
    digits = next((d for d in range(3, 12) if (round(p, d) < ALPHA) == (p < ALPHA)), 12)
    return f"p = {p:.{digits}f}"


def name_of_test(name: Any) -> str:
    """Return the test's name as a reader knows it."""
    return TESTS.get(str(name), str(name or "").replace("_", " "))


def metric_name(row: Mapping[str, Any]) -> str:
    """Return the metric's name with underscores as spaces."""
    return str(row.get("name") or row.get("evaluator") or "metric").replace("_", " ")


def findings(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what stages found beside their records: the notes "finding", each with a `sentence` and perhaps a `chart`."""
    notes = [stage.get("notes") or {} for stage in manifest["stages"]]
    return [n["finding"] for n in notes if n.get("finding")]


def finding(row: Mapping[str, Any]) -> Finding:
    """Say what a metric's row shows, no more than its interval and p-value do.

    A change is called one only where the paired test has p < 0.05; an interval that disagrees with the test is named.
    """
    name, share = metric_name(row), is_share(row)
    before, after, difference = row.get("before") or {}, row.get("after") or {}, row.get("difference") or {}
    sides = {"before": before, "after": after}
    known = {side: figure(data.get("value"), share) for side, data in sides.items() if finite(data.get("value"))}
    if len(known) < 2:
        return _single(name, known, sides)
    span = (
        f"{known['before']} before and {known['after']} after tuning, on {count(after.get('n', 0), 'held-out prompt')}"
    )
    if not finite(difference.get("value")):
        return Finding(
            "untested",
            f"{_upper(name)}: {known['before']}, then {known['after']}",
            f"{_upper(name)} was {span}. No paired comparison was made.",
        )
    size = (
        f"The paired difference is {paired_change(row)}, 95% interval "
        f"{change(difference.get('low'), share, False)} to {change(difference.get('high'), share, False)}"
    )
    kind, title = _direction(row, name, known)
    tested = (
        f" ({p_value(difference.get('p_value'))}, {name_of_test(difference.get('test'))})."
        if difference.get("test")
        else "."
    )
    return Finding(kind, title, f"{_upper(name)} was {span}. {size}{tested}{_doubt(difference)}")


def _upper(name: str) -> str:
    return name[:1].upper() + name[1:]


def _single(name: str, known: Mapping[str, str], sides: Mapping[str, Mapping[str, Any]]) -> Finding:
    if not known:
        return Finding("nothing", f"{_upper(name)} has no value", f"{_upper(name)} could not be measured.")
    ((side, value),) = known.items()
    where = f"{side} tuning, on {count(sides[side].get('n', 0), 'held-out prompt')}"
    other = "after" if side == "before" else "before"
    return Finding(
        "single",
        f"{_upper(name)} {side} tuning: {value}",
        f"{_upper(name)} was {value} {where}. It was not measured {other} tuning.",
    )


def _direction(row: Mapping[str, Any], name: str, known: Mapping[str, str]) -> tuple[Any, str]:
    difference = row["difference"]
    p = difference.get("p_value")
    if finite(p) and p >= ALPHA:
        return "same", f"No significant change in {name}"
    if not finite(p):
        return "untested", f"{_upper(name)}: {known['before']}, then {known['after']}"
    rose = difference["value"] > 0
    better = rose == bool(row.get("higher_is_better", True))
    title = f"{_upper(name)} {'rose' if rose else 'fell'} from {known['before']} to {known['after']}"
    return ("better" if better else "worse"), title


def _doubt(difference: Mapping[str, Any]) -> str:
    low, high, p = difference.get("low"), difference.get("high"), difference.get("p_value")
    if not (finite(low) and finite(high) and finite(p)):
        return ""
    holds_zero = low <= 0 <= high
    if p < ALPHA and holds_zero:
        return " The interval includes zero although the test rejects: read it as a borderline result."
    if p >= ALPHA and not holds_zero:
        return " The interval excludes zero although the test does not reject: read it as a borderline result."
    if p >= ALPHA:
        return " The data are compatible with no change."
    return ""
