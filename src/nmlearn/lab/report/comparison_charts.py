"""The pictures of a comparison. Every method keeps its colour and shape throughout."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from nmlearn.lab.report.charts import Along, Series, line_chart
from nmlearn.lab.report.dots import Interval, interval_chart
from nmlearn.lab.report.markup import Content, Markup, element
from nmlearn.lab.report.numbers import finite, fixed
from nmlearn.lab.report.outcome import Outcome
from nmlearn.lab.report.page import Section, figure, panels
from nmlearn.lab.report.palette import legend
from nmlearn.lab.report.points import Dot, point_chart
from nmlearn.lab.report.run_charts import Clock
from nmlearn.lab.report.source import Record, Run


def gap_figures(found: Outcome) -> Content:
    """A chart per pattern, all on one scale."""
    shown = {pattern: _intervals(found, pattern) for pattern in found.patterns}
    shared = [value for rows in shown.values() for row in rows for value in row.values()]
    std = finite(found.dense.get(found.measure.field("std")))
    noise = std * found.measure.scale if std else None
    figures = [
        figure(
            pattern,
            None,
            interval_chart(
                f"gap-{i}",
                f"Gap to dense at {pattern}",
                rows,
                x_label=f"gap to dense, {found.measure.gap_unit}",
                x_values=[*shared, *([-noise, noise] if noise else [])],
                noise=noise,
            ),
        )
        for i, (pattern, rows) in enumerate(shown.items())
        if rows
    ]
    if not figures:
        return element("p", "No sparse run has finished yet.", class_="quiet")
    band = " The shaded band is one standard deviation of the dense runs." if noise else ""
    note = (
        "The line at zero is dense. Mark and bar: mean and 95 % interval of the paired gaps; small dots: each seed."
        + band
    )
    return [element("p", note, class_="quiet"), panels(figures)]


def _intervals(found: Outcome, pattern: str) -> list[Interval]:
    scale, rows = found.measure.scale, []
    for row in found.rows:
        if row["pattern"] != pattern:
            continue
        middle, low, high = (_scaled(row, found.measure.field(f), scale) for f in ("gap_mean", "gap_low", "gap_high"))
        dots = []
        for run in found.cell(row["method"], pattern):
            gap = found.gap(run)
            value = None if gap is None else gap * scale
            dots.append(
                (value, f"{found.looks[row['method']].label}, seed {run.get('seed')}: {fixed(value, 2, signed=True)}")
            )
        rows.append(Interval(found.looks[row["method"]], middle, low, high, dots))
    return rows


def _scaled(row: Record, field: str, scale: float) -> float | None:
    number = finite(row.get(field))
    return None if number is None else number * scale


def cost_figures(found: Outcome) -> Content:
    """What is compared, against counted and against measured cost."""
    measure = found.measure
    y_label = ", ".join(filter(None, [f"mean {measure.key}", measure.unit]))
    counted = "Training FLOPs of the sparse layers, relative to dense: what a machine that skips zeros could save."
    measured = "Median seconds of training as measured: what it cost here."
    figures = [
        figure(
            f"{measure.key.capitalize()} against training FLOPs",
            counted,
            _points(found, "training_flops_ratio", y_label),
        ),
        figure(
            f"{measure.key.capitalize()} against training time", measured, _points(found, "seconds_median", y_label)
        ),
    ]
    note = "Thin lines join the patterns of a method; the dashed line is dense."
    return [legend(found.looks.values()), element("p", note, class_="quiet"), panels(figures, two=True)]


def _points(found: Outcome, field: str, y_label: str) -> Markup:
    flops = field == "training_flops_ratio"
    mean = found.measure.field("mean")
    dots, paths = [], []
    for method, look in found.looks.items():
        rows = [row for row in found.rows if row["method"] == method]
        places = [(row.get(field), _scaled(row, mean, found.measure.scale)) for row in rows]
        if len(rows) > 1:
            paths.append(Series(look.label, places, look.paint, "thin"))
        for row, (x, y) in zip(rows, places, strict=True):
            cost = f"{fixed(x, 2)} of dense" if flops else f"{fixed(x, 1)} s"
            title = f"{look.label} {row['pattern'] or ''}: {found.measure.value(row.get(mean))} at {cost}"
            dots.append(Dot(x, y, title, look.paint, look.shape, row["pattern"] or look.label))
    dense = _scaled(found.dense, mean, found.measure.scale)
    return point_chart(
        f"cost-{'flops' if flops else 'time'}",
        f"{y_label} against {'training FLOPs' if flops else 'training time'}",
        dots,
        paths=paths,
        level=dense,
        x_label="training FLOPs, of dense" if flops else "training time, s",
        y_label=y_label,
    )


def curve_section(found: Outcome, folders: Sequence[Run]) -> list[Section]:
    """Each run's curve, thin, and the mean of each method, for each pattern; nothing without run folders."""
    figures = []
    patterns = found.patterns or sorted({run.setting("pattern") for run in folders} - {""})
    for i, pattern in enumerate(patterns):
        lines, label = _curves(found, folders, pattern)
        if any(y is not None for line in lines for _, y in line.points):
            chart = line_chart(
                f"curves-{i}",
                f"{found.measure.key.capitalize()} over training at {pattern}",
                lines,
                x=Along(label),
                y_label=", ".join(filter(None, [found.measure.key, found.measure.unit])),
            )
            figures.append(figure(pattern, None, chart))
    if not figures:
        return []
    note = element(
        "p", "Thin: each seed. Strong: the mean of a method's seeds. Dense is in every panel.", class_="quiet"
    )
    return [Section("curves", "Curves", [legend(found.looks.values()), note, panels(figures)])]


def _curves(found: Outcome, folders: Sequence[Run], pattern: str) -> tuple[list[Series], str]:
    """The lines of a pattern's panel: all single runs below, the means on top; and the name of the x axis."""
    thin, strong, label = [], [], "epoch"
    for method, look in found.looks.items():
        runs = [run for run in folders if run.setting("method") == method]
        runs = [run for run in runs if method == "dense" or run.setting("pattern") == pattern]
        curves = []
        for run in runs:
            clock = Clock(run)
            label = clock.label
            evals = [
                (clock.at(event), _scaled(event, found.measure.key, found.measure.scale)) for event in run.of("eval")
            ]
            curves.append([(x, y) for x, y in evals if x is not None and y is not None])
        if len(curves) > 1:
            thin += [Series("", curve, look.paint, "thin") for curve in curves]
        strong.append(Series(look.label, _mean(curves), look.paint))
    return [*thin, *strong], label


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[object, object]]:
    """The mean at every x that all curves have: a mean over fewer of them would jump."""
    at: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in dict(curve).items():
            at.setdefault(x, []).append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(at.items()) if len(ys) == len([c for c in curves if c])]
