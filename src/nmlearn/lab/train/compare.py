"""Methods x patterns x seeds under one protocol, in parallel processes.

Runs of one seed start from the same weights and see the same batches, so their differences from the dense run are
paired. Finished runs are kept, interrupted ones resume from their checkpoint, and failed ones are reported without
affecting the others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nmlearn.lab.train import recipe, run_files, setting
from nmlearn.lab.train.checkpoints import refuse_other
from nmlearn.lab.train.config import CompareConfig, MethodConfig, TrainConfig
from nmlearn.lab.train.environment import now
from nmlearn.lab.train.folder import SUMMARY, RunFolder
from nmlearn.lab.train.journal import Listener
from nmlearn.lab.train.statistics import table

OPTIONAL_KEYS = ("ema_accuracy", "bits_per_byte")
ORIGIN_KEYS = ("source_commit", "started", "cpu", "torch")
Command = Callable[[Path], list[str]]
"""Makes the command that trains from a given recipe file, and ends when its standard input does."""


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison, as planned. ``pattern`` is None for dense."""

    method: str
    pattern: str | None
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """The name of its folder."""
        pattern = f"-{self.pattern.replace(':', 'of')}" if self.pattern else ""
        return f"{self.method}{pattern}-s{self.seed}"

    @property
    def folder(self) -> RunFolder:
        """Where it is written."""
        return RunFolder(self.config.folder)


def worker(path: Path) -> list[str]:
    """The command for one run, with this Python interpreter."""
    return [sys.executable, "-m", "nmlearn.lab.train.worker", str(path)]


def compare(config: CompareConfig, listener: Listener | None = None, command: Command = worker) -> dict[str, Any]:
    """Train the runs that are not finished yet, and write the results.

    They are written next to the runs, as FOLDER/results.json, and to ``results/NAME.json`` once every run has
    finished: a failure never replaces a complete result.

    Args:
        config: what to compare.
        listener: called with {"event": "run", "run": name, "state": "kept", "started", "finished" or "failed", ...}
            when a run changes, and with {"event": "progress", "run", ...} and the run's latest metrics while it
            trains.
        command: makes the command that trains from a recipe file.

    Returns:
        The contents of the results file; failed runs are listed under "failures" with their error.

    Raises:
        ConfigError: a folder holds a run with other settings.
        NMLearnError: the data, the model or a method refuses its settings, before anything is trained.
    """
    tell = listener or (lambda event: None)
    runs = list(plan_runs(config))
    for run in runs:
        _refuse_other(run)
    waiting = [run for run in runs if not _finished(run)]
    if waiting:
        setting.check([run.config for run in waiting])
    failures = _run_all(runs, config.jobs, tell, command)
    path = Path(config.folder) / "results.json"
    kept = None if waiting or not path.exists() else run_files.read_json(path)
    value = _results(config, [run for run in runs if run.name not in failures], failures, kept)
    run_files.write_json(path, value)
    if not failures:
        run_files.write_json(results_path(config), value)
    return value


def _results(
    config: CompareConfig, finished: list[PlannedRun], failures: dict[str, str], kept: dict[str, Any] | None
) -> dict[str, Any]:
    """The contents of the results file; ``kept`` is the previous one if nothing was trained since."""
    results = [_result(run) for run in finished]
    commits = sorted({str(result["source_commit"]) for result in results if result["source_commit"]})
    starts = [str(result["started"]) for result in results if result["started"]]
    return {
        "name": config.name,
        "recipe": recipe.to_dict(config),
        "source_commit": commits if len(commits) > 1 else next(iter(commits), None),
        "environment": finished[0].folder.environment() if finished else {},
        "seeds": list(config.seeds),
        "started": min(starts, default=None),
        "finished": (kept or {}).get("finished") or now(),
        "runs": results,
        "table": table(results),
        "failures": [{"run": name, "error": error} for name, error in failures.items()],
    }


def _result(run: PlannedRun) -> dict[str, Any]:
    """One finished run: its results and its environment."""
    summary, environment = run.folder.summary() or {}, run.folder.environment()
    optional = {key: summary[key] for key in OPTIONAL_KEYS if summary.get(key) is not None}
    return {
        "method": run.method,
        "pattern": run.pattern,
        "seed": run.seed,
        **{key: summary[key] for key in SUMMARY},
        **optional,
        "folder": run.name,
        **{key: environment.get(key) for key in ORIGIN_KEYS},
    }


