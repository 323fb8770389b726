"""Laws of the charts: ticks cover the data, nothing leaves the frame, what is not a number is a gap."""

from __future__ import annotations

import itertools
import math
import re
import xml.etree.ElementTree as ET

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nmlearn.lab.report import numbers
from nmlearn.lab.report.axes import Frame
from nmlearn.lab.report.heat import HeatRow, heat_map, shorten
from nmlearn.lab.report.intervals import Interval, interval_chart
from nmlearn.lab.report.lines import CLOSE, Series, XAxis, line_chart, path_of
from nmlearn.lab.report.points import Dot, point_chart
from nmlearn.lab.report.scales import Rows, course, linear, logarithmic, tight
from nmlearn.lab.report.styles import COLOURS, OUTLINES, mark, method_styles
from nmlearn.lab.report.svg import WIDTH, element
from nmlearn.methods import METHODS

HEIGHT = Frame.height
LBC = method_styles(["lbc"])["lbc"]

FINITE = st.floats(allow_nan=False, allow_infinity=False)
ANY = st.one_of(
    st.none(),
    st.sampled_from([math.nan, math.inf, -math.inf]),
    st.floats(-1e290, 1e290),
    st.integers(),
    st.booleans(),
    st.text(max_size=3),
)


def shape(svg: str) -> ET.Element:
    """The drawing, as XML: markup that is not well formed fails here."""
    return ET.fromstring(svg)


def moves(svg: str) -> list[str]:
    """The subpaths of all lines."""
    return [piece for path in shape(svg).iter("path") for piece in re.findall(r"M[^M]+", path.get("d", ""))]


@given(st.lists(FINITE, min_size=1))
@example([5e-324, 0.0])
@example([-1.7e308, 1.7e308])
@example([0.1, 0.1 + 1e-17])
def test_linear_ticks_cover_the_data(values: list[float]) -> None:
    scale = linear(values)
    limited = [max(-1e300, min(1e300, value)) for value in values]
    assert scale.ticks[0] <= min(limited) and max(limited) <= scale.ticks[-1]
    assert all(a < b for a, b in itertools.pairwise(scale.ticks))
    assert 2 <= len(scale.ticks) <= 9
    assert all(0 <= scale.at(value) <= 1 for value in values)


@given(st.lists(FINITE, min_size=1))
@example([5e-324])
@example([1.0, 1e300])
def test_logarithmic_ticks_cover_the_positive_data(values: list[float]) -> None:
    scale = logarithmic(values)
    positive = [max(1e-300, min(1e300, value)) for value in values if value > 0]
    if positive:
        assert scale.ticks[0] <= min(positive) and max(positive) <= scale.ticks[-1]
    assert scale.ticks[0] > 0 and all(a < b for a, b in itertools.pairwise(scale.ticks))
    assert len(scale.ticks) <= 12
    assert all(0 <= scale.at(value) <= 1 for value in values)


@given(st.lists(st.floats(-1e12, 1e12), min_size=1), st.sampled_from([linear, tight, course]))
def test_scales_keep_the_order_and_label_ticks_apart(values: list[float], scale_of: object) -> None:
    assert callable(scale_of)
    scale = scale_of(values)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= scale.at(tick) <= 1 for tick in scale.ticks)
    if scale_of is linear and scale.ticks[1] - scale.ticks[0] >= 1e-6 and max(map(abs, scale.ticks)) < 1e7:
        assert len({scale.text(tick) for tick in scale.ticks}) == len(scale.ticks)


@pytest.mark.parametrize("scale_of", [linear, logarithmic, tight, course])
def test_scales_of_nothing_have_ticks(scale_of: object) -> None:
    assert callable(scale_of)
    assert len(scale_of([]).ticks) >= 2
    assert len(scale_of([None, math.nan, math.inf, "x", True]).ticks) >= 2


def test_ticks_are_round() -> None:
    assert linear([0.3, 9.2]).ticks == (0, 5, 10) or linear([0.3, 9.2]).ticks == (0, 2, 4, 6, 8, 10)
    assert [linear([0, 0.5]).text(tick) for tick in linear([0, 0.5]).ticks] == ["0.0", "0.2", "0.4", "0.6"]
    assert logarithmic([1, 70]).ticks == (1, 2, 5, 10, 20, 50, 100)
    assert [course([0, 120]).text(tick) for tick in course([0, 120]).ticks] == ["0", "30", "60", "90", "120"]
    assert [course([0, 117]).text(tick) for tick in course([0, 117]).ticks] == ["0", "50", "100", "117"]


