"""Times of kernels on this machine, kept in a JSON file so that the same shape is measured once."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from nmlearn.acceleration.timing import interleaved
from nmlearn.errors import WriteError
from nmlearn.files.atomic import write_atomic
from nmlearn.native import library as native
from nmlearn.native import processor as cpuinfo

DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nmlearn" / "kernels.json"
Calls = Mapping[str, Callable[[], object]]


class Times:
    """Seconds by what was timed and the names of its calls.

    Args:
        path: the file; None keeps nothing. A file that cannot be read or is of another machine is begun anew.
    """

    def __init__(self, path: Path | None) -> None:
        self.path, self.changed = path, False
        self.machine = machine()
        self.known: dict[str, dict[str, float]] = {}
        self.failed: dict[str, dict[str, str]] = {}
        try:
            data = json.loads(path.read_text()) if path is not None else {}
            if data.get("machine") == self.machine:
                self.known, self.failed = data["times"], data.get("failed", {})
        except (OSError, ValueError, KeyError, AttributeError):
            pass

    def of(self, what: str, calls: Callable[[], Calls]) -> dict[str, float]:
        """The times of `what`, from the file or by running the calls."""
        if what not in self.known:
            self.known[what] = interleaved(calls())
            self.changed = True
        return self.known[what]

    def of_failing(
        self, what: str, measure: Callable[[], tuple[dict[str, float], dict[str, str]]]
    ) -> tuple[dict[str, float], dict[str, str]]:
        """The same where ways can fail: the times of those that did not, and why the others did."""
        if what not in self.known:
            self.known[what], self.failed[what] = measure()
            self.changed = True
        return self.known[what], self.failed.get(what, {})

    def save(self) -> None:
        """Write the file, if anything is new; a folder that cannot be written to is no error."""
        if self.path is None or not self.changed:
            return
        text = json.dumps({"machine": self.machine, "times": self.known, "failed": self.failed}, indent=1)
        with contextlib.suppress(WriteError):
            write_atomic(self.path, lambda file: file.write(text.encode()))


def machine() -> dict[str, str | int]:
    """What times depend on beside the shapes; a GPU is named with each of its times, for to ask all would start all."""
    return {
        "processor": _processor(),
        "kernels": native.isa(),
        "library": native.fingerprint(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    return " ".join(sorted(set(cpuinfo.fields("model name", "model")))) or platform.processor() or platform.machine()
