"""The charts of a comparison. Every method has the same colour and shape in all of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from markupsafe import Markup

from nmlearn.lab.report.intervals import Interval, interval_chart
from nmlearn.lab.report.lines import Series, XAxis, line_chart
from nmlearn.lab.report.numbers import finite, fixed
from nmlearn.lab.report.outcome import Outcome
from nmlearn.lab.report.page import Figure
from nmlearn.lab.report.points import Dot, point_chart
from nmlearn.lab.report.run_charts import Clock
from nmlearn.lab.report.source import RunFolder
from nmlearn.lab.report.styles import REFERENCE


def gap_figures(found: Outcome, noise: float | None) -> list[Figure]:
    """A chart per pattern, all on one scale. `noise` is half the width of the band around zero."""
    shown = {pattern: _intervals(found, pattern) for pattern in found.patterns}
    shared = [value for rows in shown.values() for row in rows for value in row.values()]
    shared += [-noise, noise] if noise else []
    x_label = f"gap to dense, {found.measure.gap_unit}"
    figures = []
    for pattern, rows in shown.items():
        title = f"Gap to dense at {pattern}"
        chart = interval_chart(title, rows, x_label=x_label, x_values=shared, noise=noise)
        figures += [Figure(pattern, chart)] if rows else []
    return figures


def _intervals(found: Outcome, pattern: str) -> list[Interval]:
    measure, rows = found.measure, []
    for row in [row for row in found.rows if row["pattern"] == pattern]:
        style, dots = found.styles[row["method"]], []
        for run in found.cell(row["method"], pattern):
            gap = found.gap(run)
            value = None if gap is None else gap * measure.scale
            dots.append((value, f"{style.label}, seed {run.get('seed')}: {fixed(value, 2, signed=True)}"))
        mean, low, high = (found.scaled(row, measure.field(f"gap_{name}")) for name in ("mean", "low", "high"))
        rows.append(Interval(style, mean, low, high, dots))
    return rows


def cost_figures(found: Outcome) -> list[Figure]:
    """The measure against counted cost and against measured cost, where recorded."""
    name, y_label = found.measure.key.capitalize(), found.measure.titled("mean " if found.intervals else "")
    costs = (
        (
            "training_flops_ratio",
            "training FLOPs",
            "Training FLOPs of the sparse layers, relative to dense: what hardware that skips zeros could save.",
        ),
        ("seconds_median", "training time", "Median seconds of training, measured on this machine."),
    )
    return [
        Figure(f"{name} against {cost}", _points(found, field, y_label), note)
        for field, cost, note in costs
        if any(finite(row[field]) is not None for row in found.rows)
    ]


def _points(found: Outcome, field: str, y_label: str) -> Markup:
    flops = field == "training_flops_ratio"
    mean = found.measure.field("mean")
    dots, paths = [], []
    for method, style in found.styles.items():
        rows = [row for row in found.rows if row["method"] == method]
        places = [(row.get(field), found.scaled(row, mean)) for row in rows]
        if len(rows) > 1:
            paths.append(Series(style.label, places, style.paint, "thin"))
        for row, (x, y) in zip(rows, places, strict=True):
            cost = f"{fixed(x, 2)} of dense" if flops else f"{fixed(x, 1)} s"
            title = f"{style.label} {row['pattern'] or ''}: {found.measure.value(row.get(mean))} at {cost}"
            dots.append(Dot(x, y, title, style.paint, style.shape, row["pattern"] or style.label))
    dense = found.scaled(found.dense, mean)
    return point_chart(
        f"{y_label} against {'training FLOPs' if flops else 'training time'}",
        dots,
        paths=paths,
        level=dense,
        x_label="training FLOPs, of dense" if flops else "training time, s",
        y_label=y_label,
    )


def curve_figures(found: Outcome, folders: Sequence[RunFolder]) -> list[Figure]:
    """For each pattern, the thin curve of each run and the mean of each method; none without run folders."""
    figures = []
    patterns = found.patterns or sorted({run.setting("pattern") for run in folders} - {""})
    name, y_label = found.measure.key.capitalize(), found.measure.titled()
    for pattern in patterns:
        lines, axis = _curves(found, folders, pattern)
        if any(y is not None for line in lines for _, y in line.points):
            title = f"{name} over training at {pattern}"
            figures.append(Figure(pattern, line_chart(title, lines, x=axis, y_label=y_label)))
    return figures


def _curves(found: Outcome, folders: Sequence[RunFolder], pattern: str) -> tuple[list[Series], XAxis]:
    """The lines of a pattern's panel, single runs below the means, and the full x axis."""
    thin, strong, axis = [], [], XAxis("epoch")
    for method, style in found.styles.items():
        curves = []
        for run in [run for run in folders if run.setting("method") == method]:
            if method == REFERENCE or run.setting("pattern") == pattern:
                clock = Clock(run)
                axis = XAxis(clock.label, (*axis.values, 0.0, clock.end))
                evals = [(clock.at(event), found.scaled(event, found.measure.key)) for event in run.of("eval")]
                curves.append([(x, y) for x, y in evals if x is not None and y is not None])
        if len(curves) > 1:  # all as one line with gaps
            thin.append(Series("", [point for curve in curves for point in (*curve, (0.0, None))], style.paint, "thin"))
        strong.append(Series(style.label, _mean(curves), style.paint))
    return [*thin, *strong], axis


def _mean(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[object, object]]:
    """The mean at every x that all curves have: with fewer curves it would jump."""
    at: dict[float, list[float]] = {}
    for curve in curves:
        for x, y in dict(curve).items():
            at.setdefault(x, []).append(y)
    return [(x, statistics.fmean(ys)) for x, ys in sorted(at.items()) if len(ys) == len([c for c in curves if c])]