@given(st.lists(st.lists(st.tuples(ANY, ANY), max_size=8), max_size=3), st.booleans(), st.booleans())
def test_lines_stay_inside_the_frame(lines: list[list[tuple[object, object]]], log: bool, step: bool) -> None:
    series = [Series(f"line {i}", points, step=step) for i, points in enumerate(lines)]
    svg = line_chart("A law", series, x=XAxis("x"), y_label="y", log=log)
    drawing = shape(svg)
    assert drawing.find("title") is not None and drawing.find("desc") is not None
    for piece in moves(svg):
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", piece):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT
        for x, y in re.findall(r"H([-\d.]+)V([-\d.]+)", piece):
            assert 0 <= float(x) <= WIDTH and 0 <= float(y) <= HEIGHT
    for circle in drawing.iter("circle"):
        assert 0 <= float(circle.get("cx", "-1")) <= WIDTH and 0 <= float(circle.get("cy", "-1")) <= HEIGHT


@pytest.mark.parametrize("gap", [None, math.nan, math.inf, "text"])
def test_what_is_no_number_is_a_gap(gap: object) -> None:
    points = [(0, 1.0), (1, 2.0), (2, gap), (3, 2.0), (4, 3.0), (5, gap), (6, 4.0)]
    svg = line_chart("Gap", [Series("line", points)], x=XAxis("x"), y_label="y")
    assert len(moves(svg)) == 2
    assert len(list(shape(svg).iter("circle"))) == 1  # the single point after the second gap


def test_a_logarithmic_chart_leaves_out_what_is_not_positive() -> None:
    line = Series("line", [(0, 1.0), (1, 10.0), (2, 0.0), (3, -1.0), (4, 5.0), (5, 6.0)])
    assert len(moves(line_chart("Log", [line], x=XAxis("x"), y_label="y", log=True))) == 2


def test_one_point_is_a_dot_and_a_constant_a_level_line() -> None:
    one = line_chart("One", [Series("line", [(3, 5.0)])], x=XAxis("x"), y_label="y")
    assert not moves(one) and len(list(shape(one).iter("circle"))) == 1
    same = line_chart("Same", [Series("line", [(0, 5.0), (1, 5.0), (2, 5.0)])], x=XAxis("x"), y_label="y")
    heights = {y for _, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", moves(same)[0])}
    assert len(heights) == 1


@pytest.mark.parametrize("points", [[], [(None, 1.0)], [(1, None)], [(math.nan, math.nan)]])
def test_charts_of_nothing_say_so(points: list[tuple[object, object]]) -> None:
    assert "Nothing recorded" in line_chart("No", [Series("line", points)], x=XAxis("x"), y_label="y")
    dots = [Dot(x, y, "dot") for x, y in points]
    assert "Nothing recorded" in point_chart("No", dots, x_label="x", y_label="y")
    assert "Nothing recorded" in interval_chart("No", [Interval(LBC, None)], x_label="x")
    rows = [HeatRow("layer", [(0.0, y) for _, y in points if y is None])]
    assert "Nothing recorded" in heat_map("No", rows, end=1.0, x_label="x", text=str)


def test_hover_columns_tell_every_line() -> None:
    lines = [Series("a", [(0, 1.0), (1, 2.0)]), Series("b", [(0, 3.0), (1, 4.0)]), Series("", [(0, 9.0)])]
    titles = [title.text for title in shape(line_chart("T", lines, x=XAxis("x"), y_label="y")).iter("title")]
    assert "x 1.000\na: 2.000\nb: 4.000" in titles
    many = line_chart("M", [Series("a", [(i, i) for i in range(1000)])], x=XAxis("x"), y_label="y")
    assert 30 <= many.count("<rect ") <= 60


def test_neighbours_that_tell_the_same_share_a_hover_column() -> None:
    line = Series("a", [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)])
    titles = [title.text for title in shape(line_chart("T", [line], x=XAxis("x"), y_label="y")).iter("title")]
    assert titles == ["T", "x 0 to 2.000\na: 1.000", "x 3.000\na: 2.000"]


@given(st.lists(st.floats(0, 200), min_size=2, max_size=60))
def test_a_thinned_line_misses_no_point_visibly(heights: list[float]) -> None:
    kept = [
        (float(x), float(y))
        for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path_of(list(enumerate(heights)), step=False))
    ]
    for (x, y), (u, v) in itertools.pairwise(kept):
        for at in range(round(x), round(u) + 1):
            missed = abs((v - y) * (at - x) - (u - x) * (heights[at] - y)) / math.hypot(u - x, v - y)
            assert missed <= CLOSE + 0.1  # of rounding to one decimal


