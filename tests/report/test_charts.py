import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.report import charts
from tamis.report.charts import Bar, Interval, Scale, Series

finite = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda v: v == 0 or abs(v) > 1e-6)


def drawn(svg: str) -> ElementTree.Element:
    """Parse one chart, and refuse coordinates that are not finite or leave the picture to the left or the right."""
    assert "nan" not in svg.lower().replace("nance", "")
    assert "inf" not in svg.lower()
    root = ElementTree.fromstring(svg)
    width = float(root.attrib["viewBox"].split()[2])
    for mark in root.iter():
        for name in ("x", "x1", "x2", "cx"):
            if name in mark.attrib:
                assert -0.1 <= float(mark.attrib[name]) <= width + 0.1, (mark.tag, mark.attrib)
    assert root.find("title") is not None
    assert root.find("desc") is not None
    return root


def marks(root: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [m for m in root.iter() if kind in m.attrib.get("class", "").split()]


@given(finite, finite, st.integers(1, 12))
def test_ticks_are_round_and_inside(a, b, count):
    low, high = min(a, b), max(a, b)
    found = charts.ticks(low, high, count)
    slack = 1e-6 * max(abs(low), abs(high), 1e-9)
    assert all(low - slack <= t <= high + slack for t in found)
    assert len(found) <= count + 1
    if high - low > 1e-3 and len(found) > 1:
        step = found[1] - found[0]
        mantissa = step / 10 ** math.floor(math.log10(step * 1.0001))
        assert min(abs(mantissa - m) for m in (1, 2, 5, 10)) < 1e-3 * max(1, abs(low / (high - low)))


def test_ticks_known_values():
    assert charts.ticks(0, 100, 5) == [0, 20, 40, 60, 80, 100]
    assert charts.ticks(0.21, 0.58, 4) == pytest.approx([0.3, 0.4, 0.5])
    assert charts.ticks(3, 3) == [3]


@given(st.lists(finite, min_size=1, max_size=8))
def test_padded_domain_holds_its_values(values):
    low, high = charts.padded(values)
    assert low < high
    assert low <= min(values) <= max(values) <= high


def test_padded_keeps_bounds():
    assert charts.padded([0.0, 1.0], (0.0, 1.0)) == (0.0, 1.0)
    low, high = charts.padded([1.0], (0.0, 1.0))
    assert low < high == 1.0


def test_scale_maps_ends_and_a_point_domain():
    scale = Scale(10, 20, 100, 0)
    assert (scale(10), scale(20), scale(15)) == (100, 0, 50)
    assert Scale(3, 3, 0, 100)(3) == 50


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50))
def test_bins_hold_every_value(values):
    edges = charts.bins(values)
    counts = np.histogram(values, bins=edges)[0]
    assert counts.sum() == len(values)
    assert len(counts) <= 24
    assert edges[0] == 0
    assert edges[-1] > max(values)
    assert len(set(np.diff(edges))) == 1


