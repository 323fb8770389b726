"""Times of kernels on this machine, kept in a JSON file so that each shape is measured once."""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from nmlearn.acceleration.timing import SPREAD, Timing
from nmlearn.errors import WriteError
from nmlearn.files.atomic import write_atomic
from nmlearn.native import library as native
from nmlearn.native import processor as cpuinfo

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmlearn" / "kernels.json"
Measured = tuple[Timing, dict[str, str]]  # the times of candidates, and why others failed


class Times:
    """Seconds, by what was timed and by candidate; noisy ones are used, but not stored.

    Args:
        path: the file; None stores nothing. What is unreadable, or from another machine, is measured again.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.changed = path, False
        self.machine = machine()
        self.known: dict[str, Timing] = {}
        self.failed: dict[str, dict[str, str]] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            data = json.loads(path.read_text()) if path is not None else {}
            if isinstance(data, dict) and data.get("machine") == self.machine:
                self.known = _timings(data.get("times"), data.get("spread"))
                self.failed = _tables(data.get("failed"), lambda why: isinstance(why, str))

    def of(self, what: str, needed: Iterable[str], measure: Callable[[], Measured]) -> Measured:
        """The times of `what`, including the needed ones, and why others failed; from the file if it has them."""
        if not self.known.get(what, Timing()).seconds.keys() >= set(needed):
            self.known[what], self.failed[what] = measure()
            self.changed |= not self.known[what].noise
        return self.known[what], self.failed.get(what, {})

    def save(self) -> None:
        """Write the file if anything is new; an unwritable folder is not an error."""
        if self.path is None or not self.changed:
            return
        quiet = {what: timing for what, timing in self.known.items() if not timing.noise}
        stored = {
            "machine": self.machine,
            "times": {what: timing.seconds for what, timing in quiet.items()},
            "spread": {what: timing.spread for what, timing in quiet.items()},
            "failed": {what: failed for what, failed in self.failed.items() if what in quiet},
        }
        text = json.dumps(stored, indent=1)
        with contextlib.suppress(WriteError):
            write_atomic(self.path, lambda file: file.write(text.encode()))


def _timings(times: object, spread: object) -> dict[str, Timing]:
    """The times whose spread is known and narrow."""
    spreads = spread if isinstance(spread, dict) else {}
    return {
        what: Timing(table, wide)
        for what, table in _tables(times, lambda t: isinstance(t, float) and 0 < t < math.inf).items()
        if isinstance(wide := spreads.get(what), float) and 0 <= wide <= SPREAD
    }


def _tables(data: object, valid: Callable[[object], bool]) -> dict[str, dict[str, Any]]:
    """The tables in a table whose values are all valid."""
    tables = data.items() if isinstance(data, dict) else ()
    return {what: table for what, table in tables if isinstance(table, dict) and all(map(valid, table.values()))}


def machine() -> dict[str, str | int]:
    """What times depend on in addition to shapes. Each GPU time names its GPU: querying all would initialize all."""
    return {
        "processor": _processor(),
        "kernels": native.isa(),
        "library": native.fingerprint(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    return " ".join(sorted(set(cpuinfo.fields("model name", "model")))) or platform.processor() or platform.machine()
