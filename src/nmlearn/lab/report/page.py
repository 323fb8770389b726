"""Renders plain data to one HTML file with the templates in templates/: escaped and self-contained."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nmlearn.lab.report import numbers
from nmlearn.lab.report.lines import Series
from nmlearn.lab.report.svg import FORBIDDEN


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, a note on how to read it, and the lines whose strokes need a key."""

    heading: str
    chart: Markup
    note: str = ""
    key: Sequence[Series] = ()


def render(template: str, **data: object) -> str:
    """The whole file.

    Args:
        template: run.html or comparison.html. It has a block for each section, named like it.
        data: the template's variables; always `title`, `kicker`, `notices`, `source` (the origin of the numbers) and
            `sections` (name -> heading, in order).
    """
    style, script = _resource("style.css"), _resource("script.js")
    html = (
        _environment().get_template(template).render(style=style, script=script, policy=_policy(style, script), **data)
    )
    return FORBIDDEN.sub("\ufffd", html)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("nmlearn.lab.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals["numbers"] = numbers
    return environment


def _resource(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))


def _policy(style: str, script: str) -> str:
    """Allows exactly this style and this script, and no requests: even injected markup could not run."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
