"""Events during training: to the metrics file, a listener and TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nmlearn.errors import ConfigError
from nmlearn.lab.train.folder import RunFolder
from nmlearn.learn.sparsifier import Sparsifier
from nmlearn.maths import masks

Listener = Callable[[dict[str, Any]], None]
"""Receives every event of metrics.jsonl, and {"event": "step", "step", "epoch", "total_steps"} after every step."""


class Journal:
    """Writes events on the first process; silent on the others.

    Args:
        folder: where metrics.jsonl is written; None writes nothing.
        listener: called with every event; an exception it raises stops training.
        tensorboard: also write TensorBoard events, from step ``start`` on.
    """

    def __init__(self, folder: RunFolder | None, listener: Listener | None, tensorboard: bool, start: int) -> None:
        self._folder = folder
        self._listener = listener if folder is not None else None
        self._board = _board(folder.path, start) if folder is not None and tensorboard else None

    def write(self, event: str, step: int, **values: Any) -> dict[str, Any]:
        """Write an event everywhere, and return it. Non-finite numbers, which JSON cannot hold, become None."""
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        line = {"event": event, "step": step, **values}
        if self._folder is not None:
            self._folder.append(line)
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._board.add_scalar(f"{event}/{name}", value, step)
        self.tell(line)
        return line

    def tell(self, event: dict[str, Any]) -> None:
        """Pass an event to the listener only."""
        if self._listener is not None:
            self._listener(event)

    def close(self) -> None:
        """Close the TensorBoard file."""
        if self._board is not None:
            self._board.close()


class Stopwatch:
    """Seconds spent in training, excluding evaluation and writing."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Resume."""
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Pause; a GPU's queue must be empty, which reading a loss ensures."""
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None


class MaskWatch:
    """The sparsity event: density and survivors of each layer, and how much the masks changed since the last event.

    Attributes:
        masks: name -> the mask at the last event, bool; kept in checkpoints, so that a resumed run writes the same
            events.
    """

    def __init__(self, sparsifier: Sparsifier) -> None:
        self._sparsifier = sparsifier
        self.masks: dict[str, torch.Tensor] = {}

    def look(self) -> dict[str, Any]:
        """The current values of the event."""
        now = {name: mask.clone() for name, mask in self._sparsifier.masks().items()}
        kept, changed, entries = masks.counts(now, self.masks).tolist()
        self.masks = now
        return {
            "progress": self._sparsifier.progress,
            "mask_change": changed / entries if entries else 0.0,
            "density": kept / entries if entries else 1.0,
            "layers": {
                status.name: {
                    "density": status.density,
                    "survivors": status.survivors,
                    "combinations": status.combinations,
                }
                for status in self._sparsifier.status()
            },
        }


def _board(folder: Path, start: int) -> Any:
    return summary_writer()(str(folder / "tensorboard"), purge_step=start)


def summary_writer() -> Any:
    """TensorBoard's writer.

    Raises:
        ConfigError: the package is missing or broken.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            where="tensorboard",
            given="true",
            wrong=f"TensorBoard cannot be imported: {error}",
            fix="pip install tensorboard, or set tensorboard: false",
        ) from error
    return SummaryWriter
