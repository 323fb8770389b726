"""The heat map: one row per layer, time from left to right; the stronger the colour, the more weights are kept.

It fills any width without scaling its text, because its x coordinates are percentages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nmlearn.lab.report.axes import Frame
from nmlearn.lab.report.numbers import finite
from nmlearn.lab.report.scales import Rows, course
from nmlearn.lab.report.svg import element

TALL = 900.0  # total height in drawing units when there are many rows
ROW = (4.0, 17.0)  # smallest and largest height of a row
LONGEST = 24  # characters in a name
COLUMNS = 120  # maximum number of time points
PALEST = 0.07  # opacity of the lowest value: still visible
SHADES = 10  # steps of opacity: adjacent stretches of one step are merged


@dataclass(frozen=True)
class HeatRow:
    """A row: its name, and values that each hold from their x to the next; None is a gap."""

    name: str
    cells: Sequence[tuple[float, object]]


def heat_map(
    title: str,
    rows: Sequence[HeatRow],
    *,
    end: float,
    until: float | None = None,
    x_label: str,
    text: Callable[[object], str],
) -> Markup:
    """Rows of coloured stretches from x = 0 to `end`.

    Args:
        title: for screen readers.
        rows: from top to bottom.
        end: where the x axis ends; positive.
        until: where the last values end (default: at the end).
        x_label: of the x axis.
        text: formats a value, for tooltips and the legend.
    """
    values = [number for row in rows for _, value in row.cells if (number := finite(value)) is not None]
    if not values:
        return element("p", "Nothing recorded.", class_="quiet")
    ink = _Ink(min(values), max(values), text)
    height = min(ROW[1], max(ROW[0], TALL / len(rows)))
    names = Rows(tuple(shorten([row.name for row in rows])))
    frame = Frame(course([0.0, end]), names, height=height * len(rows) + Frame.bottom, top=0.0, fluid=True)
    stop = end if until is None else min(until, end)
    drawn = []
    for i, row in enumerate(rows):
        cells = [element("title", row.name), _cells(row, frame, stop, ink, x_label)]
        drawn.append(element("svg", cells, y=i * height, height=height - 1, class_="row"))
    told = "; ".join(f"{row.name} ends at {text(row.cells[-1][1])}" for row in rows[:60] if row.cells) + "."
    return element("div", ink.legend(), frame.draw(title, told, x_label, "", drawn))


def shorten(names: Sequence[str]) -> list[str]:
    """Shortened names: without a common `.weight`; long ones also without a common prefix, then without the middle."""
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    if max(map(len, names), default=0) > LONGEST and len(names) > 1:
        parts = [name.split(".") for name in names]
        # zip ends at the shortest name, whose last part is kept
        same = [len(set(level)) == 1 for level in zip(*(name[:-1] for name in parts), strict=False)]
        names = [".".join(name[[*same, False].index(False) :]) for name in parts]
    return [name if len(name) <= LONGEST else f"{name[:8]}…{name[-(LONGEST - 9) :]}" for name in names]


@dataclass(frozen=True)
class _Ink:
    """The opacity scale of the values, with its labels."""

    low: float
    high: float
    text: Callable[[object], str]

    def of(self, value: object) -> float | None:
        number = finite(value)
        if number is None:
            return None
        share = (number - self.low) / (self.high - self.low) if self.high > self.low else 1.0
        return round((PALEST + (1 - PALEST) * share) * SHADES) / SHADES

    def legend(self) -> Markup:
        steps = 6 if self.high > self.low else 1
        shades = [self.of(self.low + (self.high - self.low) * i / max(1, steps - 1)) for i in range(steps)]
        swatches = [
            element("rect", x=i * 18, width=17, height=12, fill_opacity=shade) for i, shade in enumerate(shades)
        ]
        ramp = element("svg", swatches, width=18 * steps, height=12, class_="row", aria_hidden="true")
        return element("p", self.text(self.low), ramp, self.text(self.high) if steps > 1 else None, class_="ramp")


def _cells(row: HeatRow, frame: Frame, until: float, ink: _Ink, x_label: str) -> list[Markup]:
    stride = max(1, -(-len(row.cells) // COLUMNS))
    stretches: list[tuple[float, float | None, object]] = []
    for x, value in [*row.cells[:-1:stride], *row.cells[-1:]]:
        shade = ink.of(value)
        if not stretches or stretches[-1][1] != shade:
            stretches.append((min(x, until), shade, value))
    stops = [start for start, _, _ in stretches[1:]] + [until]
    parts = []
    for (start, shade, value), stop in zip(stretches, stops, strict=False):  # an empty row still has one stop
        if shade is not None and stop > start:
            tip = element("title", f"{x_label} {start:.3g} to {stop:.3g}: {ink.text(value)}")
            at, size = frame.across(start), frame.across(stop) - frame.across(start)
            parts.append(element("rect", tip, x=f"{at:.2f}%", width=f"{size:.2f}%", fill_opacity=shade))
    return parts
