"""The report's first section: what was done, and what the figures before and after tuning say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from tamis.report import charts, wording
from tamis.report.charts import Interval
from tamis.report.material import Material
from tamis.report.wording import count


def headline(m: Material) -> dict[str, Any]:
    """What was done, what the first metric says, every metric with its intervals, and what the figures do not cover."""
    findings = [wording.finding(row) for row in m.rows]
    return {
        "title": findings[0].title if findings else f"{m.recipe.get('name', m.name)}: nothing measured yet",
        "kind": findings[0].kind if findings else "nothing",
        "lead": done(m),
        "told": [_told(f) for f in wording.findings(m.manifest)],
        "sentence": findings[0].sentence if findings else "",
        "others": [f.title for f in findings[1:]],
        "rows": [_metric_row(row) for row in m.rows],
        "big": _metric_row(m.rows[0]) if m.rows else None,
        "sides": _plots(m.rows, _sides, reference=None),
        "changes": _plots(m.rows, _change, reference=0.0),
        "caveat": _caveat(m),
        **_moves(m.rows),
    }


def _told(finding: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage found: its sentence and, where it brought one, its chart of shares against a cost."""
    chart = finding.get("chart") or {"title": "", "x_label": "", "lines": []}
    lines = chart["lines"]
    draw = partial(charts.line_chart, lines, title=chart["title"], x_label=chart["x_label"], from_zero=True)
    form = _axis(share=True, difference=False)
    return {
        "sentence": finding["sentence"],
        "title": chart["title"],
        "chart": charts.responsive(lambda width: draw(form=form, width=width)),
        "legend": [(line[0], f"s{i % 4}", "") for i, line in enumerate(lines)],
    }


def done(m: Material) -> str:
    """Return one sentence on what the run did, from its counts."""
    rounds = int(m.recipe.get("loop", 1) or 1)
    suffix = f", in {rounds} rounds" if rounds > 1 else ""
    recipe = m.recipe.get("name", m.name)
    source = f"{count(len(m.completions), 'sample')} of {count(m.train_prompts, 'prompt')}"
    if m.tuned:
        return f"{m.model} was tuned on {count(len(m.examples), 'example')}, made from {source} by the recipe {recipe}{suffix}."
    if m.completions:
        return f"{m.model} gave {source} under the recipe {recipe}{suffix}. No model has been tuned."
    if m.prompts:
        return f"{count(len(m.prompts), 'prompt')} were read for the recipe {recipe}. Nothing has been sampled from {m.model}."
    return f"The recipe {recipe} has not produced any record."


def _caveat(m: Material) -> str:
    parts = []
    if m.rows and m.tuned:
        parts.append(
            "The intervals cover the choice of held-out prompts. They do not cover the seed: this is one training run, "
            "and another seed can give another figure."
        )
    tests = sum(bool((row.get("difference") or {}).get("test")) for row in m.rows)
    if tests > 1:
        parts.append(f"The {tests} p-values are not corrected for testing {tests} metrics.")
    return " ".join(parts)


def _metric_row(row: Mapping[str, Any]) -> dict[str, Any]:
    share, difference = wording.is_share(row), row.get("difference") or {}
    sides = {side: row.get(side) or {} for side in ("before", "after")}
    found = wording.finding(row)
    return {
        "name": wording.metric_name(row),
        "unit": "" if share else row.get("unit", ""),
        "better": "higher is better" if row.get("higher_is_better", True) else "lower is better",
        "kind": found.kind,
        "title": found.title,
        "n": max((s.get("n") or 0 for s in sides.values()), default=0),
        **{side: wording.figure(data.get("value"), share) for side, data in sides.items()},
        **{f"{side}_span": _span(data, partial(wording.figure, share=share)) for side, data in sides.items()},
        "change": wording.paired_change(row),
        "change_span": _span(difference, partial(wording.change, share=share, unit=False)),
        "p": wording.p_value(difference.get("p_value")) if difference.get("test") else "",
        "test": wording.name_of_test(difference.get("test")),
        "notes": _notes(sides),
    }


