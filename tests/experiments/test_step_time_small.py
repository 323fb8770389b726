"""The benchmark of small layers, for a few rounds, and the table of what it writes."""

from __future__ import annotations

import json
import re

import pytest

import step_time_small
import tables

ROUNDS = 4


def test_a_short_run_makes_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {name: step_time_small.CASES[name] for name in ("dense", "lbc, during", "lbc, after")}
    rows = step_time_small.measure(
        ROUNDS, {name: step_time_small.Run(*case, fused=False) for name, case in cases.items()}
    )
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    assert [row["case"] for row in rows] == list(cases)
    dense, *others = rows
    assert dense["calls_more"] == 0 and dense["ratio_quartiles"] == [1.0, 1.0, 1.0]
    assert all(row["calls_more"] > 0 and row["ms"] > 0 for row in others)

    table = tables.KINDS["small layers"]({"rows": rows})
    assert len(table) == 2 + len(rows) and len({line.count("|") for line in table}) == 1
    assert re.fullmatch(r"\| dense \| \d+\.\d \|  \|  \| 0 \|", table[2])
    assert re.fullmatch(r"\| lbc, during \| [\d.]+ \| [\d.]+ \([\d.]+ to [\d.]+\) \| [\d.]+ \| \d+ \|", table[3])
