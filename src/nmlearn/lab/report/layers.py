"""The table of layers: which were made sparse, how, how far, and why the others were not."""

from __future__ import annotations

import re

from nmlearn.lab.report.charts import Series
from nmlearn.lab.report.markup import Column, Content, Markup, Row, Wide, element, table
from nmlearn.lab.report.numbers import UNKNOWN, count, finite, percent, share
from nmlearn.lab.report.page import Section
from nmlearn.lab.report.run_charts import Clock, layer_field, layer_names, method_paint
from nmlearn.lab.report.source import Record, Run

COLUMNS = (
    Column("Layer"),
    Column("Kind"),
    Column("Shape"),
    Column("Weights", "number"),
    Column("Pattern"),
    Column("Elimination", unit="or why dense"),
    Column("Density", "number"),
    Column("Combinations", "number", "left / of"),
)


def layer_section(run: Run) -> list[Section]:
    """The section, empty without a plan."""
    if not run.plan:
        return []
    clock = Clock(run)
    last = next(iter(reversed(run.of("sparsity"))), {})
    rows = [_row(run, row, last, clock) for row in run.plan]
    return [Section("layers", "Layers", table("layers", _caption(run), COLUMNS, [("", rows)]))]


def _caption(run: Run) -> str:
    sizes = [(finite(row.get("weights")) or 0.0, bool(row.get("pattern"))) for row in run.plan]
    taken, every = sum(size for size, is_taken in sizes if is_taken), sum(size for size, _ in sizes)
    number = sum(is_taken for _, is_taken in sizes)
    part = percent(taken / every, 1) if every else UNKNOWN
    return f"{count(number)} of {count(len(sizes))} layers are sparse and hold {part} of all {count(every)} weights."


def _row(run: Run, row: Record, last: Record, clock: Clock) -> Row:
    name, pattern = str(row.get("name", "")), row.get("pattern")
    survivors = finite(layer_field(last, name, "survivors"))
    left = f"{count(survivors)} / {count(row.get('combinations'))}" if survivors is not None else ""
    density = layer_field(last, name, "density")
    cells: list[Content] = [
        element("span", [[part, element("wbr")] for part in re.split(r"(?<=\.)", name)], class_="mono"),
        str(row.get("kind", "")),
        _shape(row.get("shape")),
        count(row.get("weights")),
        str(pattern) if pattern else "dense",
    ]
    if not pattern:
        return [*cells, Wide(str(row.get("reason") or ""), 3)]
    known = finite(density) is not None
    return [
        *cells,
        str(row.get("elimination") or ""),
        [_spark(run, name, clock), share(density)] if known else "",
        left,
    ]


def _shape(shape: object) -> str:
    sides = shape if isinstance(shape, list) else []
    return " × ".join(str(side) for side in sides)


def _spark(run: Run, name: str, clock: Clock) -> Markup | None:
    """The layer's density over time, as large as a word."""
    if name not in layer_names(run):
        return None
    known = [(clock.at(e), finite(layer_field(e, name, "density"))) for e in run.of("sparsity")]
    line = Series(name, [(x, y) for x, y in known if x is not None and y is not None])
    places = [(60 * float(str(x)) / clock.end, 1 + 12 * (1 - float(str(y)))) for x, y in line.points]
    if len(places) < 2:
        return None
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
    drawn = element("g", element("path", d=path), class_=f"line {method_paint(run)}")
    return element("svg", drawn, viewBox="0 0 60 14", class_="spark", aria_hidden="true")
