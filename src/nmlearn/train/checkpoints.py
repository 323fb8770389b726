"""Checkpoints: all of a training that its future depends on, in one file that is whole or absent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmlearn.errors import ConfigError, StateError
from nmlearn.train import files, recipe
from nmlearn.train.accounting import Accounting
from nmlearn.train.config import TrainConfig
from nmlearn.train.folder import RunFolder, difference
from nmlearn.train.journal import MaskWatch, Stopwatch
from nmlearn.train.ranks import Ranks
from nmlearn.train.setting import Setting


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores the parts of one training."""

    config: TrainConfig
    folder: RunFolder
    ranks: Ranks
    setting: Setting
    accounting: Accounting
    masks: MaskWatch
    watch: Stopwatch

    def save(self, step: int) -> None:
        """Save the state after ``step`` optimizer steps. All processes take part, the first one writes."""
        setting = self.setting
        random = torch.cuda.get_rng_state() if self.ranks.device.type == "cuda" else torch.get_rng_state()
        state = {
            "format": 1,
            "config": recipe.to_dict(self.config),
            "step": step,
            "model": setting.model.state_dict(),
            "optimizer": setting.optimizer.state_dict(),
            "sparsifier": setting.sparsifier.state_dict(),
            "average": setting.average.model.state_dict() if setting.average else None,
            "random": self.ranks.gather(random),
            "accounting": self.accounting.state_dict(),
            "masks": self.masks.masks,
            "seconds": self.watch.seconds,
        }
        if self.ranks.first:
            state["metrics_bytes"] = self.folder.flush_metrics()
            save(self.folder.checkpoint, state)

    def resume(self) -> int | None:
        """Restore what ``config.resume`` names.

        Returns:
            The step to go on from; None when there is no checkpoint and the run starts at its beginning.

        Raises:
            StateError: the file cannot be read.
            ConfigError: it was trained with other settings.
        """
        path = self._path()
        state = load(path) if path is not None else None
        if state is not None:
            refuse_other(str(path), state["config"], recipe.to_dict(self.config))
            later = self._own_later(state["step"])
            path, state = (self.folder.checkpoint, later) if later is not None else (path, state)
        own = (
            path is not None
            and path.exists()
            and self.folder.checkpoint.exists()
            and path.samefile(self.folder.checkpoint)
        )
        if self.ranks.first and not own:
            self.folder.clear()
        if state is None:
            return None
        if self.ranks.first and own:
            self.folder.cut_metrics(state["metrics_bytes"])
        self._restore(state)
        return int(state["step"])

    def _own_later(self, step: int) -> dict[str, Any] | None:
        """This run's own checkpoint when it began at a given one and was interrupted: the same command goes on."""
        if self.config.resume == "auto" or not self.folder.checkpoint.exists():
            return None
        state = load(self.folder.checkpoint)
        same = difference(state["config"], recipe.to_dict(self.config)) is None
        return state if same and state["step"] > step else None

    def _restore(self, state: dict[str, Any]) -> None:
        setting, device = self.setting, self.ranks.device
        setting.model.load_state_dict(state["model"])
        setting.optimizer.load_state_dict(state["optimizer"])
        setting.sparsifier.load_state_dict(state["sparsifier"])
        if setting.average is not None:
            setting.average.model.load_state_dict(state["average"])
        self.accounting.load_state_dict(state["accounting"])
        self.masks.masks = {name: mask.to(device) for name, mask in state["masks"].items()}
        self.watch.seconds = state["seconds"]
        if len(state["random"]) == self.ranks.size:  # another number of processes sees other examples each anyway
            random = state["random"][self.ranks.rank]
            (torch.cuda.set_rng_state if device.type == "cuda" else torch.set_rng_state)(random)

    def _path(self) -> Path | None:
        if self.config.resume == "none":
            return None
        if self.config.resume == "auto":
            return self.folder.checkpoint if self.folder.checkpoint.exists() else None
        path = Path(self.config.resume)
        return RunFolder(path).checkpoint if path.is_dir() else path


def save(path: Path, state: dict[str, Any]) -> None:
    """Save a state of tensors, numbers and text atomically."""
    files.write_atomic(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; nothing in it is executed.

    Raises:
        StateError: the file is missing, truncated or not a checkpoint of this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch.load raises RuntimeError, EOFError, UnpicklingError, OSError ... for broken files
        raise StateError(
            where=str(path),
            given="this file",
            wrong=f"no checkpoint can be read from it: {error}",
            fix="resume another",
        ) from error
    if not isinstance(state, dict) or state.get("format") != 1:
        raise StateError(
            where=str(path), given="this file", wrong="not a training checkpoint of version 1", fix="resume another"
        )
    return state


def refuse_other(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a run that learned differently.

    Raises:
        ConfigError: names the first setting that differs.
    """
    key = difference(before, now)
    if key is not None:
        raise ConfigError(
            where=where,
            given=f"{key} = {_value(now, key)}",
            wrong=f"the run that is there has {_value(before, key)}",
            fix="give another out folder, the same settings, or --resume none to replace that run",
        )


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return repr(value)
