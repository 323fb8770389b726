"""The frame of all charts and the line chart as SVG, drawn 360 units wide.

Charts are small on purpose: one fills a phone, several stand side by side on a desktop, and the text stays as large
as the page's. What is not a number is a gap. Colours come from CSS classes, so one drawing serves light and dark.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from nmlearn.lab.report.markup import Content, Markup, element
from nmlearn.lab.report.numbers import finite, significant
from nmlearn.lab.report.scales import Scale, course, linear, logarithmic

WIDTH = 360.0
HEIGHT = 224.0
LETTER = 6.4  # width of a digit at the charts' text size, on the safe side
READINGS = 60  # hover columns in a chart at most


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: what it is, in the tooltip; without one the line is not told there.
        points: (x, y), rising in x; a y that is None or not finite leaves a gap.
        paint: CSS class of its colour.
        style: CSS class of its stroke: "line", "thin" (a single run), "dashed", "dotted".
        step: a value holds until the next one.
    """

    label: str
    points: Sequence[tuple[object, object]]
    paint: str = "ink"
    style: str = "line"
    step: bool = False


@dataclass(frozen=True)
class Along:
    """The x axis of a line chart.

    Attributes:
        label: with its unit.
        values: that the axis must cover, besides the lines.
        band: a shaded range.
    """

    label: str
    values: tuple[float, ...] = ()
    band: tuple[float, float] | None = None


@dataclass(frozen=True)
class Frame:
    """The rectangle that the data fills, and its two scales."""

    x: Scale
    y: Scale
    left: float
    width: float = WIDTH
    height: float = HEIGHT
    top: float = 26.0
    right: float = 12.0
    bottom: float = 40.0

    def across(self, value: float) -> float:
        """x of a value, in drawing units."""
        return self.left + (self.width - self.left - self.right) * self.x.at(value)

    def down(self, value: float) -> float:
        """y of a value, in drawing units (they grow downwards)."""
        return self.height - self.bottom - (self.height - self.bottom - self.top) * self.y.at(value)

    def axes(self, x_label: str, y_label: str) -> list[Markup]:
        """Grid, tick labels and axis titles; the y title stands above the axis, where it can be read."""
        base, end = self.height - self.bottom, self.width - self.right
        parts = [element("text", y_label, x=0.0, y=12.0, class_="axis")]
        parts.append(element("text", x_label, x=end, y=self.height - 5, class_="axis end"))
        for tick in self.y.ticks:
            at = self.down(tick)
            parts.append(element("line", x1=self.left, x2=end, y1=at, y2=at, class_="grid"))
            parts.append(element("text", self.y.text(tick), x=self.left - 6, y=at + 4, class_="tick end"))
        for tick in self.x.ticks:
            at = self.across(tick)
            anchor = " end" if tick == self.x.ticks[-1] else " middle"
            parts.append(element("line", x1=at, x2=at, y1=base, y2=base + 4, class_="grid"))
            parts.append(element("text", self.x.text(tick), x=min(at, end), y=base + 17, class_=f"tick{anchor}"))
        return parts


def frame(x: Scale, y: Scale) -> Frame:
    """A frame with room for the y labels."""
    return Frame(x, y, left=max(len(y.text(tick)) for tick in y.ticks) * LETTER + 10)


def drawing(name: str, title: str, description: str, parts: Content, width: float, height: float) -> Markup:
    """An SVG with a title and a description; `name` makes its ids, once a page."""
    heading = element("title", title, id=f"g-{name}-title"), element("desc", description, id=f"g-{name}-text")
    return element(
        "svg",
        heading,
        parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"g-{name}-title",
        aria_describedby=f"g-{name}-text",
    )


