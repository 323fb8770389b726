"""The table of a comparison: means, spreads and paired gaps to dense."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

LEVEL = 0.95
"""Confidence of all intervals."""


def t_quantile(level: float, freedom: int) -> float:
    """The t with P(|T| <= t) = level for Student's distribution, to a relative error of 1e-12.

    Args:
        level: in (0, 1); 0.95 for a 95 % interval.
        freedom: degrees of freedom, an integer of at least 1.
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < level:
        low, high = high, 2 * high
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        if t_probability(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return high


def t_probability(t: float, freedom: int) -> float:
    """P(|T| <= t), exact for integer degrees of freedom: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += term
        term *= cosine * cosine * k / (k + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """The mean and the ends of its 95 % t-interval; the ends are None for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = t_quantile(LEVEL, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def table(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each method and pattern, in the order of the runs.

    Args:
        runs: results of finished runs, with method, pattern (None for dense), seed, accuracy, loss, seconds,
            state_bytes_per_weight and training_flops_ratio.

    Returns:
        Rows as in a results file. Gaps are differences from the dense run of the same seed; seeds without one do not
        count. Undefined values (one seed, no dense run, no accuracy) are None.
    """
    runs = list(runs)
    dense = {run["seed"]: run for run in runs if run["method"] == "dense"}
    cells: dict[tuple[str, str | None], list[dict[str, Any]]] = {}
    for run in runs:
        cells.setdefault((run["method"], run["pattern"]), []).append(run)
    return [_row(method, pattern, cell, dense) for (method, pattern), cell in cells.items()]


def _row(
    method: str, pattern: str | None, cell: list[dict[str, Any]], dense: dict[int, dict[str, Any]]
) -> dict[str, Any]:
    row: dict[str, Any] = {"method": method, "pattern": pattern, "seeds": len(cell)}
    for key, prefix in (("accuracy", ""), ("loss", "loss_")):
        values = [run[key] for run in cell if run[key] is not None]
        row[f"{key}_mean"] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
        gaps = [
            run[key] - twin[key]
            for run in cell
            if (twin := dense.get(run["seed"])) and method != "dense" and None not in (run[key], twin[key])
        ]
        row[f"{prefix}gap_mean"], row[f"{prefix}gap_low"], row[f"{prefix}gap_high"] = (
            interval(gaps) if gaps else (None, None, None)
        )
    row["seconds_median"] = statistics.median(run["seconds"] for run in cell)
    for key in ("state_bytes_per_weight", "training_flops_ratio"):
        row[key] = statistics.fmean(run[key] for run in cell)
    return row
