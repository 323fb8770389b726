"""The run folder: training writes everything into it, and reports are made from it.

config.yaml  env.json  plan.json  metrics.jsonl  summary.json  checkpoints/last.pt  model/model.safetensors
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from nmlearn.errors import StateError
from nmlearn.files import model_file
from nmlearn.lab.train import recipe, run_files
from nmlearn.lab.train.config import TrainConfig
from nmlearn.learn.states import measures

# Settings that do not change what is learned: a run may be resumed with other values.
FREE = {"out", "resume", "device", "threads", "compile", "log_every", "eval_every", "eval_batch_size"}
FREE |= {"checkpoint_every", "tensorboard"}
# The numbers that every summary has, None where there is no such number, and those that some have.
SUMMARY = ("accuracy", "loss", "seconds", "state_bytes_per_weight", "training_flops_ratio", "density")
OPTIONAL = ("ema_accuracy", "bits_per_byte", "box_ap", "mask_ap")


class RunFolder:
    """The files of one run.

    Args:
        path: the folder; created by the first write.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint = self.path / "checkpoints" / "last.pt"
        self.model = self.path / "model" / "model.safetensors"
        self.average = self.path / "model" / "average.safetensors"
        self._metrics_path = self.path / "metrics.jsonl"

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run; None if the run is not finished.

        Raises:
            FormatError: the file holds something else.
        """
        path = self.path / "summary.json"
        if not path.exists():
            return None
        summary = run_files.read_json(path)
        for key in SUMMARY:
            if key not in summary:
                run_files.refuse(path, f"it has no {key}")
        for key in (*SUMMARY, *OPTIONAL):
            if summary.get(key) is not None and not measures(summary[key]):
                run_files.refuse(path, f"its {key} is no number that is not negative and finite")
        return summary

    def holds_work(self) -> bool:
        """Whether the folder holds something that a run with other settings would destroy."""
        return self.checkpoint.exists() or (self.path / "summary.json").exists()

    def config(self) -> dict[str, Any] | None:
        """The resolved configuration of the existing run; None if there is none."""
        path = self.path / "config.yaml"
        return recipe.load(path) if path.exists() else None

    def environment(self) -> dict[str, Any]:
        """The environment of the start, and those of later resumes under "resumed"; empty before the start."""
        path = self.path / "env.json"
        return run_files.read_json(path) if path.exists() else {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training here at the same time.

        Raises:
            StateError: another one already does.
        """
        lock = FileLock(self.path / ".lock")
        with run_files.explained(self.path / ".lock"):
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / ".lock").touch()
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise StateError(
                where="out",
                given=self.path,
                wrong="another process is training here",
                fix="wait for it, stop it, or give another --out",
            ) from None
        except OSError:
            pass  # the file system has no locks
        try:
            self._sweep()
            yield
        finally:  # the end of the process releases it too
            lock.release()

    def _sweep(self) -> None:
        """Remove the half-written files of killed processes."""
        names = ("config.yaml", "env.json", "plan.json", "summary.json")
        for path in (self.checkpoint, self.model, self.average, *(self.path / name for name in names)):
            run_files.sweep(path)

    def begin(
        self, config: TrainConfig, environment: dict[str, Any], plan: list[dict[str, Any]], resumed: bool
    ) -> None:
        """Write what is known before the first step. A resumed run keeps its first environment."""
        run_files.write_text(self.path / "config.yaml", recipe.dumps(config))
        first = self.environment() if resumed else {}
        if first:
            resumes = first.get("resumed", [])
            environment = {**first, "resumed": [*(resumes if isinstance(resumes, list) else []), environment]}
        run_files.write_json(self.path / "env.json", environment)
        run_files.write_json(self.path / "plan.json", {"rows": plan})

    def clear(self) -> None:
        """Remove files of an earlier run that a new one would only overwrite at its end."""
        # The summary marks the rest as complete, so it goes first: this may be killed halfway.
        first = (self.path / "summary.json", self.checkpoint)
        for path in (*first, self.model, self.average, self._metrics_path, self.path / "env.json"):
            with run_files.explained(path):
                path.unlink(missing_ok=True)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the summary: from now on the run counts as finished."""
        run_files.write_json(self.path / "summary.json", summary)

    def cut_metrics(self, size: int) -> None:
        """Truncate the metrics to ``size`` bytes: what was written after the checkpoint will be written again."""
        if self._metrics_path.exists():
            with run_files.explained(self._metrics_path):
                os.truncate(self._metrics_path, min(size, self._metrics_path.stat().st_size))

    def append(self, event: dict[str, Any]) -> None:
        """Append one event to the metrics: a whole line, or none.

        Raises:
            WriteError: the file cannot be written.
        """
        line = (json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n").encode()
        with run_files.explained(self._metrics_path):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self._metrics_path, "ab", buffering=0) as file:
                before = file.tell()
                try:
                    _write_all(file, line)
                except OSError:
                    file.truncate(before)
                    raise

    def flush_metrics(self) -> int:
        """Flush the metrics to disk; returns their size in bytes, for the checkpoint."""
        with run_files.explained(self._metrics_path), open(self._metrics_path, "ab") as file:
            os.fsync(file.fileno())
            return file.tell()


def _write_all(file: Any, octets: bytes) -> None:
    """Write all bytes to an unbuffered file, which may accept fewer at a time when the disk is nearly full."""
    while octets:
        octets = octets[file.write(octets) :]


def difference(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> str | None:
    """The first key whose value would change what is learned; None if there is none.

    Settings for where and how often to write, and the number of threads, do not count.
    """
    for key in sorted(before.keys() | now.keys()):
        if not prefix and key in FREE:
            continue
        old, new = before.get(key, ...), now.get(key, ...)  # a null rule differs from no rule
        if isinstance(old, dict) and isinstance(new, dict):
            found = difference(old, new, f"{prefix}{key}.")
            if found:
                return found
        elif old != new:
            return f"{prefix}{key}"
    return None


def save_model(path: Path, model: torch.nn.Module, patterns: dict[str, str]) -> None:
    """Save a model's state as safetensors, dense including the zeros, under the model's own keys.

    Args:
        path: the file.
        model: the model to save.
        patterns: qualified name of each sparse weight -> its pattern; written as JSON into the file's metadata under
            "nmlearn.patterns".

    Tied weights are written under each of their names, so that loaders find every key.
    """
    model_file.save(model, path, packed=False, metadata={run_files.PATTERNS: json.dumps(patterns)})
