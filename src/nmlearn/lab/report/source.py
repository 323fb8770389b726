"""Reads the data of a report from a run folder or a comparison. Missing and half-written parts are tolerated: reports
are most useful while a run is in progress, or after it was killed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from nmlearn.errors import ConfigError, FormatError
from nmlearn.lab.report.numbers import finite

Record: TypeAlias = dict[str, Any]
PARTS = ("metrics.jsonl", "summary.json", "plan.json", "config.yaml", "env.json")


@dataclass(frozen=True)
class RunFolder:
    """A run folder.

    Attributes:
        folder: its path.
        config: config.yaml as text; empty when missing.
        environment: env.json.
        plan: the rows of plan.json.
        events: metrics.jsonl, in order; steps that a resumed run repeated appear once.
        summary: summary.json, else the final event, else empty.
        resumed: the steps at which the run was resumed.
        unreadable: number of lines in metrics.jsonl that are not JSON objects.
    """

    folder: Path
    config: str
    environment: Record
    plan: list[Record]
    events: list[Record]
    summary: Record
    resumed: list[int]
    unreadable: int

    def of(self, kind: str) -> list[Record]:
        """The events of one kind."""
        return [event for event in self.events if event.get("event") == kind]

    @property
    def finished(self) -> bool:
        """Whether the run finished."""
        return bool(self.summary)

    @cached_property
    def start(self) -> Record:
        """The first start event, or an empty one."""
        return next(iter(self.of("start")), {})

    def setting(self, key: str) -> str:
        """model, data, method, pattern or seed: from the summary, else from the configuration, else ""."""
        value = self.summary.get(key)
        if value not in (None, "") or (key == "pattern" and self.finished):
            return "" if value is None else str(value)
        return _setting(self.config, "method", "pattern") if key == "pattern" else _setting(self.config, key)

    @property
    def last_step(self) -> int:
        """The last recorded step."""
        return max((int(step) for event in self.events if (step := finite(event.get("step"))) is not None), default=0)


@dataclass(frozen=True)
class Comparison:
    """Runs of several methods, patterns and seeds under one recipe.

    Attributes:
        path: the results file, or the folder if there is none yet.
        record: the contents of the results file; empty if there is none yet.
        runs: one record per finished run.
        folders: the run folders next to it.
    """

    path: Path
    record: Record
    runs: list[Record]
    folders: list[RunFolder]


def read(path: Path) -> RunFolder | Comparison:
    """Read a run folder, a comparison's folder or a results file.

    Raises:
        ConfigError: there is nothing, or the folder is neither.
        FormatError: the results file is not from a comparison.
    """
    if path.is_file():
        return _comparison(path, path.parent / "runs")
    if path.is_dir():
        if (path / "results.json").is_file():
            return _comparison(path / "results.json", path / "runs")
        if any((path / part).is_file() for part in PARTS):
            return read_run(path)
        folders = _folders(path / "runs") or _folders(path)
        if folders:
            return Comparison(path, {}, [run.summary for run in folders if run.finished], folders)
        fix = "give a run's folder, a comparison's folder or a results/*.json file"
        raise ConfigError(where="report", given=path, wrong="it is neither a run nor a comparison", fix=fix)
    raise ConfigError(where="report", given=path, wrong="there is no such file or folder", fix="check the path")


def read_run(folder: Path) -> RunFolder:
    """Read a run folder, as far as it has been written."""
    events, resumed, unreadable = _events(folder / "metrics.jsonl")
    final = [event for event in events if event.get("event") == "final"]
    rows = _json(folder / "plan.json").get("rows")
    return RunFolder(
        folder=folder,
        config=_text(folder / "config.yaml"),
        environment=_json(folder / "env.json"),
        plan=[row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else [],
        events=events,
        summary=_json(folder / "summary.json") or (final[-1] if final else {}),
        resumed=resumed,
        unreadable=unreadable,
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _json(path: Path) -> Record:
    """The JSON object in a file; empty if the file is missing or half-written."""
    try:
        value = json.loads(_text(path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _events(path: Path) -> tuple[list[Record], list[int], int]:
    """Events, steps of resumption, number of unreadable lines (a killed run ends within a line)."""
    events: list[Record] = []
    resumed: list[int] = []
    unreadable = 0
    for line in _text(path).splitlines():
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            unreadable += 1
            continue
        if event.get("event") == "start":
            events, resumed = _restart(events, resumed, event)
        events.append(event)
    return events, resumed, unreadable


def _restart(events: list[Record], resumed: list[int], start: Record) -> tuple[list[Record], list[int]]:
    """The earlier events that remain valid after a new start: those up to its checkpoint, or none."""
    if not start.get("resumed"):
        return [], []
    step = int(finite(start.get("step")) or 0)
    kept = [event for event in events if (finite(event.get("step")) or 0) <= step and event.get("event") != "final"]
    return kept, [*resumed, step]


def _folders(folder: Path) -> list[RunFolder]:
    if not folder.is_dir():
        return []
    return [read_run(child) for child in sorted(folder.iterdir()) if any((child / part).is_file() for part in PARTS)]


def _comparison(path: Path, folder: Path) -> Comparison:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        fix = "give a file written by `nmlearn compare`"
        raise FormatError(
            where=str(path), given="a results file", wrong=f"it cannot be read: {error}", fix=fix
        ) from error
    runs = record.get("runs") if isinstance(record, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) for run in runs):
        fix = "give a file written by `nmlearn compare`"
        raise FormatError(where=str(path), given="a JSON file", wrong="it has no list of runs", fix=fix)
    return Comparison(path, record, runs, _folders(folder))


def _setting(config: str, key: str, inner: str = "name") -> str:
    """A top-level scalar of a YAML text, or a key within it: enough to identify an unfinished run."""
    found = re.search(rf"^{key}:[ \t]*(.*)((?:\n[ \t]+.*)*)", config, re.MULTILINE)
    if found is None:
        return ""
    value = found[1].strip()
    if not value or value.startswith("{") or inner != "name":
        within = re.search(rf"\b{inner}:\s*([^\s,}}]+)", value + found[2])
        value = within[1] if within else ""
    return value.split(" #")[0].strip().strip("\"'")
