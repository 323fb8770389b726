"""The charts of one run over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from nmlearn.lab.report.heat import HeatRow, heat_map
from nmlearn.lab.report.lines import Series, XAxis, line_chart
from nmlearn.lab.report.numbers import count, finite, share
from nmlearn.lab.report.page import Figure
from nmlearn.lab.report.source import Record, RunFolder
from nmlearn.lab.report.styles import REFERENCE, method_styles

POINTS = 130  # per line, one for every 2.5 drawing units; more are averaged
STYLES = ("line", "dashed", "dotted")
MEASURES = (
    ("accuracy", "ema_accuracy", "accuracy, %", 100.0),
    ("box_ap", "", "box AP, %", 100.0),
    ("mask_ap", "", "mask AP, %", 100.0),
    ("bits_per_byte", "", "bits per byte", 1.0),
)


class Clock:
    """The x axis of a run: epochs if their length is known, else steps."""

    def __init__(self, run: RunFolder) -> None:
        per_epoch = finite(run.start.get("steps_per_epoch"))
        self.per = per_epoch if per_epoch and per_epoch > 0 else 1.0
        self.label = "epoch" if self.per > 1 else "step"
        total = finite(run.start.get("total_steps"))
        self.end = max(total or 0.0, float(run.last_step), 1.0) / self.per

    def at(self, event: Record) -> float | None:
        """The x of an event."""
        step = finite(event.get("step"))
        return None if step is None else step / self.per

    def axis(self, band: tuple[float, float] | None) -> XAxis:
        """The axis from the first to the last planned step, with a shaded range."""
        return XAxis(self.label, (0.0, self.end), band)


def training_figures(run: RunFolder, clock: Clock) -> list[Figure]:
    """Accuracy (or average precision, or bits per byte), losses, learning rate."""
    axis, paint, evals = clock.axis(choosing(run, clock)), method_paint(run), run.of("eval")
    figures = []
    for key, averaged, label, scale in MEASURES:
        lines = [Series("measured", curve(evals, key, clock, scale), paint)]
        if averaged and any(finite(event.get(averaged)) is not None for event in evals):
            lines.insert(0, Series("averaged weights", curve(evals, averaged, clock, scale), "ink", "dashed"))
        if any(y is not None for line in lines for _, y in line.points):
            heading = label.split(",")[0].capitalize()
            figures.append(_figure(heading, label, axis, lines, "On the evaluation set."))
    train, shown = averaged_curve(run.of("train"), "loss", clock)
    losses = [Series("training", train, "muted"), Series("evaluation", curve(evals, "loss", clock), paint)]
    note = "Training loss is averaged over adjacent records." if shown else ""
    figures.append(_figure("Loss", "loss", axis, losses, note))
    rate = [Series("learning rate", averaged_curve(run.of("train"), "lr", clock)[0], "ink")]
    note = "Of the first parameter group."
    figures.append(_figure("Learning rate", "learning rate", axis, rate, note, y_values=(0.0,)))
    return figures


def sparsity_figures(run: RunFolder, clock: Clock) -> list[Figure]:
    """Surviving combinations, density and mask changes over time; none for a run without masks."""
    events = run.of("sparsity")
    if run.setting("method") == REFERENCE or not layer_names(run):
        return []
    axis, paint = clock.axis(choosing(run, clock)), method_paint(run)
    density = [Series("density", curve(events, "density", clock, 100.0), paint, step=True)]
    note = "Fraction of weights kept, over all sparse layers."
    figures = [_figure("Density", "weights left, %", axis, density, note, y_values=(0.0, 100.0))]
    changes = [Series("changed", curve(events, "mask_change", clock, 100.0), paint)]
    note = "Fraction of mask entries that differ from the previous record. It reaches zero once the mask is final."
    label = "mask entries changed, %"
    figures.append(_figure("Mask change", label, axis, changes, note, y_values=(0.0,)))
    return [*_survivors(run, clock, axis), *figures]


def _figure(heading: str, y_label: str, axis: XAxis, lines: Sequence[Series], note: str, **options: Any) -> Figure:
    chart = line_chart(heading, lines, y_label=y_label, x=axis, **options)
    return Figure(heading, chart, note, lines if len(lines) > 1 and options.get("readings", True) else ())


def method_paint(run: RunFolder) -> str:
    """The colour of the run's method."""
    method = run.setting("method")
    return method_styles([method])[method].paint if method else "ink"


