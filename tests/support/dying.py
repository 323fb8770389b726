"""A training that is killed again and again, and each time goes on.

A life is a fork of this process, which has imported everything, that runs
`nmlearn train`; it dies at a random time, or at a random moment of its writing: within a write, or around an fsync, a
rename, a removal or a truncation. After at most five deaths a run is left to finish, and is compared with one that was
never disturbed.
"""

from __future__ import annotations

import json
import os
import pty
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import nmlearn.files.atomic
import nmlearn.lab.report.run_page  # so that lives need not import it
import nmlearn.lab.train.folder
import nmlearn.lab.train.loop
import toy
from nmlearn import cli
from nmlearn.lab.train import DataConfig, checkpoints, recipe

TIMES = ("seconds", "examples_per_second")
DEATHS_A_RUN = 5


class Moments:
    """Counts the moments of writing by kind, and sends this process a signal at one of them."""

    def __init__(self, kind: str = "", number: int = 0, sent: signal.Signals = signal.SIGKILL) -> None:
        self.kind, self.number, self.sent = kind, number, sent
        self.seen: Counter[str] = Counter()

    def pass_by(self, kind: str) -> None:
        self.seen[kind] += 1
        if (kind, self.seen[kind]) == (self.kind, self.number):
            os.kill(os.getpid(), self.sent)

    def install(self) -> None:
        for name in ("fsync", "replace", "unlink", "truncate"):
            setattr(os, name, self._around(name, getattr(os, name)))
        for module in (nmlearn.files.atomic, nmlearn.lab.train.folder):
            module.open = self.open  # type: ignore[attr-defined]

    def open(self, *args: Any, **kwargs: Any) -> Halves:
        return Halves(open(*args, **kwargs), self)

    def _around(self, kind: str, call: Any) -> Any:
        def around(*args: Any, **kwargs: Any) -> Any:
            self.pass_by(kind)
            result = call(*args, **kwargs)
            self.pass_by(kind)
            return result

        return around


class Halves:
    """A file that writes in two halves, with a moment to die between them."""

    def __init__(self, file: Any, moments: Moments) -> None:
        self._file, self._moments = file, moments

    def write(self, octets: Any) -> int:
        octets = octets if isinstance(octets, str) else bytes(octets)
        half = len(octets) // 2
        self._file.write(octets[:half])
        self._file.flush()
        self._moments.pass_by("write")
        self._file.write(octets[half:])
        return len(octets)

    def __enter__(self) -> Halves:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def live(path: Path, moments: Moments | None = None, seconds: float | None = None, count: Path | None = None) -> int:
    """One life of a training by a recipe, until it ends by itself, at a moment, or after so many seconds.

    Returns:
        The exit code; the negative number of the signal that ended it.
    """
    process = os.fork()
    if process == 0:
        _train(path, moments, count)
    killer = threading.Timer(seconds, os.kill, (process, signal.SIGKILL)) if seconds is not None else None
    if killer:
        killer.start()
    # Seen but not collected, so that the number is nobody else's while the timer may fire.
    os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
    if killer:
        killer.cancel()
        killer.join()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def closed_terminal(path: Path, written: Path) -> int:
    """In a process of its own: train in a terminal, close it when a file is there; returns the exit code."""
    torch.set_num_threads(1)
    toy.register()
    process, terminal = pty.fork()
    if process == 0:
        code = 99
        try:
            code = cli.main(["train", "--config", str(path)])
        finally:
            os._exit(code)
    while not written.exists():  # read, so that the terminal has room for more
        os.read(terminal, 10_000)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _train(path: Path, moments: Moments | None, count: Path | None) -> None:
    code = 99
    try:
        log = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if moments is not None:
            moments.install()
        code = cli.main(["train", "--config", str(path)])
        if moments is not None and count is not None:
            count.write_text(json.dumps(moments.seen))
    finally:
        sys.stderr.flush()
        os._exit(code)


def recipe_for(folder: Path) -> Path:
    """A recipe that trains into a folder; one batch of every epoch has a loss that is not finite."""
    data = DataConfig("toy", options={"noise": 0.3, "bad": 5})
    config = toy.config(folder, data=data, checkpoint_every=3, ema=0.9)
    path = folder.with_suffix(".yaml")
    path.write_text(recipe.dumps(config))
    return path


def result(folder: Path) -> dict[str, Any]:
    """All that a run has come to, but for times, its place, and at which steps it was started."""
    state = checkpoints.load(folder / "checkpoints" / "last.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    events = [{k: v for k, v in line.items() if k not in TIMES} for line in lines if line["event"] != "start"]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "events": events,
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
        "checkpoint": {k: v for k, v in state.items() if k not in ("config", "seconds", "metrics_bytes")},
        "model": (folder / "model" / "model.safetensors").read_bytes(),
        "average": (folder / "model" / "average.safetensors").read_bytes(),
        "plan": (folder / "plan.json").read_bytes(),
        "report": (folder / "report.html").stat().st_size > 1000,
        "left behind": [p.name for p in folder.rglob("*.partial")],
    }


def equal(a: Any, b: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def main(base: Path, kills: int, seed: int) -> dict[str, Any]:
    """In a process of its own: kill so often, and say what differed from the undisturbed run."""
    torch.set_num_threads(1)
    toy.register()
    dice, begun = random.Random(seed), time.perf_counter()
    whole, count = base / "whole", base / "count.json"
    assert live(recipe_for(whole), Moments(), count=count) == 0
    expected, length = result(whole), time.perf_counter() - begun
    moments = json.loads(count.read_text())
    found: dict[str, Any] = {"deaths": Counter(), "differences": [], "codes": Counter(), "runs": 0}
    while found["deaths"].total() < kills:
        folder = base / f"run{found['runs']}"
        path = recipe_for(folder)
        for _ in range(min(DEATHS_A_RUN, kills - found["deaths"].total())):
            kind = dice.choice(["time", *moments])
            at = Moments(kind, dice.randint(1, moments[kind] // 2)) if kind != "time" else None
            code = live(path, at, dice.uniform(0, length) if at is None else None)
            found["codes"][code] += 1
            found["deaths"][kind] += code == -signal.SIGKILL
            if code == 0:
                break
        assert live(path) == 0, path.with_suffix(".log").read_text()
        ended = result(folder)
        found["differences"] += [f"{folder.name}: {key}" for key in expected if not equal(ended[key], expected[key])]
        found["runs"] += 1
    return found | {"moments": moments, "seconds": round(time.perf_counter() - begun, 1)}
