"""One colour and one shape for each method, the same on every page.

The colours themselves are in style.css (`.m-lbc` and so on), once for light and once for dark; shapes say the same
without colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nmlearn.lab.report.markup import Markup, element


@dataclass(frozen=True)
class Look:
    """How a method appears: label, CSS class of its colour, shape of its marks."""

    label: str
    paint: str
    shape: str


KNOWN = {
    "dense": Look("Dense", "m-dense", "bar"),
    "oneshot": Look("One-shot", "m-oneshot", "square"),
    "gradual": Look("Gradual", "m-gradual", "up"),
    "srste": Look("SR-STE", "m-srste", "diamond"),
    "keep": Look("Fixed mask", "m-keep", "down"),
    "lbc": Look("LBC", "m-lbc", "circle"),
}
OTHERS = (("m-other1", "plus"), ("m-other2", "cross"), ("m-other3", "up"))


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method, known ones in their usual order first; others share three colours in turn."""
    names = list(dict.fromkeys(methods))
    found = {name: KNOWN[name] for name in KNOWN if name in names}
    for i, name in enumerate(name for name in names if name not in KNOWN):
        found[name] = Look(name, *OTHERS[i % len(OTHERS)])
    return found


def mark(shape: str, x: float, y: float, radius: float, title: str | None = None, **attributes: object) -> Markup:
    """The shape, centred, filled with the current colour; all shapes cover about the same area."""
    tip = element("title", title) if title else None
    if shape == "circle":
        return element("circle", tip, cx=x, cy=y, r=radius, fill="currentColor", **attributes)
    corners = [(x + radius * dx, y + radius * dy) for dx, dy in OUTLINES[shape]]
    return element(
        "polygon", tip, points=" ".join(f"{a:.1f},{b:.1f}" for a, b in corners), fill="currentColor", **attributes
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


def legend(looks: Iterable[Look]) -> Markup:
    """The methods with their shapes, for above a figure."""
    items = []
    for look in looks:
        sign = element(
            "svg", mark(look.shape, 8, 8, 5), viewBox="0 0 16 16", class_=f"sign {look.paint}", aria_hidden="true"
        )
        items.append(element("li", sign, look.label))
    return element("ul", items, class_="legend")
