"""The report of a comparison: which method lost least, by how much, how surely, and at what cost."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.parse import quote

from nmlearn.lab.report.comparison_charts import cost_figures, curve_section, gap_figures
from nmlearn.lab.report.markup import Column, Content, Markup, Row, element, pairs, table
from nmlearn.lab.report.numbers import count, duration, finite, fixed, share, times
from nmlearn.lab.report.outcome import Outcome, outcome
from nmlearn.lab.report.page import Section, page
from nmlearn.lab.report.palette import legend, mark
from nmlearn.lab.report.run_page import environment_section
from nmlearn.lab.report.source import Comparison, Record, Run


def comparison_page(comparison: Comparison, folder: Path) -> str:
    """The HTML of a comparison's report.

    Args:
        comparison: what was read.
        folder: where the report will lie; links to run reports are relative to it.
    """
    found = outcome(comparison)
    sections = [
        _result(found),
        _cost(found),
        *curve_section(found, comparison.folders),
        _runs(found, comparison.folders, folder),
        Section("recipe", "Recipe", _recipe(comparison)),
        environment_section(_environment(comparison)),
    ]
    return page(_headline(found), _kicker(comparison, found), _lead(comparison, found), sections, comparison.path.name)


def _kicker(comparison: Comparison, found: Outcome) -> str:
    name = str(comparison.record.get("name") or comparison.path.stem)
    seeds = {run.get("seed") for run in found.runs}
    parts = [f"{len(found.looks)} methods", f"{len(found.patterns)} patterns", f"{len(seeds)} paired seeds"]
    return " · ".join(["Comparison", name, *(part[:-1] if part.startswith("1 ") else part for part in parts)])


def _headline(found: Outcome) -> str:
    winners: dict[str, list[str]] = {}
    for pattern in found.patterns:
        for row in found.ranked(pattern)[:1]:
            winners.setdefault(found.looks[row["method"]].label, []).append(pattern)
    if not winners:
        return "No sparse run has finished yet"
    best = "Highest mean accuracy" if found.measure.key == "accuracy" else "Lowest mean loss"
    return f"{best}: " + "; ".join(f"{label} at {_list(patterns)}" for label, patterns in winners.items())


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _lead(comparison: Comparison, found: Outcome) -> Content:
    """Per pattern, the best and how it stands to dense and to the next."""
    notices = [element("p", text, class_="notice") for text in _notices(comparison)]
    told = [element("li", text) for pattern in found.patterns if (text := _finding(found, pattern))]
    dense = found.dense
    std = finite(dense.get(found.measure.field("std")))
    spread = f" ± {found.measure.bare(std)}" if std is not None else ""
    base = (
        f"Dense, the reference: {found.measure.bare(dense[field])}{spread} {found.measure.unit}."
        if (field := found.measure.field("mean")) in dense
        else ""
    )
    return [notices, element("p", base) if base else None, element("ul", told, class_="findings") if told else None]


def _notices(comparison: Comparison) -> list[str]:
    told = []
    going = [run for run in comparison.folders if not run.finished]
    if not comparison.record:
        told.append(f"No results file yet: {count(len(comparison.runs))} runs are finished.")
    if going:
        told.append(f"{count(len(going))} run folders have not finished; their curves are drawn as far as they go.")
    failures = comparison.record.get("failures")
    for failure in failures if isinstance(failures, list) else []:
        if isinstance(failure, dict):
            told.append(f"Failed: {failure.get('run')}: {failure.get('error')}")
    return told


def _finding(found: Outcome, pattern: str) -> Content:
    ranked, measure = found.ranked(pattern), found.measure
    if not ranked:
        return None
    best, field = ranked[0], measure.field("mean")
    text = f"{found.looks[best['method']].label} reaches {measure.value(best[field])}"
    gap = finite(best.get(measure.field("gap_mean")))
    ends = _ends(found, best)
    if gap is not None:
        text += f", {measure.gap(gap)} {measure.short_unit} from dense"
        text += f" (95 % interval {measure.gap(ends[0])} to {measure.gap(ends[1])})" if ends else ""
    if len(ranked) > 1:
        label, second = found.looks[ranked[1]["method"]].label, _ends(found, ranked[1])
        text += f". Next: {label}, {measure.value(ranked[1][field])}"
        if ends and second and ends[0] <= second[1] and second[0] <= ends[1]:
            text += "; the two intervals overlap"
    return [element("b", pattern), " ", text + "."]


def _ends(found: Outcome, row: Record) -> tuple[float, float] | None:
    low, high = (finite(row.get(found.measure.field(name))) for name in ("gap_low", "gap_high"))
    return (low, high) if low is not None and high is not None else None


def _result(found: Outcome) -> Section:
    name = "accuracy" if found.measure.key == "accuracy" else "loss"
    note = element(
        "p", "Best mean of each pattern in bold. Gaps are to the dense run of the same seed.", class_="quiet"
    )
    heading = element("h3", f"Gap to dense in {name}", class_="over")
    return Section("result", "Result", [heading, legend(found.looks.values()), gap_figures(found), _table(found), note])


def _table(found: Outcome) -> Markup:
    measure = found.measure
    columns = [
        Column("Method"),
        Column(measure.key.capitalize(), "number", ", ".join(filter(None, [measure.unit, "mean ± std"]))),
        Column("Gap to dense", "number", "points" if measure.key == "accuracy" else "nats"),
        Column("95 % interval", "number"),
        Column("Training time", "number", "median"),
        Column("Training FLOPs", "number", "sparse layers, of dense"),
        Column("State", "number", "bytes per weight"),
        Column("Seeds", "number"),
    ]
    groups = [("", [_row(found, row, False) for row in found.rows if not row["pattern"]])]
    for pattern in found.patterns:
        best = [row["method"] for row in found.ranked(pattern)[:1]]
        rows = [_row(found, row, row["method"] in best) for row in found.rows if row["pattern"] == pattern]
        groups.append((pattern, rows))
    return table("result", "Means over seeds", columns, [group for group in groups if group[1]])


def _row(found: Outcome, row: Record, best: bool) -> Row:
    measure, look = found.measure, found.looks[row["method"]]
    sign = element(
        "svg", mark(look.shape, 8, 8, 4.5), viewBox="0 0 16 16", class_=f"sign {look.paint}", aria_hidden="true"
    )
    mean, std = measure.bare(row.get(measure.field("mean"))), finite(row.get(measure.field("std")))
    value = f"{mean} ± {measure.bare(std)}" if std is not None else mean
    ends, dense = _ends(found, row), row["method"] == "dense"
    return [
        element("span", sign, element("b", look.label) if best else look.label, class_="method"),
        element("b", value) if best else value,
        "" if dense else measure.gap(row.get(measure.field("gap_mean"))),
        f"{measure.gap(ends[0])} to {measure.gap(ends[1])}" if ends and not dense else "",
        duration(row.get("seconds_median")),
        times(row.get("training_flops_ratio")),
        fixed(row.get("state_bytes_per_weight"), 1),
        count(row.get("seeds")),
    ]


def _cost(found: Outcome) -> Section:
    return Section("cost", "Cost", cost_figures(found))


def _runs(found: Outcome, folders: list[Run], target: Path) -> Section:
    columns = [
        Column("Method"),
        Column("Pattern"),
        Column("Seed", "number"),
        Column(found.measure.key.capitalize(), "number", found.measure.unit),
        Column("Gap", "number", "to the same seed"),
        Column("Loss", "number"),
        Column("Density", "number"),
        Column("Time", "number"),
        Column("FLOPs", "number", "of dense"),
        Column("Report"),
    ]
    order = list(found.looks)
    runs = sorted(found.runs, key=lambda run: (run["pattern"] or "", order.index(run["method"]), str(run.get("seed"))))
    rows = [_run_row(found, run, folders, target) for run in runs]
    whole = table("runs", "Every run", columns, [("", rows)])
    opened = element("details", element("summary", f"{count(len(rows))} runs"), whole, open=len(rows) <= 12)
    return Section("runs", "Runs", opened)


def _run_row(found: Outcome, run: Record, folders: list[Run], target: Path) -> Row:
    return [
        found.looks[run["method"]].label,
        run["pattern"] or "",
        str(run.get("seed", "")),
        found.measure.bare(run.get(found.measure.key)),
        "" if run["method"] == "dense" else found.measure.gap(found.gap(run)),
        fixed(run.get("loss"), 3),
        share(run.get("density")),
        duration(run.get("seconds")),
        times(run.get("training_flops_ratio")),
        _link(run, folders, target),
    ]


def _link(run: Record, folders: list[Run], target: Path) -> Content:
    """To the run's own report, when it lies there."""
    for other in folders:
        same = other.setting("method") == run["method"] and other.setting("seed") == str(run.get("seed"))
        report = other.folder / "report.html"
        if same and (run["pattern"] is None or other.setting("pattern") == run["pattern"]) and report.is_file():
            address = quote(os.path.relpath(report, target).replace(os.sep, "/"))
            return element("a", other.folder.name, href=address)
    return ""


def _recipe(comparison: Comparison) -> Content:
    recipe = comparison.record.get("recipe")
    if isinstance(recipe, dict) and recipe:
        items = _flat(recipe)
        more = [(key, str(comparison.record[key])) for key in ("started", "finished") if comparison.record.get(key)]
        return pairs("recipe", "What all runs share", [*items, *more])
    configs = [run.config for run in comparison.folders if run.config]
    if configs:
        return [element("p", "Of the first run:", class_="quiet"), element("pre", configs[0], tabindex="0")]
    return element("p", "No recipe was recorded.", class_="quiet")


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