@given(st.lists(st.floats(0, 200), min_size=2, max_size=60))
def test_a_thinned_step_line_misses_no_height_visibly(heights: list[float]) -> None:
    path = path_of(list(enumerate(heights)), step=True)
    steps = [(0.0, float(path[1:].split("H")[0].split()[1]))]
    steps += [(float(x), float(y)) for x, y in re.findall(r"H([-\d.]+)V([-\d.]+)", path)]
    for at, height in enumerate(heights):
        assert abs([y for x, y in steps if x <= at][-1] - height) <= CLOSE + 0.06


@given(st.lists(st.tuples(ANY, ANY, ANY, st.lists(ANY, max_size=4)), min_size=1, max_size=4))
def test_intervals_stay_inside(rows: list[tuple[object, object, object, list[object]]]) -> None:
    made = [Interval(LBC, m, low, high, [(dot, "seed") for dot in dots]) for m, low, high, dots in rows]
    drawing = shape(interval_chart("Law", made, x_label="gap", noise=0.5))
    for circle in drawing.iter("circle"):
        assert 0 <= float(circle.get("cx", "-1")) <= WIDTH
    for line in drawing.iter("line"):
        assert 0 <= float(line.get("x1", "-1")) <= float(line.get("x2", "-1")) + 1e-6 or line.get("class") == "whisker"


def test_an_interval_row_draws_its_seeds_and_its_mean() -> None:
    row = Interval(LBC, -0.5, -0.9, -0.1, [(-0.4, "seed 0"), (-0.6, "seed 1")])
    svg = interval_chart("One", [row], x_label="gap")
    assert svg.count('class="seed"') == 2 and svg.count('class="whisker"') == 1
    assert "mean \u22120.50, 95 % interval \u22120.90 to \u22120.10" in svg
    single = interval_chart("One", [Interval(LBC, -0.5)], x_label="gap")
    assert 'class="whisker"' not in single and "interval" not in single


@given(st.lists(st.floats(-5, 0), min_size=2, max_size=3))
def test_observations_do_not_hide_each_other(values: list[float]) -> None:
    row = Interval(LBC, 0.0, dots=[(value, "seed") for value in values])
    seeds = [c for c in shape(interval_chart("Seeds", [row], x_label="gap")).iter("circle") if c.get("class") == "seed"]
    places = [(float(seed.get("cx", "0")), float(seed.get("cy", "0"))) for seed in seeds]
    assert len(places) == len(values)
    assert all(math.dist(a, b) >= 5.5 for a, b in itertools.combinations(places, 2))


@pytest.mark.parametrize("fluid", [False, True])
@given(st.lists(st.text("ab", max_size=9), min_size=1, max_size=30), st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_one_frame_serves_numbers_and_names(fluid: bool, names: list[str], values: list[float]) -> None:
    for y in (Rows(tuple(names)), linear(values)):
        frame = Frame(course(values), y, height=100 + 12.0 * len(names), fluid=fluid)
        places = [frame.down(tick) for tick in y.ticks]
        assert all(frame.top <= place <= frame.base for place in places)
        assert all(frame.left <= frame.across(value) <= frame.end for value in values)
        chart = shape(frame.draw("title", "text", "x", "", []))
        written = [text.text or "" for text in chart.iter("text")]
        assert all(frame.x.text(tick) in written for tick in frame.x.ticks)


@given(st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=1, max_size=20))
def test_texts_of_points_never_overlap(places: list[tuple[float, float]]) -> None:
    svg = point_chart("P", [Dot(x, y, "dot", text="1:16") for x, y in places], x_label="x", y_label="y")
    texts = [text for text in shape(svg).iter("text") if text.text == "1:16"]
    boxes = [(float(text.get("x", "0")), float(text.get("y", "0"))) for text in texts]
    for (x, y), (u, v) in itertools.combinations(boxes, 2):
        assert abs(x - u) >= 24 or abs(y - v) >= 10.9


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 10), st.one_of(ANY, st.floats(-1e9, 1e9))), max_size=6), min_size=1, max_size=60
    ),
)
def test_heat_cells_stay_inside(rows: list[list[tuple[float, object]]]) -> None:
    made = [HeatRow(f"layer{i}", sorted(cells, key=lambda cell: cell[0])) for i, cells in enumerate(rows)]
    html = heat_map("Law", made, end=10.0, x_label="epoch", text=str)
    for cell in shape(str(html)).iter("rect"):
        if (width := cell.get("width", "")).endswith("%"):
            assert float(cell.get("x", "0%")[:-1]) + float(width[:-1]) <= 100.02
            assert 0 <= float(cell.get("fill-opacity", "0")) <= 1


