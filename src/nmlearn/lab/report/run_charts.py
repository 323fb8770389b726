"""The pictures of one run over time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from nmlearn.lab.report.charts import Along, Series, line_chart
from nmlearn.lab.report.heat import HeatRow, heat_map
from nmlearn.lab.report.markup import Content, Markup, element
from nmlearn.lab.report.numbers import count, finite, share
from nmlearn.lab.report.page import Section, figure, panels
from nmlearn.lab.report.palette import looks
from nmlearn.lab.report.source import Record, Run

POINTS = 240  # of a line; more are averaged
STYLES = ("line", "dashed", "dotted")


class Clock:
    """The x axis of a run: epochs when their length is known, else steps."""

    def __init__(self, run: Run) -> None:
        per_epoch = finite(run.start.get("steps_per_epoch"))
        self.per = per_epoch if per_epoch and per_epoch > 0 else 1.0
        self.label = "epoch" if self.per > 1 else "step"
        total = finite(run.start.get("total_steps"))
        self.end = max(total or 0.0, float(run.last_step), 1.0) / self.per

    def at(self, event: Record) -> float | None:
        """Where an event stands."""
        step = finite(event.get("step"))
        return None if step is None else step / self.per

    def axis(self, band: tuple[float, float] | None) -> Along:
        """From the first step to the last one planned, with a shaded range."""
        return Along(self.label, (0.0, self.end), band)

    def ticks(self) -> list[float]:
        """Quarters of the way."""
        return [self.end * k / 4 for k in range(5)]


def training_section(run: Run) -> Section:
    """Accuracy (or average precision, or bits per byte), losses, learning rate."""
    clock, paint = Clock(run), method_paint(run)
    axis = clock.axis(choosing(run, clock))
    figures = []
    for key, averaged, label, scale in (
        ("accuracy", "ema_accuracy", "accuracy, %", 100.0),
        ("box_ap", None, "box AP, %", 100.0),
        ("mask_ap", None, "mask AP, %", 100.0),
        ("bits_per_byte", None, "bits per byte", 1.0),
    ):
        lines = [Series("measured", curve(run.of("eval"), key, clock, scale), paint)]
        if averaged and any(finite(event.get(averaged)) is not None for event in run.of("eval")):
            lines.insert(0, Series("averaged weights", curve(run.of("eval"), averaged, clock, scale), "ink", "dashed"))
        if any(y is not None for line in lines for _, y in line.points):
            heading = label.split(",")[0].capitalize()
            note = ["On the evaluation set. ", key_of(lines)]
            figures.append(figure(heading, note, line_chart(f"run-{key}", heading, lines, y_label=label, x=axis)))
    train, shown = averaged_curve(run.of("train"), "loss", clock)
    losses = [Series("training", train, "muted"), Series("evaluation", curve(run.of("eval"), "loss", clock), paint)]
    note = [key_of(losses), "Training loss is averaged over neighbouring records." if shown else None]
    figures.append(figure("Loss", note, line_chart("run-loss", "Loss", losses, y_label="loss", x=axis)))
    rate = [Series("learning rate", averaged_curve(run.of("train"), "lr", clock)[0], "ink")]
    chart = line_chart("run-rate", "Learning rate", rate, y_label="learning rate", y_values=(0.0,), x=axis)
    figures.append(figure("Learning rate", "Of the first parameter group.", chart))
    said = element("p", "Shaded: while connections were being removed.", class_="quiet") if axis.band else None
    return Section("training", "Training", [said, panels(figures)])


def sparsity_section(run: Run) -> list[Section]:
    """Surviving combinations, density and mask changes over time; none for a run that masks nothing."""
    events = run.of("sparsity")
    if run.setting("method") == "dense" or not any(_layers(event) for event in events):
        return []
    clock, paint = Clock(run), method_paint(run)
    axis = clock.axis(choosing(run, clock))
    density = [Series("density", curve(events, "density", clock, 100.0), paint, step=True)]
    chart = line_chart("run-density", "Density", density, y_label="weights left, %", y_values=(0.0, 100.0), x=axis)
    figures = [figure("Density", "Share of the weights left, over all sparse layers.", chart)]
    changes = [Series("changed", curve(events, "mask_change", clock, 100.0), paint)]
    chart = line_chart("run-change", "Mask change", changes, y_label="mask entries changed, %", y_values=(0.0,), x=axis)
    note = "Share of mask entries that differ from the record before. It ends at zero when the mask has settled."
    figures.append(figure("Mask change", note, chart))
    if survivors := _survivors(run, clock, axis):
        figures.insert(0, survivors)
    return [Section("sparsity", "Sparsity over time", [panels(figures), _heat(run, clock)])]


def method_paint(run: Run) -> str:
    """The colour of the run's method."""
    method = run.setting("method")
    return looks([method])[method].paint if method else "ink"


