"""Charts as inline SVG text: no script, no external resource, colours from the page's CSS variables.

Every function takes plain numbers and returns one `<svg>` element as text, or "" when there is nothing to draw. Sizes are CSS
pixels of the `viewBox`; text is drawn for a scale near 1, so a wide chart is drawn twice (`responsive`) and the style sheet
shows the one that fits. Marks carry a `<title>`, which browsers show on hover and screen readers read.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDE, NARROW = 760, 350


@dataclass(frozen=True)
class Interval:
    """A figure with its interval: `tone` is the CSS class of its marks, `text` what is printed beside it."""

    name: str
    value: float
    low: float
    high: float
    text: str
    tone: str


@dataclass(frozen=True)
class Bar:
    """One step of a funnel: a count and a short note on it."""

    label: str
    count: int
    note: str = ""


@dataclass(frozen=True)
class Series:
    """Counts per bin, drawn in one tone; several series are stacked."""

    name: str
    counts: Sequence[int]
    tone: str


@dataclass(frozen=True)
class Scale:
    """A linear scale from the domain [low, high] to the pixel range [start, end]; a domain of no width maps to the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel position of `value`."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) within [low, high], both finite."""
    if high <= low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def padded(values: Sequence[float], bounds: tuple[float, float] = (-math.inf, math.inf)) -> tuple[float, float]:
    """Return a domain that holds `values` with 6% of room at both ends, never empty, clipped to `bounds`."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    low, high = max(low - room, bounds[0]), min(high + room, bounds[1])
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def plain(value: float) -> str:
    """Return a number for an axis: thousands separated, at most four significant digits, a true minus sign."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return ("0" if text == "-0" else text).replace("-", "−")


def responsive(draw: Callable[[int], str]) -> str:
    """Return the chart drawn for laptops and for phones; the style sheet shows one of them."""
    wide = draw(WIDE)
    return wide and f'<div class="wide">{wide}</div><div class="narrow">{draw(NARROW)}</div>'


def _svg(width: float, height: float, title: str, about: str, marks: Sequence[str]) -> str:
    head = f"<title>{escape(title)}</title><desc>{escape(about)}</desc>"
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" style="max-width:{width:g}px">{head}{"".join(marks)}</svg>'
    )


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    at = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{at}>{escape(text)}</text>'


def fit(text: str, width: float) -> str:
    """Return `text` cut with "…" to about `width` pixels of bold 13-pixel type."""
    most = max(int(width / 9), 6)
    return text if len(text) <= most else text[: most - 1] + "…"


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _rect(x: float, y: float, width: float, height: float, kind: str, hover: str = "") -> str:
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" class="{kind}">{title}</rect>'
    )


def interval_plot(
    groups: Sequence[tuple[str, Sequence[Interval]]],
    *,
    title: str,
    form: Callable[[float], str] = plain,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    reference: float | None = None,
    width: int = WIDE,
) -> str:
    """Return a dot-and-whisker plot: a block per group (its label above), a row per interval, one shared axis.

    `reference` draws a vertical line, such as zero for differences. Intervals must be finite.
    """
    drawn = [i for _, intervals in groups for i in intervals]
    if not drawn:
        return ""
    extra = [] if reference is None else [reference]
    low, high = padded([v for i in drawn for v in (i.low, i.value, i.high)] + extra, bounds)
    left, right = (92, width - 210) if width >= 600 else (62, width - 62)
    scale = Scale(low, high, left, right)
    at = ticks(low, high, 6 if width >= 600 else 4)
    grid, marks, y = [], [], 4.0
    for label, intervals in groups:
        marks.append(_text(0, y + 14, fit(label, width), "label"))
        y += 25
        bottom = y + 23 * len(intervals)
        grid += [_line(scale(v), y, scale(v), bottom, "grid") for v in at]
        grid += [_line(scale(v), y, scale(v), bottom, "reference") for v in extra]
        for row, interval in enumerate(intervals):
            marks += _interval_row(interval, scale, y + 11 + 23 * row, width)
        y = bottom + 10
    y -= 10
    marks += [_text(scale(v), y + 17, form(v), "tick", "middle") for v in at]
    about = "; ".join(f"{label}, {i.name}: {i.text}" for label, intervals in groups for i in intervals)
    return _svg(width, y + 24, title, about, grid + marks)


def _interval_row(interval: Interval, scale: Scale, y: float, width: int) -> list[str]:
    x, low, high = scale(interval.value), scale(interval.low), scale(interval.high)
    shown = interval.text if width >= 600 else interval.text.split(" (")[0]
    hover = escape(f"{interval.name}: {interval.text}")
    return [
        _text(0, y + 4.5, fit(interval.name, 90 if width >= 600 else 60), "note"),
        _line(low, y, high, y, f"whisker {interval.tone}"),
        _line(low, y - 4.5, low, y + 4.5, f"cap {interval.tone}"),
        _line(high, y - 4.5, high, y + 4.5, f"cap {interval.tone}"),
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" class="dot {interval.tone}"><title>{hover}</title></circle>',
        _text(width, y + 4.5, shown, "value", "end"),
    ]


