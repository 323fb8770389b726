"""A comparison, prepared for reports: its measure, its cells (a method at a pattern), gaps to dense paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nmlearn.lab.report.numbers import finite, fixed, percent, points, significant
from nmlearn.lab.report.source import Comparison, Record
from nmlearn.lab.report.styles import REFERENCE, MethodStyle, method_styles
from nmlearn.lab.train.statistics import table

MEANS = ("accuracy_mean", "accuracy_std", "gap_mean", "gap_low", "gap_high", "seconds_median", "seeds")
LOSSES = ("loss_mean", "loss_std", "loss_gap_mean", "loss_gap_low", "loss_gap_high")
OF_RUNS = ("seed", "accuracy", "loss", "seconds", "density")
FIELDS = (*MEANS, *LOSSES, *OF_RUNS, "state_bytes_per_weight", "training_flops_ratio")
"""The fields of runs and table rows that pages read. A file may lack any of them."""


@dataclass(frozen=True)
class Measure:
    """The quantity compared: accuracy (in per cent, gaps in percentage points), or the loss if there is none."""

    key: str

    @property
    def scale(self) -> float:
        """The factor from a recorded value to a displayed one."""
        return 100.0 if self.key == "accuracy" else 1.0

    @property
    def unit(self) -> str:
        """Of a value."""
        return "%" if self.key == "accuracy" else ""

    def titled(self, prefix: str = "") -> str:
        """The measure with its unit, for an axis."""
        return f"{prefix}{self.key}" + (f", {self.unit}" if self.unit else "")

    @property
    def gap_unit(self) -> str:
        """Of a gap."""
        return "percentage points" if self.key == "accuracy" else "nats"

    @property
    def short_unit(self) -> str:
        """The unit of a gap in running text."""
        return self.gap_unit.split()[-1]

    def field(self, name: str) -> str:
        """The table's field of a statistic: mean, std, gap_mean, gap_low, gap_high."""
        if name.startswith("gap") and self.key == "loss":
            return f"loss_{name}"
        return name if name.startswith("gap") else f"{self.key}_{name}"

    def value(self, value: object) -> str:
        """A value as text."""
        return percent(value) if self.key == "accuracy" else significant(value, 4)

    def bare(self, value: object) -> str:
        """A value as text, without its unit."""
        number = finite(value)
        return fixed(None if number is None else self.scale * number, 2 if self.key == "accuracy" else 3)

    def gap(self, value: object) -> str:
        """A gap as text, without its unit."""
        return points(value) if self.key == "accuracy" else fixed(value, 3, signed=True)


@dataclass(frozen=True)
class Outcome:
    """A comparison, prepared for reports.

    Attributes:
        measure: the quantity compared.
        runs: finished runs; each dense one once.
        rows: the table's rows; dense first, then by pattern and method.
        patterns: in the given order.
        styles: method -> its style.
    """

    measure: Measure
    runs: list[Record]
    rows: list[Record]
    patterns: list[str]
    styles: dict[str, MethodStyle]

    def row(self, method: str, pattern: str | None) -> Record:
        """The row of a cell, or an empty one."""
        return next((row for row in self.rows if row["method"] == method and row["pattern"] == pattern), {})

    def scaled(self, record: Record, field: str) -> float | None:
        """A recorded number as displayed."""
        number = finite(record.get(field))
        return None if number is None else number * self.measure.scale

    def ends(self, row: Record) -> tuple[float, float] | None:
        """The ends of the interval of a row's gap, if it has more than one seed."""
        low, high = (finite(row.get(self.measure.field(name))) for name in ("gap_low", "gap_high"))
        return (low, high) if low is not None and high is not None else None

    @cached_property
    def intervals(self) -> bool:
        """Whether any gap has an interval."""
        return any(self.ends(row) for row in self.rows)

    @property
    def dense(self) -> Record:
        """The dense row, or an empty one."""
        return self.row(REFERENCE, None)

    def cell(self, method: str, pattern: str | None) -> list[Record]:
        """The runs of a cell."""
        return [run for run in self.runs if run["method"] == method and run["pattern"] == pattern]

    def gap(self, run: Record) -> float | None:
        """A run's difference from the dense run of its seed, in the unit of the measure."""
        key = self.measure.key
        twins = [finite(twin.get(key)) for twin in self.cell(REFERENCE, None) if twin.get("seed") == run.get("seed")]
        own = finite(run.get(key))
        return own - twins[0] if own is not None and twins and twins[0] is not None else None

    def ranked(self, pattern: str) -> list[Record]:
        """The rows of a pattern, best mean first."""
        field = self.measure.field("mean")
        known = [row for row in self.rows if row["pattern"] == pattern and finite(row.get(field)) is not None]
        return sorted(known, key=lambda row: row[field], reverse=self.measure.key == "accuracy")

    def winner(self, pattern: str) -> str | None:
        """The method with the best mean of several; None if a mean is of one seed only and may be chance."""
        ranked, std = self.ranked(pattern), self.measure.field("std")
        several = all(self.ends(row) or finite(row[std]) is not None for row in ranked)
        return str(ranked[0]["method"]) if len(ranked) > 1 and several else None


def outcome(comparison: Comparison) -> Outcome:
    """Prepare a comparison. The table is computed from the runs if the file has none."""
    runs = _once([_named(run) for run in comparison.runs])
    given = comparison.record.get("table")
    rows = [_named(row) for row in given if isinstance(row, dict)] if isinstance(given, list) else []
    rows = _once(rows, "method", "pattern") if rows else table(_whole(runs))
    found = method_styles(row["method"] for row in [*rows, *runs])
    patterns = list(dict.fromkeys(str(row["pattern"]) for row in [*rows, *runs] if row["pattern"]))
    order = {name: i for i, name in enumerate(found)}
    rows.sort(key=lambda row: (patterns.index(row["pattern"]) + 1 if row["pattern"] else 0, order[row["method"]]))
    measured = any(finite(run.get("accuracy")) is not None for run in runs) or any(
        finite(row.get("accuracy_mean")) is not None for row in rows
    )
    return Outcome(Measure("accuracy" if measured or not runs else "loss"), runs, rows, patterns, found)


def _named(record: Record) -> Record:
    """A record with every field, None where missing; method and pattern are text, and dense has no pattern."""
    method = str(record.get("method") or "unnamed")
    pattern = str(record["pattern"]) if record.get("pattern") and method != REFERENCE else None
    return {**dict.fromkeys(FIELDS), **record, "method": method, "pattern": pattern}


def _once(records: Sequence[Record], *keys: str) -> list[Record]:
    """The records without duplicates: a dense run may be listed for every pattern."""
    kept: dict[tuple[Any, ...], Record] = {}
    for record in records:
        kept.setdefault(tuple(str(record.get(key)) for key in keys or ("method", "pattern", "seed")), record)
    return list(kept.values())


def _whole(runs: Sequence[Record]) -> list[Record]:
    """The runs with a number for each cost, as the table needs."""
    cost = ("seconds", "state_bytes_per_weight", "training_flops_ratio")
    return [{**run, **{key: finite(run.get(key)) or 0.0 for key in cost}} for run in runs]
