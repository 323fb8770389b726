"""The report of a comparison: which method lost least, by how much, with what confidence and at what cost."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from nmlearn.lab.report.comparison_charts import cost_figures, curve_figures, gap_figures
from nmlearn.lab.report.numbers import count, finite
from nmlearn.lab.report.outcome import Outcome, outcome
from nmlearn.lab.report.page import render
from nmlearn.lab.report.run_page import environment_items
from nmlearn.lab.report.source import Comparison, Record, RunFolder
from nmlearn.lab.report.styles import REFERENCE


def comparison_page(comparison: Comparison, folder: Path) -> str:
    """The HTML of a comparison's report.

    Args:
        comparison: the data of the report.
        folder: where the report will be written; links to run reports are relative to it.
    """
    found = outcome(comparison)
    costs, curves = cost_figures(found), curve_figures(found, comparison.folders)
    sections = {"result": "Result", "cost": "Cost", "curves": "Curves", "runs": "Runs", "recipe": "Recipe"}
    sections["environment"] = "Environment"
    shown = {"cost": costs, "curves": curves}
    noise = found.scaled(found.dense, found.measure.field("std"))
    return render(
        "comparison.html",
        title=_headline(found),
        kicker=_kicker(comparison, found),
        notices=_notices(comparison, found),
        source=comparison.path.name,
        sections={key: name for key, name in sections.items() if shown.get(key, True)},
        found=found,
        measure=found.measure,
        findings=[(pattern, text) for pattern in found.patterns if (text := _finding(found, pattern))],
        noise=noise,
        gaps=gap_figures(found, noise),
        costs=costs,
        curves=curves,
        groups=_groups(found),
        runs=_runs(found, comparison.folders, folder),
        recipe=_recipe(comparison),
        configs=[run.config for run in comparison.folders if run.config],
        environment=environment_items(_environment(comparison)),
        REFERENCE=REFERENCE,
    )


def _kicker(comparison: Comparison, found: Outcome) -> str:
    name = str(comparison.record.get("name") or comparison.path.stem)
    seeds = len({run.get("seed") for run in found.runs})
    numbers = ((len(found.styles), "method"), (len(found.patterns), "pattern"), (seeds, "paired seed"))
    parts = [f"{number} {word}" + "s" * (number != 1) for number, word in numbers]
    return " · ".join(["Comparison", name, *parts])


def _headline(found: Outcome) -> str:
    winners: dict[str, list[str]] = {}
    for pattern in found.patterns:
        if winner := found.winner(pattern):
            winners.setdefault(found.styles[winner].label, []).append(pattern)
    if winners:
        best = "Highest mean accuracy" if found.measure.key == "accuracy" else "Lowest mean loss"
        return f"{best}: " + "; ".join(f"{label} at {_list(patterns)}" for label, patterns in winners.items())
    methods = [style.label for method, style in found.styles.items() if method != REFERENCE]
    measured = any(found.ranked(pattern) for pattern in found.patterns)
    return f"{_list(methods)} at {_list(found.patterns)}" if measured else "No sparse run has finished yet"


def _list(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _notices(comparison: Comparison, found: Outcome) -> list[str]:
    told = []
    going = [run for run in comparison.folders if not run.finished]
    if not comparison.record:
        told.append(f"No results file yet: {count(len(comparison.runs))} runs have finished.")
    if going:
        told.append(f"{count(len(going))} run folders have not finished; their curves are incomplete.")
    if unsure := [
        pattern for pattern in found.patterns if len(found.ranked(pattern)) > 1 and not found.winner(pattern)
    ]:
        told.append(f"No best method at {_list(unsure)}: one seed cannot tell a difference from chance.")
    failures = comparison.record.get("failures")
    for failure in failures if isinstance(failures, list) else []:
        if isinstance(failure, dict):
            told.append(f"Failed: {failure.get('run')}: {failure.get('error')}")
    return told


def _finding(found: Outcome, pattern: str) -> str:
    """The best method, compared with dense and with the second best; empty if there is no clear best."""
    ranked = found.ranked(pattern)
    if not found.winner(pattern):
        return f"{_reached(found, ranked[0])}." if len(ranked) == 1 else ""
    best, second = ranked[:2]
    ends, others = found.ends(best), found.ends(second)
    text = f"{_reached(found, best)}. Next: {found.styles[second['method']].label}, "
    text += found.measure.value(second[found.measure.field("mean")])
    overlap = ends and others and ends[0] <= others[1] and others[0] <= ends[1]
    return text + ("; the two intervals overlap." if overlap else ".")


def _reached(found: Outcome, row: Record) -> str:
    measure = found.measure
    text = f"{found.styles[row['method']].label} reaches {measure.value(row[measure.field('mean')])}"
    gap, ends = finite(row.get(measure.field("gap_mean"))), found.ends(row)
    if gap is None:
        return text
    text += f", {measure.gap(gap)} {measure.short_unit} from dense"
    return text + (f" (95 % interval {measure.gap(ends[0])} to {measure.gap(ends[1])})" if ends else "")


def _groups(found: Outcome) -> list[tuple[str, str | None, list[Record]]]:
    """Heading, best method and rows: dense first, then a group for each pattern."""
    groups: list[tuple[str, str | None, list[Record]]] = [("", None, [row for row in found.rows if not row["pattern"]])]
    for pattern in found.patterns:
        rows = [row for row in found.rows if row["pattern"] == pattern]
        groups.append((pattern, found.winner(pattern), rows))
    return [group for group in groups if group[2]]


def _runs(found: Outcome, folders: list[RunFolder], target: Path) -> list[Record]:
    """Every run with its gap and a link to its own report."""
    order = list(found.styles)
    runs = sorted(found.runs, key=lambda run: (run["pattern"] or "", order.index(run["method"]), str(run.get("seed"))))
    return [{**run, "gap": found.gap(run), "link": _link(run, folders, target)} for run in runs]


def _link(run: Record, folders: list[RunFolder], target: Path) -> tuple[str, str] | None:
    """Name and link of the run's own report, if there is one."""
    for other in folders:
        same = other.setting("method") == run["method"] and other.setting("seed") == str(run.get("seed"))
        report = other.folder / "report.html"
        if same and (run["pattern"] is None or other.setting("pattern") == run["pattern"]) and report.is_file():
            return other.folder.name, quote(os.path.relpath(report, target).replace(os.sep, "/"))
    return None


def _recipe(comparison: Comparison) -> list[tuple[str, str]]:
    recipe, record = comparison.record.get("recipe"), comparison.record
    if not isinstance(recipe, dict) or not recipe:
        return []
    return [*_flat(recipe), *((key, str(record[key])) for key in ("started", "finished") if record.get(key))]


def _flat(record: Record, above: str = "") -> list[tuple[str, str]]:
    """Nested settings by their dotted names."""
    items: list[tuple[str, str]] = []
    for key, value in record.items():
        name = f"{above}{key}"
        if isinstance(value, dict) and value:
            items += _flat(value, f"{name}.")
        else:
            items.append((name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return items


def _environment(comparison: Comparison) -> Record:
    environment = comparison.record.get("environment")
    if not isinstance(environment, dict):
        environment = next((run.environment for run in comparison.folders if run.environment), {})
    commit = comparison.record.get("source_commit")
    if isinstance(commit, list):
        commit = ", ".join(map(str, commit))
    return {**environment, **({"source_commit": commit} if commit else {})}