def test_a_heat_map_of_many_layers_stays_readable() -> None:
    rows = [HeatRow(f"blocks.{i}.attention.query", [(0.0, 1.0), (1.0, i / 200)]) for i in range(200)]
    svg = shape(str(heat_map("Many", rows, end=2.0, x_label="epoch", text=str)))
    height = float(next(child.get("height", "0") for child in svg.iter("svg") if child.get("width") == "100%"))
    assert height < 1000
    names = next(child for child in svg.iter("svg") if child.get("aria-hidden") and child.find("text") is not None)
    places = sorted(float(text.get("y", "0")) for text in names.iter("text"))
    assert len(places) > 50 and all(b - a >= 11 for a, b in itertools.pairwise(places))


def test_shortened_names_still_tell_layers_apart() -> None:
    names = [f"encoder.layers.{i}.self_attention.{part}" for i in range(12) for part in ("query", "key", "value")]
    assert len(set(shorten(names))) == len(names)
    assert shorten(["conv1", "fc"]) == ["conv1", "fc"]
    assert shorten(["a.weight", "b.c.weight"]) == ["a", "b.c"]
    assert all(len(name) <= 24 for name in shorten([*names, "x" * 90]))


def test_every_method_has_its_own_colour_and_shape() -> None:
    """Ten on a page have a colour each; beyond, colours come again with another shape."""
    styles = method_styles(METHODS).values()
    assert len({(style.paint, style.shape) for style in styles}) == len(METHODS)
    assert len({style.paint for style in styles}) == min(len(METHODS), COLOURS + 1)
    assert len({style.shape for style in styles}) == len(OUTLINES) + 1
    for name in METHODS:  # the same on every page on which no other method asks for it
        assert method_styles([name, "dense"])[name] == method_styles([name])[name]
    for outline in [*OUTLINES, "circle"]:
        shape(mark(outline, 5.0, 5.0, 4.0, "title"))


@given(st.lists(st.text(), min_size=1, max_size=3 * COLOURS, unique=True))
def test_styles_tell_methods_apart_that_the_report_has_never_heard_of(names: list[str]) -> None:
    found = method_styles([*names, "dense"])
    assert list(found) == ["dense", *(name for name in names if name != "dense")]
    assert len({(style.paint, style.shape) for style in found.values()}) == len(found)
    assert len({style.paint for style in found.values()}) == min(len(found), COLOURS + 1)
    assert method_styles([*reversed(names), "dense"]) == found


def test_text_is_escaped_wherever_it_goes() -> None:
    assert element("p", "<b>", title='"&', class_="x") == '<p title="&#34;&amp;" class="x">&lt;b&gt;</p>'
    evil = "</title><script>alert(1)</script>"
    charts = [
        line_chart(evil, [Series(evil, [(0, 1.0), (1, 2.0)])], x=XAxis(evil), y_label=evil),
        point_chart(evil, [Dot(1.0, 1.0, evil, text=evil)], x_label=evil, y_label=evil),
        heat_map(evil, [HeatRow(evil, [(0.0, 1.0)])], end=1.0, x_label=evil, text=lambda _: evil),
    ]
    for chart in charts:
        assert "<script>" not in chart
        shape(str(chart))


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (numbers.percent(0.91723), "91.72\u202f%"),
        (numbers.percent(None), "–"),
        (numbers.percent(math.nan), "–"),
        (numbers.points(-0.00421), "\u22120.42"),
        (numbers.share(0.0625), "6.25\u202f%"),
        (numbers.share(1), "100\u202f%"),
        (numbers.points(0.003), "+0.30"),
        (numbers.points(-0.00000001), "0.00"),
        (numbers.count(46800), "46,800"),
        (numbers.significant(0.0012345), "0.00123"),
        (numbers.significant(1234.5), "1,234"),
        (numbers.significant(2.5e-12), "2.50e\u221212"),
        (numbers.duration(8.24), "8.2\u202fs"),
        (numbers.duration(59.97), "1\u202fmin 0\u202fs"),
        (numbers.duration(4350), "1\u202fh 12\u202fmin"),
        (numbers.duration("soon"), "–"),
        (numbers.times(0.618), "0.62\u202f×"),
        (numbers.finite(10**400), None),
    ],
)
def test_numbers_are_written_for_people(made: str, expected: str) -> None:
    assert made == expected


def test_a_heat_map_stops_where_the_data_stops() -> None:
    svg = heat_map("U", [HeatRow("a", [(0.0, 1.0), (2.0, 0.5)])], end=10.0, until=4.0, x_label="epoch", text=str)
    assert re.findall(r'x="([\d.]+)%" width="([\d.]+)%"', svg) == [("0.00", "20.00"), ("20.00", "20.00")]
