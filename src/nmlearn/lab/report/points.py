"""The point chart: marks at (x, y), labelled where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from nmlearn.lab.report.axes import LETTER, LINE, Frame
from nmlearn.lab.report.lines import Series, clean, number, stroke
from nmlearn.lab.report.numbers import finite
from nmlearn.lab.report.scales import tight
from nmlearn.lab.report.styles import mark
from nmlearn.lab.report.svg import WIDTH, element, nothing

TALL = 290.0
RADIUS = 4.5


@dataclass(frozen=True)
class Dot:
    """A mark, with an optional text next to it."""

    x: object
    y: object
    title: str
    paint: str = "ink"
    shape: str = "circle"
    text: str = ""


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)


def point_chart(
    title: str,
    dots: Sequence[Dot],
    *,
    x_label: str,
    y_label: str,
    paths: Sequence[Series] = (),
    level: float | None = None,
) -> Markup:
    """Marks at (x, y), with thin lines that join related ones.

    Args:
        title: for screen readers.
        dots: the marks; those whose x or y is not a number are omitted.
        x_label: of the x axis, with its unit.
        y_label: of the y axis, with its unit.
        paths: lines under the marks.
        level: y of a horizontal dashed line.
    """
    shown = [dot for dot in dots if finite(dot.x) is not None and finite(dot.y) is not None]
    if not shown:
        return nothing(title)
    drawn = [clean(path, lambda value: finite(value) is not None) for path in paths]
    every = [point for path in drawn for point in path.points]
    x = tight([*(dot.x for dot in shown), *(x for x, _ in every)], margin=0.06)
    y = tight([level, *(dot.y for dot in shown), *(y for _, y in every)], margin=0.06)
    frame = Frame(x, y, height=TALL)
    parts = [stroke(frame, path, titled=False) for path in drawn]
    if level is not None:
        at = frame.down(level)
        parts.insert(0, element("line", x1=frame.left, x2=frame.end, y1=at, y2=at, class_="level"))
    texts = _texts(frame, shown, level)
    parts += [_dot(frame, dot, text) for dot, text in zip(shown, texts, strict=True)]
    return frame.draw(title, "; ".join(dot.title for dot in shown) + ".", x_label, y_label, parts)


def _dot(frame: Frame, dot: Dot, text: Markup | None) -> Markup:
    place = frame.across(number(dot.x)), frame.down(number(dot.y))
    return element("g", text, mark(dot.shape, *place, RADIUS, dot.title), class_=dot.paint)


def _texts(frame: Frame, dots: Sequence[Dot], level: float | None) -> list[Markup | None]:
    """Each text at the first of four sides where it overlaps nothing; otherwise it is only in the tooltip."""
    places = [(frame.across(number(dot.x)), frame.down(number(dot.y))) for dot in dots]
    taken = [_Box(x - RADIUS - 1, y - RADIUS - 1, x + RADIUS + 1, y + RADIUS + 1) for x, y in places]
    if level is not None:
        taken.append(_Box(0.0, frame.down(level) - 1, WIDTH, frame.down(level) + 1))
    texts: list[Markup | None] = []
    for (x, y), dot in zip(places, dots, strict=True):
        found = next((box for box in _sides(x, y, dot.text) if _free(frame, box, taken)), None) if dot.text else None
        texts.append(None)
        if found is not None:
            taken.append(found)
            texts[-1] = element("text", dot.text, x=found.left + 1, y=found.bottom - 2)
    return texts


def _sides(x: float, y: float, text: str) -> list[_Box]:
    """Right of, left of, above and below a mark."""
    width, near = len(text) * LETTER + 2, RADIUS + 3
    middle = y - LINE / 2
    corners = [
        (x + near, middle),
        (x - near - width, middle),
        (x - width / 2, y - near - LINE),
        (x - width / 2, y + near),
    ]
    return [_Box(left, top, left + width, top + LINE) for left, top in corners]


def _free(frame: Frame, box: _Box, taken: Sequence[_Box]) -> bool:
    inside = frame.left <= box.left and box.right <= WIDTH and frame.top <= box.top
    return inside and box.bottom <= frame.base and not any(box.meets(other) for other in taken)