def funnel(bars: Sequence[Bar], *, title: str, width: int = WIDE) -> str:
    """Return horizontal bars on one scale from zero, each over the pale outline of the bar before it."""
    if not bars:
        return ""
    most = max(max(b.count for b in bars), 1)
    wide = width >= 600
    scale = Scale(0, most, 92, width - 210) if wide else Scale(0, most, 0, width)
    row, top, thick = (38, 5, 24) if wide else (54, 26, 18)
    marks, before = [], 0
    for index, bar in enumerate(bars):
        y = index * row + top
        base = y + thick / 2 + 4.5 if wide else y - 8
        hover = f"{bar.label}: {bar.count:,}. {bar.note}"
        marks.append(_text(0, base, bar.label, "label"))
        if before > bar.count:
            marks.append(_rect(scale(0), y, scale(before) - scale(0), thick, "ghost"))
        marks.append(_rect(scale(0), y, scale(bar.count) - scale(0), thick, "bar after", hover))
        if wide:
            marks.append(_text(width - 150, base, f"{bar.count:,}", "figure", "end"))
            marks.append(_text(width - 140, base, bar.note, "note"))
        else:
            marks.append(_text(width, base, f"{bar.count:,}", "figure", "end"))
            marks.append(_text(width - 12 - 8.5 * len(f"{most:,}"), base, bar.note, "note", "end"))
        before = bar.count
    about = "; ".join(f"{b.label}: {b.count:,} {b.note}".strip() for b in bars)
    return _svg(width, len(bars) * row + (4 if wide else 0), title, about, marks)


def line_chart(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    *,
    title: str,
    x_label: str,
    form: Callable[[float], str] = plain,
    from_zero: bool = False,
    width: int = WIDE,
) -> str:
    """Return lines of (name, x, y). From 24 points on, the points are drawn pale under their running median.

    Points whose x or y is not finite are left out; the caller says so. More than 240 points are averaged in equal runs.
    """
    lines = [(name, *_finite(xs, ys)) for name, xs, ys in series]
    lines = [line for line in lines if len(line[1])]
    if not lines:
        return ""
    all_x, all_y = np.concatenate([x for _, x, _ in lines]), np.concatenate([y for _, _, y in lines])
    low, high = padded(
        [*all_y.tolist(), *([0.0] if from_zero else [])], (0 if all_y.min() >= 0 else -math.inf, math.inf)
    )
    height = 270 if width >= 600 else 220
    base, left = height - 44.0, 50.0
    x_scale = Scale(float(all_x.min()), float(all_x.max()), left, width - 12)
    y_scale = Scale(low, high, base, 10)
    marks = []
    for value in ticks(low, high, 6):
        y = y_scale(value)
        marks += [_line(left, y, width, y, "grid"), _text(left - 8, y + 4, form(value), "tick", "end")]
    for value in ticks(x_scale.low, x_scale.high, 8 if width >= 600 else 5):
        marks.append(_text(x_scale(value), base + 18, plain(value), "tick", "middle"))
    marks.append(_text((left + width) / 2, height - 6, x_label, "note", "middle"))
    for index, (_, x, y_values) in enumerate(lines):
        marks += _curve(x, y_values, x_scale, y_scale, f"s{index % 4}")
    about = "; ".join(f"{name}: from {plain(y[0])} to {plain(y[-1])} over {len(y)} points" for name, _, y in lines)
    return _svg(width, height, title, about, marks)


