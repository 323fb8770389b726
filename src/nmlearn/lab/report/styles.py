"""One colour and one shape per method. Both are derived from its name, so a new method needs no entry here.

The colours themselves are in style.css (`.m-0` and so on), once for light and once for dark; shapes distinguish
methods without colour.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from nmlearn.lab.report.svg import element

REFERENCE = "dense"
COLOURS = 10
SHAPES = ("square", "down", "up", "circle", "plus", "diamond", "cross")


@dataclass(frozen=True)
class MethodStyle:
    """The appearance of a method: label, CSS class of its colour, shape of its marks."""

    label: str
    paint: str
    shape: str

    @property
    def sign(self) -> Markup:
        """The mark as a small image, for legends and tables."""
        inside = mark(self.shape, 8.0, 8.0, 5.0)
        return element("svg", inside, viewBox="0 0 16 16", class_=f"sign {self.paint}", aria_hidden="true")


def method_styles(methods: Iterable[str]) -> dict[str, MethodStyle]:
    """A style for each method: neutral dense first, the others in the given order.

    A checksum of the name selects the colour, so that it is the same on every page. If two methods on a page collide,
    the second in alphabetical order gets the next free colour. When all are in use, they are reused with other shapes.
    """
    names = list(dict.fromkeys(methods))
    taken: dict[int, str] = {}
    for name in sorted(set(names) - {REFERENCE}):
        first = zlib.crc32(name.encode(errors="replace"))
        places = (COLOURS * turn + (first + i) % COLOURS for turn in itertools.count() for i in range(COLOURS))
        taken[next(place for place in places if place not in taken)] = name
    found = {REFERENCE: MethodStyle(REFERENCE, "m-dense", "bar")}
    for place, name in taken.items():
        turn, colour = divmod(place, COLOURS)
        found[name] = MethodStyle(name, f"m-{colour}", SHAPES[(colour + turn) % len(SHAPES)])
    return {name: found[name] for name in sorted(names, key=lambda name: name != REFERENCE)}


def mark(shape: str, x: float, y: float, radius: float, title: str | None = None) -> Markup:
    """The shape, centred, in the current colour; all shapes have about the same area."""
    tip = element("title", title) if title else None
    if shape == "circle":
        return element("circle", tip, cx=x, cy=y, r=radius, class_="mark")
    corners = [(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[shape]]
    return element(
        "polygon", tip, points=" ".join(f"{round(a, 1):g},{round(b, 1):g}" for a, b in corners), class_="mark"
    )


def _star(turn: float) -> list[tuple[float, float]]:
    """A plus sign as a polygon, turned by `turn` radians."""
    arm, half = 1.15, 0.38
    quarter = [(half, -arm), (half, -half), (arm, -half)]
    corners = []
    for k in range(4):
        c, s = math.cos(k * math.pi / 2 + turn), math.sin(k * math.pi / 2 + turn)
        corners += [(c * a - s * b, s * a + c * b) for a, b in quarter]
    return corners


OUTLINES = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)],
    "up": [(0.0, -1.2), (1.15, 0.9), (-1.15, 0.9)],
    "down": [(0.0, 1.2), (1.15, -0.9), (-1.15, -0.9)],
    "bar": [(-1.3, -0.5), (1.3, -0.5), (1.3, 0.5), (-1.3, 0.5)],
    "plus": _star(0.0),
    "cross": _star(math.pi / 4),
}
