"""HTML and SVG as values: every plain string is escaped, only `Markup` goes in as it is.

One function makes elements, so that text from a file cannot become markup by being forgotten somewhere.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")  # no HTML, or no UTF-8: JSON can hold them
VOID = frozenset({"br", "col", "hr", "meta", "wbr"})


class Markup(str):
    """Text that is already HTML. Plain `str` is not, and is escaped wherever it is put in."""

    __slots__ = ()


Content: TypeAlias = "str | Iterable[Content] | None"


def escape(text: object) -> Markup:
    """`text` as HTML, safe as content and inside double quotes. `Markup` comes back unchanged."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(FORBIDDEN.sub("\ufffd", str(text)), quote=True))


def join(content: Content) -> Markup:
    """Nested content, flattened and escaped. None is nothing."""
    if content is None:
        return Markup()
    if isinstance(content, str):
        return escape(content)
    return Markup("".join(join(part) for part in content))


def element(name: str, *content: Content, **attributes: object) -> Markup:
    """`<name attributes>content</name>`.

    Attribute names lose a trailing underscore (``class_``) and write others as hyphens (``stroke_width``). None and
    False leave the attribute out, True writes it bare, floats are rounded to two decimals.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def _attribute(key: str, value: object) -> str:
    key = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    if isinstance(value, float):
        value = f"{value:.2f}".rstrip("0").rstrip(".")
    return f' {key}="{escape(value)}"'


@dataclass(frozen=True)
class Column:
    """A table's column: its heading, how its cells look ("", "number": right-aligned, "wide": may wrap), its unit."""

    label: str
    look: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Wide:
    """A cell that takes the place of several."""

    content: Content
    columns: int


Row: TypeAlias = "Sequence[Content | Wide]"


def table(
    name: str, caption: Content, columns: Sequence[Column], groups: Sequence[tuple[str, Sequence[Row]]]
) -> Markup:
    """A table that scrolls inside its own box. The first cell of a row is its heading.

    Args:
        name: makes the caption's id; once a page.
        caption: what the table shows.
        columns: headings.
        groups: (heading or "", rows) pairs, each a `tbody`.
    """
    head = element("tr", [_heading(column) for column in columns])
    bodies = [_body(heading, rows, columns) for heading, rows in groups]
    label = f"t-{name}"
    whole = element("table", element("caption", element("span", caption), id=label), element("thead", head), bodies)
    return element("div", whole, class_="scroll", role="region", aria_labelledby=label, tabindex="0")


def _heading(column: Column) -> Markup:
    unit = element("span", column.unit, class_="unit") if column.unit else None
    return element("th", column.label, " " if unit else None, unit, scope="col", class_=column.look or None)


def _body(heading: str, rows: Sequence[Row], columns: Sequence[Column]) -> Markup:
    top = element("tr", element("th", heading, colspan=len(columns), scope="rowgroup")) if heading else None
    return element("tbody", top, [_row(row, columns) for row in rows])


def _row(row: Row, columns: Sequence[Column]) -> Markup:
    cells: list[Markup] = []
    at = 0
    for cell in row:
        if isinstance(cell, Wide):
            cells.append(element("td", cell.content, colspan=cell.columns, class_="wide"))
            at += cell.columns
        else:
            name, look = ("td", columns[at].look) if at else ("th", "")
            cells.append(element(name, cell, scope=None if at else "row", class_=look or None))
            at += 1
    return element("tr", cells)


def pairs(name: str, caption: str, items: Iterable[tuple[str, str]]) -> Markup:
    """A two-column table of settings."""
    rows = [(key, element("code", value)) for key, value in items]
    return table(name, caption, [Column("Key"), Column("Value", "wide")], [("", rows)])