def _finite(xs: Sequence[float], ys: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(xs, dtype=np.float64), np.asarray(ys, dtype=np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    return x[keep], y[keep]


def _curve(x: np.ndarray, y: np.ndarray, x_scale: Scale, y_scale: Scale, tone: str) -> list[str]:
    if len(x) == 1:
        return [f'<circle cx="{x_scale(x[0]):.1f}" cy="{y_scale(y[0]):.1f}" r="4" class="dot {tone}"/>']
    smooth = running_median(y) if len(y) >= 24 else None
    raw = _polyline(thin(x), thin(y), x_scale, y_scale, f"line {tone}" + (" pale" if smooth is not None else ""))
    return [raw] if smooth is None else [raw, _polyline(thin(x), thin(smooth), x_scale, y_scale, f"line {tone}")]


def _polyline(x: np.ndarray, y: np.ndarray, x_scale: Scale, y_scale: Scale, kind: str) -> str:
    points = " ".join(f"{x_scale(a):.1f},{y_scale(b):.1f}" for a, b in zip(x.tolist(), y.tolist(), strict=True))
    return f'<polyline points="{points}" class="{kind}"/>'


def thin(values: np.ndarray, most: int = 240) -> np.ndarray:
    """Return `values` unchanged, or the means of at most `most` runs of equal length (the last may be shorter)."""
    run = -(-len(values) // most)
    if run <= 1:
        return values
    starts = np.arange(0, len(values), run)
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))


def running_median(values: np.ndarray) -> np.ndarray:
    """Return the centred running median over a tenth of the points (an odd number, 5 to 101), edges repeated."""
    window = int(np.clip(len(values) // 10, 5, 101)) | 1
    spread = np.pad(values, window // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(spread, window), axis=1)


def bins(values: Sequence[float], most: int = 24) -> np.ndarray:
    """Return round bin edges (k + 1,), k <= `most`, that cover whole numbers `values` from zero on; empty for no values."""
    if not len(values):
        return np.array([])
    top = max(int(max(values)) + 1, 1)
    step = next(m * 10**e for e in range(12) for m in (1, 2, 5) if m * 10**e * most >= top)
    return np.arange(0, -(-top // step) + 1) * step


def columns(
    series: Sequence[Series],
    *,
    labels: Sequence[tuple[float, str]],
    hover: Sequence[str],
    title: str,
    x_label: str,
    width: int = NARROW,
) -> str:
    """Return stacked columns, one per bin. `labels` are (position in bins, text), `hover` names each bin."""
    count = len(hover)
    if not count or not any(sum(s.counts) for s in series):
        return ""
    totals = [sum(s.counts[i] for s in series) for i in range(count)]
    height, left = 200, 38.0
    base = height - 40.0
    levels = [t for t in ticks(0, 1.2 * max(totals), 4) if t == int(t)]
    top = next((t for t in levels if t >= max(totals)), max(totals))
    y_scale, x_scale = Scale(0, top, base, 10), Scale(0, count, left, width - 2)
    marks = []
    for value in (t for t in levels if t <= top):
        y = y_scale(value)
        marks += [_line(left, y, width, y, "grid"), _text(left - 7, y + 4, plain(value), "tick", "end")]
    thick = x_scale(1) - x_scale(0)
    gap = min(2.0, thick * 0.15)
    for index in range(count):
        marks += _stack(series, index, x_scale(index) + gap / 2, thick - gap, y_scale, hover[index])
    marks += [_text(x_scale(at), base + 17, text, "tick", "middle") for at, text in labels]
    marks.append(_text((left + width) / 2, height - 4, x_label, "note", "middle"))
    about = "; ".join(f"{name}: {total:,}" for name, total in zip(hover, totals, strict=True) if total)
    return _svg(width, height, title, about, marks)


def _stack(series: Sequence[Series], index: int, x: float, width: float, scale: Scale, hover: str) -> list[str]:
    marks, height = [], 0
    for one in series:
        if one.counts[index]:
            top = scale(height + one.counts[index])
            tip = f"{hover}, {one.name}: {one.counts[index]:,}" if one.name else f"{hover}: {one.counts[index]:,}"
            marks.append(_rect(x, top, width, scale(height) - top, f"bar {one.tone}", tip))
            height += one.counts[index]
    return marks


def share_bar(parts: Sequence[tuple[str, int, str]], *, title: str) -> str:
    """Return one bar cut into (name, count, tone) parts, as wide as its place; names go into a legend beside it."""
    total = sum(count for _, count, _ in parts)
    if not total:
        return ""
    marks, x = [], 0.0
    for name, count, tone in parts:
        share = 100 * count / total
        marks.append(_rect(x, 0, share, 10, f"bar {tone}", f"{name}: {count:,}"))
        x += share
    head = f"<title>{escape(title)}</title>"
    about = f"<desc>{escape('; '.join(f'{name}: {count:,}' for name, count, _ in parts))}</desc>"
    return f'<svg viewBox="0 0 100 10" role="img" class="share" preserveAspectRatio="none">{head}{about}{"".join(marks)}</svg>'


STANDALONE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#555}.label{font-weight:600;fill:#222}.grid{stroke:#ddd}"
    ".reference{stroke:#888;stroke-dasharray:4 3}.whisker,.cap{stroke:#2b6cb0;stroke-width:2}.dot{fill:#2b6cb0}"
    ".no.whisker,.no.cap{stroke:#c05621}.no.dot{fill:#c05621}.old.whisker,.old.cap{stroke:#8a929c}.old.dot{fill:#8a929c}"
    "@media(prefers-color-scheme:dark){text{fill:#aab}.label{fill:#eee}.grid{stroke:#444}}</style>"
)
"""Colours of a chart that stands outside the report's page."""


def standalone(svg: str) -> str:
    """Return a chart as an SVG file of its own, "" for an empty one."""
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f">{STANDALONE}", 1)
