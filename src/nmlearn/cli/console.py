"""Terminal output: one console, and how errors, tables and numbers are shown."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nmlearn.errors import NMLearnError

# Names of weights, files and options may hold square brackets: no markup unless one of our lines needs it.
out = Console(highlight=False, markup=False)
err = Console(stderr=True, highlight=False, markup=False)
DASH = "–"
LONGEST_NAME, LONGEST_TEXT = 200, 2000  # characters shown of a name from a file, and of a part of an error


def show_error(error: NMLearnError) -> None:
    """An error's four parts, in a panel on standard error."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    rows = (("where", error.where), ("given", error.given), ("wrong", error.wrong), ("to do", error.fix))
    for name, text in rows:
        grid.add_row(name, Text(plain(str(text), LONGEST_TEXT, keep="\n")))
    err.print(Panel(grid, title=type(error).__name__, title_align="left", border_style="red", expand=False))


def plain(text: str, longest: int = LONGEST_NAME, keep: str = "") -> str:
    """Text from a file, safe to show: what a terminal might obey is written as an escape, and the rest is cut off.

    Args:
        text: any text.
        longest: how many of its characters are shown.
        keep: control characters that may stay.
    """
    cut = text[:longest]
    shown = "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in cut)
    return f"{shown}... ({len(text) - longest:,} more characters)" if len(text) > longest else shown


def say(style: str, word: str, rest: str = "", width: int = 0) -> Text:
    """A styled word followed by plain text; ``width`` pads the word."""
    return Text.assemble((word.ljust(width), style), rest)


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
