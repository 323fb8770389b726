"""The HTML file around the content: one file, nothing fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from nmlearn.lab.report.markup import Content, Markup, element


@dataclass(frozen=True)
class Section:
    """A part of the page under a second-level heading."""

    name: str
    heading: str
    content: Content


def page(title: str, kicker: str, lead: Content, sections: Sequence[Section], source: str) -> str:
    """The whole file. `title` is the headline, `lead` what follows it, `source` where the numbers lie."""
    links = [element("a", section.heading, href=f"#{section.name}") for section in sections]
    parts = [
        element("header", element("p", kicker, class_="kicker"), element("h1", title), lead),
        element("nav", links, aria_label="Sections"),
        element("main", [_section(section) for section in sections]),
        element("footer", f"Made by nmlearn report from {source}. This file holds everything it shows."),
    ]
    style, script = _resource("style.css"), _resource("script.js")
    head = [
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        element("title", f"{title} · nmlearn"),
        element("style", style),
    ]
    body = element("body", parts, element("script", script))
    return "<!doctype html>\n" + element("html", element("head", head), body, lang="en") + "\n"


def figure(heading: str, note: Content, picture: Markup) -> Markup:
    """A picture under its heading and a sentence that says how to read it."""
    caption = element("figcaption", element("h3", heading), element("p", note) if note else None)
    return element("figure", caption, picture)


def panels(*figures: Content, two: bool = False) -> Markup:
    """Figures side by side, as many as fit."""
    return element("div", figures, class_="panels two" if two else "panels")


def facts(items: Sequence[tuple[str, str]]) -> Markup:
    """The key figures, in a row."""
    return element(
        "dl", [element("div", element("dt", key), element("dd", value)) for key, value in items], class_="figures"
    )


def _section(section: Section) -> Markup:
    heading = element("h2", section.heading, id=f"h-{section.name}")
    return element("section", heading, section.content, id=section.name, aria_labelledby=f"h-{section.name}")


def _resource(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """Exactly this style and this script, and no request: even text that slipped in as markup could not run."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