def curve(events: Sequence[Record], key: str, clock: Clock, scale: float = 1.0) -> list[tuple[object, object]]:
    """(x, y) of a field over time."""
    return [(clock.at(event), None if (value := finite(event.get(key))) is None else value * scale) for event in events]


def averaged_curve(events: Sequence[Record], key: str, clock: Clock) -> tuple[list[tuple[object, object]], bool]:
    """(x, y) of a field, averaged over neighbours when there are many, and whether it was."""
    points = curve(events, key, clock)
    size = math.ceil(len(points) / POINTS)
    if size <= 1:
        return points, False
    averaged: list[tuple[object, object]] = []
    for start in range(0, len(points), size):
        known = [y for _, y in points[start : start + size] if isinstance(y, float)]
        averaged.append((points[min(start + size, len(points)) - 1][0], sum(known) / len(known) if known else None))
    return averaged, True


def choosing(run: Run, clock: Clock) -> tuple[float, float] | None:
    """From the first to the last change of density: while the method still removed weights."""
    known = [(clock.at(event), finite(event.get("density"))) for event in run.of("sparsity")]
    moved = [(a, b) for (a, d), (b, e) in itertools.pairwise(known) if d != e and a is not None and b is not None]
    return (moved[0][0], moved[-1][1]) if moved else None


def key_of(lines: Sequence[Series]) -> Markup | None:
    """Which stroke is which, in the figure's caption; nothing for a single line."""
    if len(lines) < 2:
        return None
    items: list[Content] = []
    for line in lines:
        path = element("g", element("path", d="M1 6H26"), class_=line.style)
        items += [
            element("svg", path, viewBox="0 0 27 12", class_=f"stroke {line.paint}", aria_hidden="true"),
            f" {line.label}  ",
        ]
    return element("span", items[:-1], f" {lines[-1].label}. ")


def _survivors(run: Run, clock: Clock, axis: Along) -> Markup | None:
    """Layers with the same history share a line. Many different ones: the lines are drawn thin, without a key."""
    histories: dict[tuple[object, ...], list[str]] = {}
    events = run.of("sparsity")
    for name in layer_names(run):
        cells = [layer_field(event, name, "survivors") for event in events]
        if any(finite(cell) is not None for cell in cells):
            history = (layer_field(events[-1], name, "combinations"), *cells)
            histories.setdefault(history, []).append(name)
    if not histories:
        return None
    few = len(histories) <= len(STYLES)
    lines = []
    for i, ((combinations, *cells), names) in enumerate(histories.items()):
        who = names[0] if len(names) == 1 else f"{count(len(names))} layers"
        points = [(clock.at(event), cell) for event, cell in zip(events, cells, strict=True)]
        style = STYLES[i] if few else "thin"
        lines.append(Series(f"{who}, of {count(combinations)}", points, method_paint(run), style, step=True))
    most = max((finite(history[0]) or 0 for history in histories), default=0)
    chart = line_chart(
        "run-survivors",
        "Surviving combinations per group",
        lines,
        y_label="combinations left",
        y_values=(1.0,),
        log=most > 20,
        readings=few,
        x=axis,
    )
    same = f"The same in all {count(len(layer_names(run)))} sparse layers." if len(lines) == 1 else "Per group."
    note = ["How many keep-sets each group may still choose from. ", key_of(lines) if few and len(lines) > 1 else same]
    return figure("Surviving combinations", note, chart)


def _heat(run: Run, clock: Clock) -> Markup:
    rows = [
        HeatRow(name, [(clock.at(event) or 0.0, layer_field(event, name, "density")) for event in run.of("sparsity")])
        for name in layer_names(run)
    ]
    chart = heat_map(
        "run-layers",
        "Density of each layer over time",
        rows,
        end=clock.end,
        until=run.last_step / clock.per,
        x_label=clock.label,
        text=lambda value: share(value),
        ticks=clock.ticks(),
    )
    note = "One row per sparse layer, from input to output: the more ink, the more of its weights are left."
    return element(
        "div", element("h3", "Density of each layer"), element("p", note, class_="quiet"), chart, class_="block"
    )


def layer_names(run: Run) -> list[str]:
    """The sparse layers, in the plan's order; from the records when there is no plan."""
    seen = {name: None for event in run.of("sparsity") for name in _layers(event)}
    planned = [str(row.get("name")) for row in run.plan]
    return [name for name in planned if name in seen] + [name for name in seen if name not in planned]


def layer_field(event: Record, name: str, key: str) -> object:
    """A field of a layer in a sparsity event, None when it is not there."""
    layer = _layers(event).get(name)
    return layer.get(key) if isinstance(layer, dict) else None


def _layers(event: Record) -> Record:
    layers = event.get("layers")
    return layers if isinstance(layers, dict) else {}
