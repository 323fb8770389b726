"""The heat map: one row per layer, time from left to right, the more ink the more weights are left.

Its x coordinates are percentages, so it fills any width without scaling its text; the names stand in a drawing of
their own at the left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nmlearn.lab.report.markup import Markup, element
from nmlearn.lab.report.numbers import finite

TALL = 900.0  # drawing units for all rows, when there are many
ROW = (4.0, 17.0)  # least and largest height of a row
LETTER = 6.7
LONGEST = 24  # characters of a name
AXIS = 36.0
COLUMNS = 120  # moments in time at most
PALEST = 0.07  # ink of the lowest value: still a mark, not paper


@dataclass(frozen=True)
class HeatRow:
    """A row: its name, and a value from each x on until the next; None is a gap."""

    name: str
    cells: Sequence[tuple[float, object]]


def heat_map(
    name: str,
    title: str,
    rows: Sequence[HeatRow],
    *,
    end: float,
    until: float | None = None,
    x_label: str,
    text: Callable[[object], str],
    ticks: Sequence[float] = (),
) -> Markup:
    """Rows of coloured stretches from x = 0 to `end`.

    Args:
        name: makes the ids, once a page.
        title: for those who do not see the drawing.
        rows: from top to bottom.
        end: where the x axis ends; positive.
        until: where the last values stop, unless at the end.
        x_label: of the x axis.
        text: writes a value, in tooltips and the legend.
        ticks: x positions to label.
    """
    values = [number for row in rows for _, value in row.cells if (number := finite(value)) is not None]
    if not values:
        return element("p", "Nothing recorded.", class_="quiet")
    low, high = min(values), max(values)
    height = min(ROW[1], max(ROW[0], TALL / len(rows)))
    short = shorten([row.name for row in rows])
    width = max(map(len, short)) * LETTER + 8
    total = height * len(rows) + AXIS
    names = [
        element("text", label, element("title", row.name), x=width - 8, y=(i + 0.5) * height + 4, class_="tick end")
        for i, (label, row) in enumerate(zip(short, rows, strict=True))
        if i % max(1, round(11 / height + 0.4)) == 0
    ]
    drawn = [
        _row(row, _Grid(i * height, height, end, end if until is None else until, low, high), text, x_label)
        for i, row in enumerate(rows)
    ]
    heading = element("title", title, id=f"g-{name}-title"), element("desc", _describe(rows, text), id=f"g-{name}-text")
    cells = element(
        "svg",
        heading,
        drawn,
        _axis(ticks, end, height * len(rows), x_label),
        height=total,
        width="100%",
        role="img",
        aria_labelledby=f"g-{name}-title",
        aria_describedby=f"g-{name}-text",
    )
    sign = element("svg", names, width=width, height=total, viewBox=f"0 0 {width:g} {total:g}", aria_hidden="true")
    return element("div", _legend(low, high, text), element("div", sign, cells, class_="heat"))


def shorten(names: Sequence[str]) -> list[str]:
    """Names lose a `.weight` that all have; long ones what all share in front, and then their middle."""
    if all(name.endswith(".weight") for name in names):
        names = [name.removesuffix(".weight") for name in names]
    if max(map(len, names), default=0) > LONGEST and len(names) > 1:
        parts = [name.split(".") for name in names]
        # zip ends at the shortest name, of which the last part stays
        same = [len(set(level)) == 1 for level in zip(*(name[:-1] for name in parts), strict=False)]
        names = [".".join(name[[*same, False].index(False) :]) for name in parts]
    return [name if len(name) <= LONGEST else f"{name[:8]}…{name[-(LONGEST - 9) :]}" for name in names]


def _ink(value: float, low: float, high: float) -> float:
    """Opacity in steps of 0.02: stretches that look alike become one."""
    share = (value - low) / (high - low) if high > low else 1.0
    return round((PALEST + (1 - PALEST) * share) * 50) / 50


@dataclass(frozen=True)
class _Grid:
    """Where a row lies, where the axis and the data end, which values have least and most ink."""

    top: float
    height: float
    end: float
    until: float
    low: float
    high: float


def _row(row: HeatRow, grid: _Grid, text: Callable[[object], str], x_label: str) -> list[Markup]:
    stride = max(1, -(-len(row.cells) // COLUMNS))
    cells = [*row.cells[:-1:stride], *row.cells[-1:]]
    stretches: list[tuple[float, float | None, object]] = []
    for x, value in cells:
        number = finite(value)
        ink = None if number is None else _ink(number, grid.low, grid.high)
        if not stretches or stretches[-1][1] != ink:
            stretches.append((min(x, grid.end), ink, value))
    parts = []
    stops = [start for start, _, _ in stretches[1:]] + [min(grid.until, grid.end)]
    for (start, ink, value), stop in zip(stretches, stops, strict=False):  # no stretch, no stop
        if ink is not None and stop > start:
            tip = element("title", f"{row.name}\n{x_label} {start:.4g} to {stop:.4g}: {text(value)}")
            place = {"x": f"{100 * start / grid.end:.2f}%", "width": f"{100 * (stop - start) / grid.end:.2f}%"}
            parts.append(
                element("rect", tip, y=grid.top, height=grid.height - 1, fill_opacity=ink, class_="cell", **place)
            )
    return parts


def _axis(ticks: Sequence[float], end: float, top: float, x_label: str) -> list[Markup]:
    parts = [element("text", x_label, x="100%", y=top + AXIS - 5, class_="axis end")]
    for tick in ticks:
        anchor = "start" if tick <= 0 else "end" if tick >= end else "middle"
        parts.append(element("text", f"{tick:.4g}", x=f"{100 * tick / end:.2f}%", y=top + 14, class_=f"tick {anchor}"))
    return parts


def _legend(low: float, high: float, text: Callable[[object], str]) -> Markup:
    steps = 6 if high > low else 1
    inks = [_ink(low + (high - low) * i / max(1, steps - 1), low, high) for i in range(steps)]
    swatches = [
        element("rect", x=i * 18, y=0, width=17, height=12, fill_opacity=ink, class_="cell")
        for i, ink in enumerate(inks)
    ]
    ramp = element("svg", swatches, width=18 * steps, height=12, viewBox=f"0 0 {18 * steps} 12", aria_hidden="true")
    return element("p", text(low), " ", ramp, " ", text(high) if high > low else None, class_="ramp")


def _describe(rows: Sequence[HeatRow], text: Callable[[object], str]) -> str:
    told = [f"{row.name} ends at {text(row.cells[-1][1])}" for row in rows[:60] if row.cells]
    return "; ".join(told) + "."
