"""The dot-and-interval chart: per row an interval with its middle, and every single observation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nmlearn.lab.report.charts import LETTER, WIDTH, drawing, nothing
from nmlearn.lab.report.markup import Markup, element
from nmlearn.lab.report.numbers import finite, fixed
from nmlearn.lab.report.palette import Look, mark
from nmlearn.lab.report.scales import Scale, tight

ROW = 38.0
TOP = 6.0
BOTTOM = 40.0


@dataclass(frozen=True)
class Interval:
    """A row.

    Attributes:
        look: label, colour and shape.
        middle: the mean; without it only the dots are drawn.
        low: lower end; without it (a single seed) there is no interval.
        high: upper end.
        dots: (value, what it is) of each observation.
    """

    look: Look
    middle: object
    low: object = None
    high: object = None
    dots: Sequence[tuple[object, str]] = field(default=())

    def values(self) -> list[float]:
        """Every finite number in the row."""
        every = [self.middle, self.low, self.high, *(value for value, _ in self.dots)]
        return [number for number in map(finite, every) if number is not None]


def interval_chart(
    name: str,
    title: str,
    rows: Sequence[Interval],
    *,
    x_label: str,
    x_values: Iterable[object] = (),
    noise: float | None = None,
) -> Markup:
    """Rows of intervals about a zero line.

    Args:
        name: makes the ids, once a page.
        title: for those who do not see the drawing.
        rows: from top to bottom.
        x_label: of the x axis, with its unit.
        x_values: further values that the axis must cover; charts that share them share their scale.
        noise: half the width of a grey band about zero.
    """
    values = [value for row in rows for value in row.values()]
    if not values:
        return nothing(name, title)
    scale = tight([0.0, *values, *x_values], count=5)
    left = max(len(row.look.label) for row in rows) * LETTER + 14
    height = TOP + ROW * len(rows) + BOTTOM
    place = _Place(scale, left)
    parts = _ground(place, height, x_label, noise)
    parts += [_row(place, row, TOP + ROW * (i + 0.5)) for i, row in enumerate(rows)]
    return drawing(name, title, _describe(rows), parts, WIDTH, height)


@dataclass(frozen=True)
class _Place:
    scale: Scale
    left: float
    right: float = 14.0

    def across(self, value: float) -> float:
        return self.left + (WIDTH - self.left - self.right) * self.scale.at(value)


def _ground(place: _Place, height: float, x_label: str, noise: float | None) -> list[Markup]:
    base = height - BOTTOM
    parts = [element("text", x_label, x=WIDTH - place.right, y=height - 5, class_="axis end")]
    if noise:
        left, right = place.across(-noise), place.across(noise)
        parts.append(element("rect", x=left, width=right - left, y=0.0, height=base, class_="band"))
    for tick in place.scale.ticks:
        at = place.across(tick)
        style = "zero" if abs(tick) < 1e-12 else "grid"
        parts.append(element("line", x1=at, x2=at, y1=0.0, y2=base + 4, class_=style))
        parts.append(element("text", place.scale.text(tick), x=at, y=base + 17, class_="tick middle"))
    return parts


def _row(place: _Place, row: Interval, y: float) -> Markup:
    """The interval on the row's line, the observations above it, so that neither hides the other."""
    parts = [element("text", row.look.label, x=0.0, y=y + 4, class_="name")]
    middle, low, high = finite(row.middle), finite(row.low), finite(row.high)
    if low is not None and high is not None:
        x1, x2 = place.across(low), place.across(high)
        parts.append(element("line", x1=x1, x2=x2, y1=y + 4, y2=y + 4, class_="whisker"))
    for value, title in row.dots:
        number = finite(value)
        if number is not None:
            tip = element("title", title)
            parts.append(element("circle", tip, cx=place.across(number), cy=y - 7, r=3.2, class_="seed"))
    if middle is not None:
        parts.append(mark(row.look.shape, place.across(middle), y + 4, 5.0, _told(row), class_="dot"))
    return element("g", parts, class_=row.look.paint)


def _told(row: Interval) -> str:
    text = f"{row.look.label}: mean {fixed(row.middle, 2, signed=True)}"
    if finite(row.low) is None or finite(row.high) is None:
        return text
    return f"{text}, 95 % interval {fixed(row.low, 2, signed=True)} to {fixed(row.high, 2, signed=True)}"


def _describe(rows: Sequence[Interval]) -> str:
    return "; ".join(_told(row) for row in rows if finite(row.middle) is not None) + "."