def line_chart(
    name: str,
    title: str,
    series: Sequence[Series],
    *,
    x: Along,
    y_label: str,
    y_values: Iterable[object] = (),
    log: bool = False,
    readings: bool = True,
) -> Markup:
    """Lines over a common x axis, with a column to hover over at each x.

    Args:
        name: makes the ids, once a page.
        title: for those who do not see the drawing.
        series: the lines; later ones lie on top.
        x: the x axis.
        y_label: of the y axis, with its unit.
        y_values: further values that the y axis must cover.
        log: logarithmic y axis; values that are not positive are gaps.
        readings: whether to add the hover columns; without, each line carries its label.
    """
    scale = logarithmic if log else linear
    drawn = [clean(line, scale(()).shows) for line in series]
    points = [point for line in drawn for point in line.points if point[1] is not None]
    if not points:
        return nothing(name, title)
    ground = frame(course([*x.values, *(at for at, _ in points)]), scale([*y_values, *(y for _, y in points)]))
    parts = ground.axes(x.label, y_label)
    if x.band is not None:
        parts.insert(0, _band(ground, x.band))
    parts += [stroke(ground, line, titled=not readings) for line in drawn]
    if readings:
        parts += _readings(ground, drawn, x.label)
    return drawing(name, title, _describe(drawn, x.label, y_label), parts, ground.width, ground.height)


def nothing(name: str, title: str) -> Markup:
    """The chart of no data: says so."""
    text = element("text", "Nothing recorded", x=WIDTH / 2, y=44.0, class_="axis middle")
    return drawing(name, title, "Nothing recorded.", text, WIDTH, 80.0)


def number(value: object) -> float:
    """`value` as a float, where it is known to be a finite number."""
    found = finite(value)
    return 0.0 if found is None else found


def clean(line: Series, shows: Callable[[object], bool]) -> Series:
    """The line with every y a float or None, without points that have no x."""
    points = [(finite(x), finite(y) if shows(y) else None) for x, y in line.points]
    return replace(line, points=[point for point in points if point[0] is not None])


def _band(ground: Frame, band: tuple[float, float]) -> Markup:
    left, right = (ground.across(end) for end in band)
    height = ground.height - ground.bottom - ground.top
    return element("rect", x=left, width=max(0.0, right - left), y=ground.top, height=height, class_="band")


def stroke(ground: Frame, line: Series, *, titled: bool) -> Markup:
    """A cleaned line in a frame: one path of all pieces between gaps; a piece of a single point is a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append((ground.across(number(x)), ground.down(number(y))))
    path = "".join(_path(piece, step=line.step) for piece in pieces if len(piece) > 1)
    dots = [
        element("circle", cx=piece[0][0], cy=piece[0][1], r=2.5, class_="alone") for piece in pieces if len(piece) == 1
    ]
    title = element("title", line.label) if titled else None
    return element("g", title, element("path", d=path) if path else None, dots, class_=f"{line.style} {line.paint}")


def _path(piece: list[tuple[float, float]], *, step: bool) -> str:
    x, y = piece[0]
    text = f"M{x:.1f} {y:.1f}"
    for x, y in piece[1:]:
        text += f"H{x:.1f}V{y:.1f}" if step else f"L{x:.1f} {y:.1f}"
    return text


def _readings(ground: Frame, lines: Sequence[Series], x_label: str) -> list[Markup]:
    """Invisible columns over the frame; each tells every line's value there."""
    places = sorted({number(x) for line in lines for x, y in line.points if y is not None})
    stride = max(1, -(-len(places) // READINGS))
    places = places[::-1][::stride][::-1]  # the last one stays
    at = [ground.across(x) for x in places]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(at)]
    starts, ends = [ground.left, *middles], [*middles, ground.width - ground.right]
    parts = []
    for x, start, end in zip(places, starts, ends, strict=True):
        told = [
            f"{line.label}: {significant(value, 4)}"
            for line in lines
            if line.label and (value := _near(line, x)) is not None
        ]
        title = element("title", "\n".join([f"{x_label} {significant(x, 4)}", *told]))
        column = {"x": start, "width": max(0.1, end - start), "y": ground.top}
        parts.append(element("rect", title, height=ground.height - ground.bottom - ground.top, class_="hit", **column))
    return parts


def _near(line: Series, x: float) -> float | None:
    """The line's value at the last point up to x, or at its first."""
    known = [(number(a), finite(b)) for a, b in line.points if b is not None]
    before = [b for a, b in known if a <= x]
    return before[-1] if before else None


def _describe(lines: Sequence[Series], x_label: str, y_label: str) -> str:
    told = []
    for line in [line for line in lines if line.label][:12]:
        values = [finite(y) for _, y in line.points if y is not None]
        if values:
            told.append(f"{line.label} from {significant(values[0])} to {significant(values[-1])}")
    return f"{y_label} over {x_label}: " + "; ".join(told) + "."
