"""Reduces rows to one number for each suite, dtype and pattern."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any


def summary(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Dense over sparse time, against both baselines: of sums for convolutions, else the geometric mean over cases.

    Networks are not averaged: each gets its own line.
    """
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        suite = f"model {row['case']}" if row["suite"] == "model" else row["suite"]
        groups[suite, row["dtype"], row["pattern"]].append(row)
    return [
        {
            "suite": suite,
            "dtype": dtype,
            "pattern": pattern,
            "over_best": _ratio(group, "best_ms"),
            "over_eager": _ratio(group, "eager_ms"),
            "cases": len(group),
            "noisy": sum(bool(row["noise"]) for row in group),
        }
        for (suite, dtype, pattern), group in groups.items()
    ]


def _ratio(group: list[dict[str, Any]], dense: str) -> float:
    if "count" in group[0]:
        total = sum(row["count"] * row[dense] for row in group)
        return float(total / sum(row["count"] * row["sparse_ms"] for row in group))
    return math.exp(sum(math.log(row[dense] / row["sparse_ms"]) for row in group) / len(group))
