"""``nmlearn compare``: methods x patterns x seeds, the table and its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nmlearn.cli import console, parsing
from nmlearn.cli.bars import CompareBar
from nmlearn.lab.train.config import CompareConfig

DESCRIPTION = """Train methods x patterns x seeds under one protocol, and compare them with dense training.

Runs of one seed share initial weights and batches. Finished runs are kept: the same command resumes the rest."""


def run(arguments: list[str]) -> int:
    """Run the comparison; 1 when a run failed."""
    config = parsing.parse(CompareConfig, "compare", arguments, DESCRIPTION)
    from nmlearn.lab.train.compare import compare, plan_runs, results_path

    runs = list(plan_runs(config))
    console.out.print(console.say("bold", config.name, f": {len(runs)} runs, {config.jobs} at a time"))
    with CompareBar(len(runs)) as bar:
        results = compare(config, bar)
    console.out.print()
    console.out.print(_table(results["table"]))
    _notes(results)
    import nmlearn.lab.report

    for result in results["runs"]:  # first, because the comparison's page links to the reports that exist
        nmlearn.lab.report.write(Path(config.folder) / "runs" / result["folder"])
    path = Path(config.folder) / "results.json" if results["failures"] else results_path(config)
    console.out.print(f"results  {path}", soft_wrap=True)
    console.out.print(f"report   {nmlearn.lab.report.write(Path(config.folder))}", soft_wrap=True)
    return 1 if results["failures"] else 0


def _table(rows: list[dict[str, Any]]) -> Any:
    accuracy = any(row["accuracy_mean"] is not None for row in rows)
    value = "accuracy" if accuracy else "loss"
    numbers = (value, "gap to dense", "time", "state", "arithmetic")
    table = console.table("method", "pattern", *numbers, right=",".join(numbers))
    for row in rows:
        table.add_row(
            row["method"],
            row["pattern"] or console.DASH,
            _value(row, value),
            _gap(row) if accuracy else console.number(row["loss_gap_mean"], 4),
            console.duration(row["seconds_median"]),
            f"{row['state_bytes_per_weight']:.1f}",
            console.number(row["training_flops_ratio"]),
        )
    return table


def _value(row: dict[str, Any], key: str) -> str:
    mean, spread = row[f"{key}_mean"], row[f"{key}_std"]
    if key == "loss":
        return console.number(mean, 4)
    return console.percent(mean) + (f" ± {100 * spread:.2f}" if spread is not None else "")


def _gap(row: dict[str, Any]) -> str:
    return console.points(row["gap_mean"], row["gap_low"], row["gap_high"])


def _notes(results: dict[str, Any]) -> None:
    seeds = len(results["seeds"])
    paired = f"with its 95 % t-interval over {seeds} paired seeds" if seeds > 1 else "of a single seed"
    console.out.print()
    console.out.print(
        f"gap: percentage points to the dense run {paired}. time: training, median. state: peak bytes "
        "per sparse weight in addition to the model. arithmetic: training FLOPs of the sparse layers relative to "
        "dense; fewer FLOPs save time only where a kernel exploits them.",
        style="dim",
    )
    console.out.print()
    for failure in results["failures"]:
        console.out.print(console.say("red", "failed", f" {failure['run']}: {failure['error']}"))