def results_path(config: CompareConfig) -> Path:
    """The published results file of a comparison."""
    return Path(config.results) / f"{config.name}.json"


def plan_runs(config: CompareConfig) -> Iterator[PlannedRun]:
    """All runs, ordered by seed first: after the first seed every method has one result."""
    for seed in config.seeds:
        for method in config.methods:
            for pattern in config.patterns[:1] if method == "dense" else config.patterns:
                yield _run(config, method, pattern, seed)


def _run(config: CompareConfig, method: str, pattern: str, seed: int) -> PlannedRun:
    base = config.train
    own_options = base.method.options if method == base.method.name else {}
    options = {} if method == "dense" else {**own_options, **config.options.get(method, {})}
    train = replace(
        base,
        seed=seed,
        threads=base.threads or 1,
        method=MethodConfig(method, pattern, base.method.rules, options),
    )
    run = PlannedRun(method, None if method == "dense" else pattern, seed, train)
    return replace(run, config=replace(train, out=str(Path(config.folder) / "runs" / run.name)))


def _refuse_other(run: PlannedRun) -> None:
    before = run.folder.config()
    if run.config.resume == "none" or before is None or not run.folder.holds_work():
        return
    refuse_other(str(run.folder.path), before, recipe.to_dict(run.config))


def _run_all(runs: list[PlannedRun], jobs: int, tell: Listener, command: Command) -> dict[str, str]:
    """Train them, ``jobs`` at a time; returns the errors of failed runs by name."""
    failures: dict[str, str] = {}
    waiting = [run for run in runs if not _kept(run, tell)]
    going: list[_Process] = []
    try:
        while waiting or going:
            while waiting and len(going) < jobs:
                going.append(_Process(waiting.pop(0), command))
                tell({"event": "run", "run": going[-1].run.name, "state": "started"})
            time.sleep(0.1)
            for process in list(going):
                for event in process.news():
                    tell({**event, "event": "progress", "run": process.run.name})
                if process.ended():
                    going.remove(process)
                    _conclude(process, failures, tell)
    finally:
        for process in going:
            process.stop()
    return failures


def _kept(run: PlannedRun, tell: Listener) -> bool:
    if not _finished(run):
        return False
    tell({**(run.folder.summary() or {}), "event": "run", "run": run.name, "state": "kept"})
    return True


def _finished(run: PlannedRun) -> bool:
    """Whether the run is complete and need not be trained."""
    return run.config.resume != "none" and run.folder.summary() is not None


def _conclude(process: _Process, failures: dict[str, str], tell: Listener) -> None:
    name, summary = process.run.name, process.run.folder.summary()
    error = process.error()
    if error is None and summary is not None:
        tell({**summary, "event": "run", "run": name, "state": "finished"})
        return
    failures[name] = error or "it ended without a summary"
    tell({"event": "run", "run": name, "state": "failed", "error": failures[name]})


class _Process:
    """A run in its own process."""

    def __init__(self, run: PlannedRun, command: Command) -> None:
        self.run = run
        folder = run.folder.path
        path = folder / "recipe.yaml"
        run_files.write_text(path, recipe.dumps(run.config))
        self._log = folder / "log.txt"
        self._metrics = folder / "metrics.jsonl"
        self._read = self._metrics.stat().st_size if self._metrics.exists() else 0
        # Thread pools read their size from here before torch is imported.
        environment = {**os.environ, "OMP_NUM_THREADS": str(run.config.threads)}
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command(path), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.PIPE, env=environment
            )

    def news(self) -> Iterator[dict[str, Any]]:
        """Events written since the last call, without a half-written line."""
        if not self._metrics.exists():
            return
        with open(self._metrics, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            self._read = min(self._read, size)  # the run truncated its metrics to a checkpoint
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                event = _event(line)
                if event is not None:
                    yield event

    def ended(self) -> bool:
        """Whether the process has ended."""
        if self._process.poll() is None:
            return False
        self._let_go()
        return True

    def error(self) -> str | None:
        """What went wrong, None for success: the last line of the log, and the exit code."""
        if self._process.returncode == 0:
            return None
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'no message'} (exit code {self._process.returncode}; see {self._log})"

    def stop(self) -> None:
        """End the process; its checkpoint stays."""
        self._process.terminate()
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        """Close the pipe whose end would end the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError:  # read from the middle of a line, after a truncation
        return None
    return value if isinstance(value, dict) else None