@given(st.integers(1, 2000), st.integers(1, 300))
def test_thin_keeps_the_mean(size, most):
    values = np.arange(size, dtype=float)
    short = charts.thin(values, most)
    assert len(short) <= most
    run = -(-size // most)
    assert short[0] == pytest.approx(values[:run].mean())
    assert short[-1] == pytest.approx(values[(len(short) - 1) * run :].mean())


@given(st.lists(st.floats(-5, 5), min_size=24, max_size=200))
def test_running_median_equals_brute_force(values):
    y = np.array(values)
    window = int(np.clip(len(y) // 10, 5, 101)) | 1
    spread = np.concatenate([[y[0]] * (window // 2), y, [y[-1]] * (window // 2)])
    expected = [np.median(spread[i : i + window]) for i in range(len(y))]
    assert charts.running_median(y) == pytest.approx(expected)


def interval(name="before", value=0.3, low=0.2, high=0.4, tone="before"):
    return Interval(name, value, low, high, f"{value:.0%} ({low:.0%} to {high:.0%})", tone)


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_interval_plot_places_dots_on_a_common_axis(width):
    groups = [
        ("a", [interval(), interval("after", 0.5, 0.45, 0.55, "after")]),
        ("b", [interval(value=0.4, low=0.3, high=0.5)]),
    ]
    root = drawn(charts.interval_plot(groups, title="t", reference=0.2, width=width))
    dots = [float(d.attrib["cx"]) for d in marks(root, "dot")]
    whiskers = [(float(w.attrib["x1"]), float(w.attrib["x2"])) for w in marks(root, "whisker")]
    assert dots[0] < dots[2] < dots[1]
    assert dots[2] - dots[0] == pytest.approx(dots[1] - dots[2], abs=0.2)
    assert all(low < dot < high for dot, (low, high) in zip(dots, whiskers, strict=True))
    assert {float(r.attrib["x1"]) for r in marks(root, "reference")} == {whiskers[0][0]}


def test_interval_plot_of_a_point_and_of_nothing():
    root = drawn(charts.interval_plot([("a", [interval(low=0.3, high=0.3)])], title="t", bounds=(0, 1)))
    assert len(marks(root, "dot")) == 1
    assert charts.interval_plot([], title="t") == ""
    assert charts.interval_plot([("a", [])], title="t") == ""


@pytest.mark.parametrize("width", [charts.WIDE, charts.NARROW])
def test_funnel_bars_are_proportional(width):
    root = drawn(charts.funnel([Bar("a", 200), Bar("b", 1600), Bar("c", 400, "25%")], title="t", width=width))
    widths = [float(b.attrib["width"]) for b in marks(root, "bar")]
    assert widths[1] / widths[0] == pytest.approx(8, rel=0.02)
    assert widths[1] / widths[2] == pytest.approx(4, rel=0.02)
    ghosts = marks(root, "ghost")
    assert [float(g.attrib["width"]) for g in ghosts] == [widths[1]]


def test_funnel_of_zeros_and_of_nothing():
    assert len(marks(drawn(charts.funnel([Bar("a", 0)], title="t")), "bar")) == 1
    assert charts.funnel([], title="t") == ""


@pytest.mark.parametrize(
    "y", [[1.0], [2.0, 2.0, 2.0], [0.0, 0.0], [3.0, float("nan"), 1.0], list(np.linspace(5, 1, 3000))]
)
def test_line_chart_of_points_constants_gaps_and_many(y):
    root = drawn(charts.line_chart([("loss", range(1, len(y) + 1), y)], title="t", x_label="step"))
    lines, dots = marks(root, "line"), marks(root, "dot")
    assert lines or dots
    for line in lines:
        points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
        assert len(points) <= 240
        assert all(math.isfinite(a) and 0 <= b <= 270 for a, b in points)


def test_line_chart_without_a_finite_point_is_empty():
    assert charts.line_chart([], title="t", x_label="step") == ""
    assert charts.line_chart([("a", [1, 2], [float("nan"), float("inf")])], title="t", x_label="step") == ""


def test_columns_stack_to_their_totals():
    series = [Series("stop", [4, 0, 2], "after"), Series("length", [0, 8, 6], "warn")]
    svg = charts.columns(series, labels=[(0.5, "a")], hover=["a", "b", "c"], title="t", x_label="x")
    heights = {m.find("title").text: float(m.attrib["height"]) for m in marks(drawn(svg), "bar")}
    assert heights["b, length: 8"] == pytest.approx(2 * heights["a, stop: 4"], abs=0.2)
    assert heights["c, stop: 2"] + heights["c, length: 6"] == pytest.approx(heights["b, length: 8"], abs=0.2)
    assert len(heights) == 4


def test_columns_and_share_bar_of_nothing():
    assert charts.columns([Series("", [0, 0], "after")], labels=[], hover=["a", "b"], title="t", x_label="x") == ""
    assert charts.columns([], labels=[], hover=[], title="t", x_label="x") == ""
    assert charts.share_bar([("a", 0, "after")], title="t") == ""


def test_share_bar_fills_its_width():
    root = drawn(charts.share_bar([("stop", 3, "after"), ("length", 1, "warn")], title="t"))
    assert [float(b.attrib["width"]) for b in marks(root, "bar")] == [75, 25]


def test_labels_are_escaped():
    hostile = "</svg><script>alert('x')</script>"
    texts = [
        charts.funnel([Bar(hostile, 3, hostile)], title=hostile),
        charts.interval_plot([(hostile, [Interval(hostile, 1, 0, 2, hostile, "before")])], title=hostile),
        charts.line_chart([(hostile, [1, 2], [1, 2])], title=hostile, x_label=hostile),
        charts.columns(
            [Series(hostile, [1], "after")], labels=[(0, hostile)], hover=[hostile], title=hostile, x_label=hostile
        ),
        charts.share_bar([(hostile, 1, "after")], title=hostile),
    ]
    for text in texts:
        assert not re.search("<script", text)
        drawn(text)