def _notes(sides: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return (note, "3 before, 5 after") for every note of either side, in words."""
    found: dict[str, list[str]] = {}
    for side, data in sides.items():
        for key, value in (data.get("notes") or {}).items():
            text = charts.plain(value) if wording.finite(value) else str(value)
            found.setdefault(key.replace("_", " "), []).append(f"{text} {side}")
    return [(key, ", ".join(texts)) for key, texts in found.items()]


def _moves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the prompts of the first tested metric moved, as one bar with its legend."""
    row = next((r for r in rows if (r.get("difference") or {}).get("test")), None)
    if row is None:
        return {"moves": "", "moves_title": "", "moves_legend": []}
    found = row["difference"]
    parts = [
        ("got better", len(found.get("gained") or ()), "after"),
        ("stayed right", int(found.get("kept_right") or 0), "calm"),
        ("stayed wrong", int(found.get("kept_wrong") or 0), "quiet"),
        ("got worse", len(found.get("lost") or ()), "bad"),
    ]
    title = f"Held-out prompts by how their {wording.metric_name(row)} moved"
    legend = [(name, tone, f"{n:,}") for name, n, tone in parts]
    return {"moves": charts.share_bar(parts, title=title), "moves_title": title, "moves_legend": legend}


def _span(data: Mapping[str, Any], form: Any) -> str:
    low, high = data.get("low"), data.get("high")
    return f"{form(low)} to {form(high)}" if wording.finite(low) and wording.finite(high) else ""


def _plots(rows: Sequence[Mapping[str, Any]], intervals: Any, reference: float | None) -> list[str]:
    """One plot for all shares together (they have one axis), one for each other metric."""
    shares = [row for row in rows if wording.is_share(row)]
    groups = ([shares] if shares else []) + [[row] for row in rows if not wording.is_share(row)]
    plots = []
    for group in groups:
        share = wording.is_share(group[0])
        drawn = [(_group_label(row, reference is not None), intervals(row, share)) for row in group]
        plot = partial(
            charts.interval_plot,
            [(label, found) for label, found in drawn if found],
            title="Before and after tuning" if reference is None else "Difference, after minus before",
            form=_axis(share, difference=reference is not None),
            bounds=(0.0, 1.0) if share and reference is None else (-np.inf, np.inf),
            reference=reference,
        )
        plots.append(charts.responsive(lambda width, plot=plot: plot(width=width)))  # type: ignore[misc]
    return [p for p in plots if p]


def _axis(share: bool, difference: bool) -> Callable[[float], str]:
    if not share:
        return charts.plain
    return lambda value: charts.plain(round(100 * value, 6)) + ("" if difference else "%")


def _group_label(row: Mapping[str, Any], difference: bool) -> str:
    share = wording.is_share(row)
    own = (row.get("difference") or {}).get("unit") if difference else ""
    unit = own or (("percentage points" if difference else "") if share else str(row.get("unit") or ""))
    note = "" if row.get("higher_is_better", True) else "lower is better"
    extra = ", ".join(x for x in (unit, note) if x)
    return wording.metric_name(row) + (f" ({extra})" if extra else "")


def _sides(row: Mapping[str, Any], share: bool) -> list[Interval]:
    found = [(side, row.get(side) or {}) for side in ("before", "after")]
    return [
        _interval(side, data, partial(wording.figure, share=share), side) for side, data in found if _drawable(data)
    ]


def _change(row: Mapping[str, Any], share: bool) -> list[Interval]:
    difference = row.get("difference") or {}
    tone = wording.finding(row).kind
    form = partial(wording.change, share=share, unit=False)
    return [_interval("change", difference, form, tone)] if _drawable(difference) else []


def _drawable(data: Mapping[str, Any]) -> bool:
    return all(wording.finite(data.get(k)) for k in ("value", "low", "high"))


def _interval(name: str, data: Mapping[str, Any], form: Any, tone: str) -> Interval:
    text = f"{form(data['value'])} ({form(data['low'])} to {form(data['high'])})"
    return Interval(name, data["value"], data["low"], data["high"], text, tone)
