"""The axes of every chart: a frame with two scales, ticks, labels, grid and titles.

Lines, intervals, points and the heat map only draw the inside. Colours come from CSS classes, so that one drawing
works in the light and the dark scheme.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup

from nmlearn.lab.report.scales import Rows, Scale
from nmlearn.lab.report.svg import WIDTH, Content, drawing, element

LETTER = 6.6  # upper bound for the width of a character in a label
LINE = 11.0  # height of a label


@dataclass(frozen=True)
class Frame:
    """The rectangle of the data, in drawing units, and its two scales.

    Attributes:
        x: scale from left to right.
        y: scale from bottom to top, or named rows from top to bottom.
        height: of the whole drawing; `top`, `right` and `bottom` are margins for labels.
        fluid: x is in per cent of the drawing's width, which is variable; the y labels are then a separate drawing.
    """

    x: Scale
    y: Scale | Rows
    height: float = 224.0
    top: float = 26.0
    right: float = 12.0
    bottom: float = 40.0
    fluid: bool = False

    @cached_property
    def gutter(self) -> float:
        """Room for the labels of the y axis."""
        return max(len(self.y.text(tick)) for tick in self.y.ticks) * LETTER + 10

    @property
    def left(self) -> float:
        """Where the x axis starts."""
        return 0.0 if self.fluid else self.gutter

    @property
    def end(self) -> float:
        """Where the x axis ends."""
        return 100.0 if self.fluid else WIDTH - self.right

    @property
    def base(self) -> float:
        """Where the y axis starts: the bottom of the rectangle."""
        return self.height - self.bottom

    def across(self, value: float) -> float:
        """x of a value."""
        return self.left + (self.end - self.left) * self.x.at(value)

    def down(self, value: float) -> float:
        """y of a value; it grows downwards."""
        return self.base - (self.base - self.top) * self.y.at(value)

    def band(self, low: float, high: float) -> Markup:
        """A shaded range of x."""
        at, size = self.across(low), self.across(high) - self.across(low)
        return element("rect", x=at, width=max(0.0, size), y=self.top, height=self.base - self.top, class_="band")

    def draw(
        self, title: str, description: str, x_label: str, y_label: str, parts: Content, under: Content = None
    ) -> Markup:
        """The whole chart.

        Args:
            title: for screen readers; so is `description`.
            x_label: title of the x axis, with its unit.
            y_label: title of the y axis, placed above it so that it is horizontal.
            parts: what is drawn inside.
            under: what is drawn below the grid.
        """
        heading = element("text", y_label, y=12.0) if y_label else None
        labels, width = self._labels(), None if self.fluid else WIDTH
        inside = [under, heading, self._grid(), self._ticks(x_label), None if self.fluid else labels, parts]
        whole = drawing(title, description, inside, width, self.height)
        if not self.fluid:
            return whole
        box = f"0 0 {self.gutter:g} {self.height:g}"
        names = element("svg", labels, width=self.gutter, height=self.height, viewBox=box, aria_hidden="true")
        return element("div", names, whole, class_="fluid")

    def _place(self, value: float) -> str | float:
        return f"{value:.2f}%" if self.fluid else value

    def _grid(self) -> list[Markup]:
        """Lines at the ticks of the value axis: y, or x where y has names."""
        if isinstance(self.y, Rows):
            places = [self._place(self.across(tick)) for tick in self.x.ticks]
            return [element("line", x1=at, x2=at, y1=self.top, y2=self.base + 4, class_="grid") for at in places]
        heights = [self.down(tick) for tick in self.y.ticks]
        return [element("line", x1=self.left, x2=self.end, y1=at, y2=at, class_="grid") for at in heights]

    def _ticks(self, x_label: str) -> list[Markup]:
        """Labels and title of the x axis. Labels at an end of the drawing are aligned to stay inside."""
        parts = [element("text", x_label, x=self._place(self.end), y=self.height - 5, class_="end")]
        for tick in self.x.ticks:
            at = self.x.at(tick)
            anchor = "end" if at > 0.97 else "middle" if at > 0.03 or not self.fluid else None
            text = self.x.text(tick)
            parts.append(element("text", text, x=self._place(self.across(tick)), y=self.base + 17, class_=anchor))
        return parts

    def _labels(self) -> list[Markup]:
        """Labels of the y axis; if rows are dense, only as many as are legible."""
        parts, last = [], math.inf
        style = "name end" if isinstance(self.y, Rows) else "end"
        for tick in self.y.ticks:
            at = self.down(tick)
            if abs(at - last) >= LINE:
                parts.append(element("text", self.y.text(tick), x=self.gutter - 6, y=at + 4, class_=style))
                last = at
        return parts
