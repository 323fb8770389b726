"""Terminal output: one console, and how errors, tables and numbers are shown."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nmlearn.cli.escapes import LONGEST_NAME, plain
from nmlearn.errors import NMLearnError


class _Console(Console):
    """A console that escapes all plain text given to it: lines, the cells and headings of tables, titles."""

    def render_str(self, text: str, **looks: Any) -> Text:
        """The text as one line, escaped."""
        return super().render_str(plain(text), **looks)


# Names of weights, files and options may hold square brackets and colons: these are no markup and no emoji.
out = _Console(highlight=False, markup=False, emoji=False)
err = _Console(stderr=True, highlight=False, markup=False, emoji=False)
DASH = "–"
LONGEST_PART = 2000  # characters shown of a part of an error


def show_error(error: NMLearnError) -> None:
    """An error's four parts, in a panel on standard error."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for part, text in (("where", error.where), ("given", error.given)):
        grid.add_row(part, Text(plain(str(text), LONGEST_PART)))
    for part, text in (("wrong", error.wrong), ("to do", error.fix)):  # tables of ours have lines
        grid.add_row(part, Text(plain(str(text), LONGEST_PART, keep="\n")))
    err.print(Panel(grid, title=type(error).__name__, title_align="left", border_style="red", expand=False))


def name(text: str) -> str:
    """A name from a file, escaped, and cut off where it is very long."""
    return plain(text, LONGEST_NAME)


def say(style: str, word: str, rest: str = "", width: int = 0) -> Text:
    """A styled word followed by text, escaped; ``width`` pads the word."""
    return Text.assemble((plain(word).ljust(width), style), plain(rest))


def table(*columns: str, right: str = "") -> Table:
    """An empty table.

    Args:
        columns: headings.
        right: the headings of right-aligned (numeric) columns, separated by commas.
    """
    numbers = {name for name in right.split(",") if name}
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        made.add_column(
            name, justify="right" if name in numbers else "left", header_style="bold underline", overflow="fold"
        )
    return made


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction as a percentage."""
    return DASH if value is None else f"{100 * value:.{digits}f} %"


def precisions(values: dict[str, Any]) -> list[tuple[str, float]]:
    """Names and values of a detector's average precisions; empty for other models."""
    known = {"box_ap": "box AP", "mask_ap": "mask AP"}
    return [(name, values[key]) for key, name in known.items() if values.get(key) is not None]


def points(mean: float | None, low: float | None, high: float | None) -> str:
    """A gap in percentage points with its interval."""
    if mean is None:
        return DASH
    ends = f" [{100 * low:+.2f}, {100 * high:+.2f}]" if low is not None and high is not None else ""
    return f"{100 * mean:+.2f}{ends}"


def number(value: Any, digits: int = 2) -> str:
    """A number, or a dash for None."""
    return DASH if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """Seconds as 8.2 s, 4 min 32 s or 1 h 12 min."""
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
