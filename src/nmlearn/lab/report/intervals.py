"""The interval chart: one row per method with its mean, its interval and all observations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from nmlearn.lab.report.axes import Frame
from nmlearn.lab.report.numbers import finite, fixed
from nmlearn.lab.report.scales import Rows, tight
from nmlearn.lab.report.styles import MethodStyle, mark
from nmlearn.lab.report.svg import element, nothing

ROW = 40.0
TOP = 6.0
RADIUS = 2.8  # of an observation


@dataclass(frozen=True)
class Interval:
    """A row.

    Attributes:
        style: label, colour and shape.
        middle: the mean; None draws only the dots.
        low: lower end; None (for a single seed) means no interval.
        high: upper end.
        dots: (value, description) of each observation.
    """

    style: MethodStyle
    middle: object
    low: object = None
    high: object = None
    dots: Sequence[tuple[object, str]] = field(default=())

    def values(self) -> list[float]:
        """Every finite number in the row."""
        every = [self.middle, self.low, self.high, *(value for value, _ in self.dots)]
        return [number for number in map(finite, every) if number is not None]

    @property
    def ends(self) -> tuple[float, float] | None:
        """The ends of the interval, if both are known."""
        low, high = finite(self.low), finite(self.high)
        return (low, high) if low is not None and high is not None else None

    @property
    def told(self) -> str:
        """The row as text."""
        middle = fixed(self.middle, 2, signed=True)
        if self.ends is None:
            return f"{self.style.label}: {middle}"
        low, high = (fixed(end, 2, signed=True) for end in self.ends)
        return f"{self.style.label}: mean {middle}, 95 % interval {low} to {high}"


def interval_chart(
    title: str,
    rows: Sequence[Interval],
    *,
    x_label: str,
    x_values: Iterable[object] = (),
    noise: float | None = None,
) -> Markup:
    """Rows of intervals around a zero line.

    Args:
        title: for screen readers.
        rows: from top to bottom.
        x_label: of the x axis, with its unit.
        x_values: further values that the axis must cover; charts with the same values share a scale.
        noise: half the width of a grey band around zero.
    """
    values = [value for row in rows for value in row.values()]
    if not values:
        return nothing(title)
    names = Rows(tuple(row.style.label for row in rows))
    frame = Frame(tight([0.0, *values, *x_values]), names, height=TOP + ROW * len(rows) + Frame.bottom, top=TOP)
    zero = frame.across(0.0)
    parts = [element("line", x1=zero, x2=zero, y1=TOP, y2=frame.base + 4, class_="zero")]
    parts += [_row(frame, row, frame.down(i)) for i, row in enumerate(rows)]
    told = "; ".join(row.told for row in rows if finite(row.middle) is not None) + "."
    return frame.draw(title, told, x_label, "", parts, frame.band(-noise, noise) if noise else None)


def _row(frame: Frame, row: Interval, y: float) -> Markup:
    """The interval in the lower half of the row, the observations above it: neither hides the other."""
    parts, middle = [], finite(row.middle)
    dots = sorted((number, title) for value, title in row.dots if (number := finite(value)) is not None)
    if len(dots) == 1 and middle is not None:  # the mean's mark shows it
        dots = []
    line = y + 8 if dots else y
    if row.ends:
        x1, x2 = map(frame.across, row.ends)
        parts.append(element("line", x1=x1, x2=x2, y1=line, y2=line, class_="whisker"))
    lanes = [-1e9] * 3  # x of the last dot in each lane: a dot goes to the first lane where it hides none
    for value, title in dots:
        x = frame.across(value)
        lane = next((i for i, last in enumerate(lanes) if x - last > 2 * RADIUS), lanes.index(min(lanes)))
        lanes[lane] = x
        tip = element("title", title)
        parts.append(element("circle", tip, cx=x, cy=y - 2 - 6 * lane, r=RADIUS, class_="seed"))
    if middle is not None:
        parts.append(mark(row.style.shape, frame.across(middle), line, 5.0, row.told))
    return element("g", parts, class_=row.style.paint)
