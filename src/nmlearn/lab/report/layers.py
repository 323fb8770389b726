"""The rows of the table of layers: which are sparse, how and to what density, and why the others are not."""

from __future__ import annotations

from nmlearn.lab.report.lines import path_of
from nmlearn.lab.report.numbers import UNKNOWN, count, finite, percent, share
from nmlearn.lab.report.run_charts import Clock, layer_field
from nmlearn.lab.report.source import Record, RunFolder


def layers_caption(run: RunFolder) -> str:
    """How many layers are sparse, and their share of the model's weights."""
    sizes = [(finite(row.get("weights")) or 0.0, bool(row.get("pattern"))) for row in run.plan]
    sparse, every = sum(size for size, is_sparse in sizes if is_sparse), sum(size for size, _ in sizes)
    number = sum(is_sparse for _, is_sparse in sizes)
    part = percent(sparse / every, 1) if every else UNKNOWN
    return f"{count(number)} of {count(len(sizes))} layers are sparse and hold {part} of all {count(every)} weights."


def layer_rows(run: RunFolder, clock: Clock) -> list[Record]:
    """A row for each layer of the plan."""
    last = next(iter(reversed(run.of("sparsity"))), {})
    return [_row(run, row, last, clock) for row in run.plan]


def _row(run: RunFolder, row: Record, last: Record, clock: Clock) -> Record:
    name, sides = str(row.get("name", "")), row.get("shape")
    survivors, density = (layer_field(last, name, key) for key in ("survivors", "density"))
    known = finite(density) is not None
    return {
        "name": name,
        "kind": row.get("kind", ""),
        "shape": " × ".join(map(str, sides)) if isinstance(sides, list) else "",
        "weights": count(row.get("weights")),
        "pattern": row.get("pattern"),
        "reason": row.get("reason") or "",
        "elimination": row.get("elimination") or "",
        "spark": _spark(run, name, clock) if known else "",
        "density": share(density) if known else "",
        "left": f"{count(survivors)} / {count(row.get('combinations'))}" if finite(survivors) is not None else "",
    }


def _spark(run: RunFolder, name: str, clock: Clock) -> str:
    """The SVG path of a sparkline of the layer's density; empty if there is no history."""
    known = [(clock.at(event), finite(layer_field(event, name, "density"))) for event in run.of("sparsity")]
    places = [(60 * x / clock.end, 1 + 12 * (1 - y)) for x, y in known if x is not None and y is not None]
    return path_of(places, step=True) if len(places) > 1 else ""
