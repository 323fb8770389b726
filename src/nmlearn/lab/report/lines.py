"""The line chart: lines over a common x axis. A value that is not a number is a gap."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from nmlearn.lab.report.axes import Frame
from nmlearn.lab.report.numbers import finite, significant
from nmlearn.lab.report.scales import course, linear, logarithmic
from nmlearn.lab.report.svg import element, nothing

READINGS = 30  # maximum number of hover columns in a chart
CLOSE = 0.25  # maximum distance of a line from a recorded point, in drawing units: below a third of its width


@dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        label: its name in the tooltip; a line without one does not appear there.
        points: (x, y), increasing in x; a y that is None or not finite is a gap.
        paint: CSS class of its colour.
        style: CSS class of its stroke: "line", "thin" (a single run), "dashed", "dotted".
        step: whether a value holds until the next one.
    """

    label: str
    points: Sequence[tuple[object, object]]
    paint: str = "ink"
    style: str = "line"
    step: bool = False


@dataclass(frozen=True)
class XAxis:
    """The x axis of a line chart.

    Attributes:
        label: its title, with the unit.
        values: further values that it must cover.
        band: a shaded range.
    """

    label: str
    values: tuple[float, ...] = ()
    band: tuple[float, float] | None = None


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: XAxis,
    y_label: str,
    y_values: Iterable[object] = (),
    log: bool = False,
    readings: bool = True,
) -> Markup:
    """Lines over a common x axis, with a hover column at each x.

    Args:
        title: for screen readers.
        series: the lines; later ones lie on top.
        x: the x axis.
        y_label: of the y axis, with its unit.
        y_values: further values that the y axis must cover.
        log: logarithmic y axis; values that are not positive are gaps.
        readings: whether to add the hover columns; without them, each line carries its label.
    """
    scale = logarithmic if log else linear
    drawn = [clean(line, scale(()).shows) for line in series]
    points = [point for line in drawn for point in line.points if point[1] is not None]
    if not points:
        return nothing(title)
    frame = Frame(course([*x.values, *(at for at, _ in points)]), scale([*y_values, *(y for _, y in points)]))
    parts = [stroke(frame, line, titled=not readings) for line in drawn]
    if readings:
        parts.append(_readings(frame, drawn, x.label))
    told = _describe(drawn, x.label, y_label)
    return frame.draw(title, told, x.label, y_label, parts, frame.band(*x.band) if x.band else None)


def number(value: object) -> float:
    """`value` as a float; the caller knows that it is finite."""
    found = finite(value)
    return 0.0 if found is None else found


def clean(line: Series, shows: Callable[[object], bool]) -> Series:
    """The line with every y a float or None, and without points that have no x."""
    points = [(finite(x), finite(y) if shows(y) else None) for x, y in line.points]
    return replace(line, points=[point for point in points if point[0] is not None])


def stroke(frame: Frame, line: Series, *, titled: bool) -> Markup:
    """A cleaned line in a frame: one path for all pieces between gaps; a piece with a single point is a dot."""
    pieces = []
    for known, piece in itertools.groupby(line.points, lambda point: point[1] is not None):
        if known:
            pieces.append([(frame.across(number(x)), frame.down(number(y))) for x, y in piece])
    path = "".join(path_of(piece, step=line.step) for piece in pieces if len(piece) > 1)
    dots = [element("circle", cx=piece[0][0], cy=piece[0][1], r=2.5) for piece in pieces if len(piece) == 1]
    title = element("title", line.label) if titled else None
    return element("g", title, element("path", d=path) if path else None, dots, class_=f"{line.style} {line.paint}")


def path_of(places: Sequence[tuple[float, float]], *, step: bool) -> str:
    """The path through the points, shortened where that makes no visible difference."""
    kept = _steps(places) if step else _thinned(places)
    written = [(f"{round(x, 1) + 0.0:g}", f"{round(y, 1) + 0.0:g}") for x, y in kept]
    (x, y), *rest = written
    return f"M{x} {y}" + "".join(f"H{x}V{y}" if step else f"L{x} {y}" for x, y in rest)


def _steps(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Both ends, and every point where the height changes."""
    kept = [places[0]]
    for place in places[1:-1]:
        if abs(place[1] - kept[-1][1]) >= CLOSE:
            kept.append(place)
    return [*kept, places[-1]]


def _thinned(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Ramer-Douglas-Peucker: the straight line between two kept points is within CLOSE of all points between."""
    kept, open_ends = {0, len(places) - 1}, [(0, len(places) - 1)]
    while open_ends:
        first, last = open_ends.pop()
        (x, y), (u, v) = places[first], places[last]
        length = math.hypot(u - x, v - y) or 1.0
        misses = [abs((v - y) * (a - x) - (u - x) * (b - y)) / length for a, b in places[first + 1 : last]]
        if max(misses, default=0.0) > CLOSE:
            worst = first + 1 + misses.index(max(misses))
            kept.add(worst)
            open_ends += [(first, worst), (worst, last)]
    return [places[i] for i in sorted(kept)]


def _readings(frame: Frame, lines: Sequence[Series], x_label: str) -> Markup:
    """Invisible hover columns that show every line's value; equal neighbours are merged."""
    places = sorted({number(x) for line in lines for x, y in line.points if y is not None})
    places = places[:: -max(1, -(-len(places) // READINGS))][::-1]  # keeps the last one
    groups = [(told, list(column)) for told, column in itertools.groupby(places, lambda x: _told(lines, x))]
    borders = [(frame.across(a[-1]) + frame.across(b[0])) / 2 for (_, a), (_, b) in itertools.pairwise(groups)]
    columns = []
    for (told, xs), start, end in zip(groups, [frame.left, *borders], [*borders, frame.end], strict=True):
        ends = dict.fromkeys([significant(xs[0], 4), significant(xs[-1], 4)])
        tip = element("title", "\n".join([f"{x_label} {' to '.join(ends)}", *told]))
        columns.append(element("rect", tip, x=start, width=max(0.1, end - start)))
    return element("svg", columns, class_="readings", y=frame.top, height=frame.base - frame.top)


def _told(lines: Sequence[Series], x: float) -> list[str]:
    """The values of all labelled lines at x."""
    known = [(line.label, value) for line in lines if line.label and (value := _near(line, x)) is not None]
    return [f"{label}: {significant(value, 4)}" for label, value in known]


def _near(line: Series, x: float) -> float | None:
    """The line's value at the last point up to x."""
    return next((finite(y) for at, y in reversed(line.points) if y is not None and number(at) <= x), None)


def _describe(lines: Sequence[Series], x_label: str, y_label: str) -> str:
    told = []
    for line in [line for line in lines if line.label][:12]:
        values = [y for _, y in line.points if y is not None]
        if values:
            told.append(f"{line.label} from {significant(values[0])} to {significant(values[-1])}")
    return f"{y_label} over {x_label}: " + "; ".join(told) + "."
