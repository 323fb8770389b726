"""Builds SVG: every plain string is escaped; only `Markup` is inserted unchanged."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

WIDTH = 360.0
"""The width of a chart in drawing units: one fills a phone, three fit next to each other on a desktop."""

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")
"""Characters that JSON allows but HTML or UTF-8 does not."""

Content: TypeAlias = "str | Iterable[Content] | None"


def join(content: Content) -> Markup:
    """Nested content, flattened and escaped. None is nothing."""
    if content is None or isinstance(content, str):
        return escape(content if isinstance(content, Markup) else FORBIDDEN.sub("\ufffd", content or ""))
    return Markup("").join(map(join, content))


def element(name: str, *content: Content, **attributes: object) -> Markup:
    """`<name attributes>content</name>`.

    Attribute names lose a trailing underscore (``class_``); other underscores become hyphens (``stroke_width``). None
    omits the attribute; floats are rounded to one decimal.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    inside = join(content)
    return Markup(f"<{name}{written}>{inside}</{name}>" if inside else f"<{name}{written}/>")


def _attribute(key: str, value: object) -> str:
    text = f"{round(value, 1) + 0.0:.10g}" if isinstance(value, float) else value
    return f' {key.rstrip("_").replace("_", "-")}="{escape(text)}"'


def drawing(title: str, description: str, parts: Content, width: float | None, height: float) -> Markup:
    """An SVG with a title and a description. Without a width it scales to any."""
    size = {"width": "100%", "height": height} if width is None else {"viewBox": f"0 0 {width:g} {height:g}"}
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        parts,
        **size,
        role="img",
    )


def nothing(title: str) -> Markup:
    """The placeholder for a chart without data."""
    text = element("text", "Nothing recorded", x=WIDTH / 2, y=44.0, class_="middle")
    return drawing(title, "Nothing recorded.", text, WIDTH, 80.0)