def curve(events: Sequence[Record], key: str, clock: Clock, scale: float = 1.0) -> list[tuple[object, object]]:
    """(x, y) of a field over time."""
    return [(clock.at(event), None if (value := finite(event.get(key))) is None else value * scale) for event in events]


def averaged_curve(events: Sequence[Record], key: str, clock: Clock) -> tuple[list[tuple[object, object]], bool]:
    """(x, y) of a field, averaged over neighbours if there are many, and whether it was averaged."""
    points = curve(events, key, clock)
    size = math.ceil(len(points) / POINTS)
    if size <= 1:
        return points, False
    averaged: list[tuple[object, object]] = []
    for start in range(0, len(points), size):
        known = [y for _, y in points[start : start + size] if isinstance(y, float)]
        averaged.append((points[min(start + size, len(points)) - 1][0], sum(known) / len(known) if known else None))
    return averaged, True


def choosing(run: RunFolder, clock: Clock) -> tuple[float, float] | None:
    """From the first to the last change of density: the time in which the method pruned weights."""
    known = [(clock.at(event), finite(event.get("density"))) for event in run.of("sparsity")]
    moved = [(a, b) for (a, d), (b, e) in itertools.pairwise(known) if d != e and a is not None and b is not None]
    return (moved[0][0], moved[-1][1]) if moved else None


def _survivors(run: RunFolder, clock: Clock, axis: XAxis) -> list[Figure]:
    """Layers with the same history share a line. If there are many histories, the lines are thin and have no key."""
    histories: dict[tuple[float | None, ...], list[str]] = {}
    events = run.of("sparsity")
    for name in layer_names(run):
        cells = [finite(layer_field(event, name, "survivors")) for event in events]
        if any(cell is not None for cell in cells):
            history = (finite(layer_field(events[-1], name, "combinations")), *cells)
            histories.setdefault(history, []).append(name)
    if not histories:
        return []
    few = len(histories) <= len(STYLES)
    lines = []
    for i, ((combinations, *cells), names) in enumerate(histories.items()):
        who = names[0] if len(names) == 1 else f"{count(len(names))} layers"
        points = [(clock.at(event), cell) for event, cell in zip(events, cells, strict=True)]
        style = STYLES[i] if few else "thin"
        lines.append(Series(f"{who}, of {count(combinations)}", points, method_paint(run), style, step=True))
    log = max(history[0] or 0 for history in histories) > 20
    same = f" The same in all {count(len(layer_names(run)))} sparse layers." if len(lines) == 1 else ""
    note = f"Number of combinations left in each group.{same}"
    options = {"y_values": (1.0,), "log": log, "readings": few}
    return [_figure("Surviving combinations", "combinations left", axis, lines, note, **options)]


def layer_map(run: RunFolder, clock: Clock) -> Markup:
    """The density of each layer over time."""
    rows = [
        HeatRow(name, [(clock.at(event) or 0.0, layer_field(event, name, "density")) for event in run.of("sparsity")])
        for name in layer_names(run)
    ]
    until = run.last_step / clock.per
    title = "Density of each layer over time"
    return heat_map(title, rows, end=clock.end, until=until, x_label=clock.label, text=share)


def layer_names(run: RunFolder) -> list[str]:
    """The sparse layers, in the plan's order; taken from the records if there is no plan."""
    seen = {name: None for event in run.of("sparsity") for name in _layers(event)}
    planned = [str(row.get("name")) for row in run.plan]
    return [name for name in planned if name in seen] + [name for name in seen if name not in planned]


def layer_field(event: Record, name: str, key: str) -> object:
    """A field of a layer in a sparsity event; None if it is missing."""
    layer = _layers(event).get(name)
    return layer.get(key) if isinstance(layer, dict) else None


def _layers(event: Record) -> Record:
    layers = event.get("layers")
    return layers if isinstance(layers, dict) else {}
