"""Checkpoints: the complete state of a training run, in one file that is either whole or absent."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import nmlearn
from nmlearn.errors import ConfigError, StateError
from nmlearn.lab.train import parts, recipe, run_files
from nmlearn.lab.train.accounting import Accounting
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.finite import Finite
from nmlearn.lab.train.folder import RunFolder, difference
from nmlearn.lab.train.journal import MaskWatch, Stopwatch
from nmlearn.lab.train.ranks import Ranks
from nmlearn.lab.train.setting import Setting
from nmlearn.learn.states import counts, equal, measures, shown

FORMAT = 1
# What a checkpoint holds: parts that are checked against the run, and values that are checked by themselves.
KEYS = ("model", "optimizer", "sparsifier", "average", "random", "accounting", "masks")
PLAIN = {"config": parts.is_plain, "step": counts, "metrics_bytes": counts, "seconds": measures}


@dataclass(frozen=True)
class Checkpoints:
    """Saves and restores the parts of one run."""

    config: TrainConfig
    folder: RunFolder
    ranks: Ranks
    setting: Setting
    accounting: Accounting
    masks: MaskWatch
    watch: Stopwatch
    finite: Finite

    def save(self, step: int) -> None:
        """Save the state after ``step`` optimizer steps. All processes take part; the first one writes.

        Raises:
            WriteError: the file cannot be written; the last checkpoint is kept.
        """
        setting = self.setting
        random = torch.cuda.get_rng_state() if self.ranks.device.type == "cuda" else torch.get_rng_state()
        state = {
            "format": FORMAT,
            "nmlearn": nmlearn.__version__,
            "config": recipe.to_dict(self.config),
            "step": step,
            "data": self._data(),
            "model": setting.model.state_dict(),
            "optimizer": setting.optimizer.state_dict(),
            "sparsifier": setting.sparsifier.state_dict(compact=True),
            "distillation": setting.distillation.state_dict() if setting.distillation else None,
            "average": setting.average.model.state_dict() if setting.average else None,
            "random": self.ranks.gather(random),
            "accounting": self.accounting.state_dict(),
            "masks": self.masks.masks,
            "seconds": self.watch.seconds,
            "finite": self.finite.state_dict(),
        }
        if self.ranks.first:
            state["metrics_bytes"] = self.folder.flush_metrics()
            save(self.folder.checkpoint, state)

    def resume(self) -> int | None:
        """Restore what ``config.resume`` names.

        Returns:
            The step to resume from; None when there is no checkpoint and the run starts from the beginning.

        Raises:
            StateError: the file cannot be read, or was saved with another model, optimizer or data.
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
        if state is not None:  # before anything is removed: a part may be refused
            assert path is not None
            self._restore(path, state)
        if self.ranks.first and not own:
            self.folder.clear()
        if state is None:
            return None
        if self.ranks.first and own:
            self.folder.cut_metrics(state["metrics_bytes"])
        return int(state["step"])

    def _own_later(self, step: int) -> dict[str, Any] | None:
        """This run's own checkpoint, if it started from a given one and was interrupted: the same command resumes."""
        if self.config.resume == "auto" or not self.folder.checkpoint.exists():
            return None
        try:
            state = load(self.folder.checkpoint)
        except StateError:  # damaged, which may be why another checkpoint was given
            return None
        same = difference(state["config"], recipe.to_dict(self.config)) is None
        return state if same and state["step"] > step else None

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        setting, device = self.setting, self.ranks.device
        optimizer = self._checked(path, state)
        setting.sparsifier.load_state_dict(state["sparsifier"])
        if setting.distillation is not None:
            setting.distillation.load_state_dict(state["distillation"])
        if state["step"] != setting.sparsifier.step:
            given = f"step {state['step']} and a sparsifier of step {setting.sparsifier.step}"
            parts.refuse(path, given, "they are of two moments")
        setting.model.load_state_dict(state["model"])
        setting.optimizer.load_state_dict(optimizer)
        if setting.average is not None:
            setting.average.model.load_state_dict(state["average"])
        self.accounting.load_state_dict(state["accounting"])
        self.masks.masks = {name: mask.to(device) for name, mask in state["masks"].items()}
        self.watch.seconds = state["seconds"]
        self.finite.load_state_dict(state.get("finite", self.finite.state_dict()))
        if len(state["random"]) == self.ranks.size:  # with another number, each process sees other examples anyway
            self._restore_random(path, state["random"][self.ranks.rank])

    def _checked(self, path: Path, state: dict[str, Any]) -> dict[str, Any]:
        """Check all parts but the sparsifier's, which checks itself; returns what the optimizer can load."""
        setting, average = self.setting, self.setting.average
        if state["step"] > setting.total_steps:
            parts.refuse(path, f"step {state['step']}", f"the training has {setting.total_steps} steps")
        parts.check_same(path, "data", state.get("data", self._data()), self._data())
        parts.check_tensors(path, "a model", state["model"], setting.model.state_dict())
        if average is not None:
            parts.check_tensors(path, "an average", state["average"], average.model.state_dict())
        if setting.distillation is not None:
            saved, now = (
                parts.mapping(path, "a distillation", state.get("distillation")),
                setting.distillation.state_dict(),
            )
            parts.check_tensors(path, "a copied teacher", saved.get("copy", {}), now.get("copy", {}))
        parts.check_tensors(path, "masks", state["masks"], setting.sparsifier.masks())
        counted = {"sum": measures, "steps": counts, "state_bytes": counts}
        parts.check_values(path, "accounting", state["accounting"], counted)
        finite = state.get("finite", self.finite.state_dict())
        parts.check_values(path, "skipped steps", finite, {"left_out": counts, "in_a_row": counts})
        parts.check_random(path, state["random"])
        return parts.optimizer_state(path, state["optimizer"], setting.optimizer)

    def _restore_random(self, path: Path, random: torch.Tensor) -> None:
        """Restore the random generator; that of another kind of device is of no use to this one."""
        cuda = self.ranks.device.type == "cuda"
        if random.numel() != (torch.cuda.get_rng_state() if cuda else torch.get_rng_state()).numel():
            return
        try:
            (torch.cuda.set_rng_state if cuda else torch.set_rng_state)(random)
        except RuntimeError as error:
            parts.refuse(path, "a random generator's state", f"torch does not take it: {str(error).splitlines()[0]}")

    def _data(self) -> dict[str, Any]:
        """What must match about the data besides its configuration: a folder may have changed."""
        task = self.setting.task
        return {"train_size": task.train_size, "eval_size": task.eval_size, "classes": task.classes}

    def _path(self) -> Path | None:
        if self.config.resume == "none":
            return None
        if self.config.resume == "auto":
            return self.folder.checkpoint if self.folder.checkpoint.exists() else None
        path = Path(self.config.resume)
        return RunFolder(path).checkpoint if path.is_dir() else path


def save(path: Path, state: dict[str, Any]) -> None:
    """Save a state of tensors, numbers and text atomically.

    Raises:
        WriteError: the file cannot be written; an existing file is unchanged.
    """
    run_files.write_atomic(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; nothing in it is executed, and every checksum is verified.

    Raises:
        StateError: the file is missing, cut short, changed, or not a checkpoint of this version.
    """
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        parts.refuse(
            path, "this file", f"it cannot be read: {error.strerror or error}", "check the path and its permissions"
        )
    except pickle.UnpicklingError:  # torch's message tells how to execute the contents
        parts.refuse(path, "a torch.save file", "it holds more than tensors, numbers and text")
    except Exception as error:  # zipfile and torch may raise anything for broken files
        why = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        size = path.stat().st_size
        parts.refuse(path, f"a file of {size} bytes", f"it is truncated, modified or not a checkpoint{why}")
    if not isinstance(state, dict) or "format" not in state:
        parts.refuse(path, "a torch.save file", "it is not a training checkpoint")
    if not equal(state["format"], FORMAT):
        theirs = f"format {shown(state['format'])} of nmlearn {shown(state.get('nmlearn', '(unknown)'))}"
        parts.refuse(path, theirs, f"nmlearn {nmlearn.__version__} reads format {FORMAT}", "resume with that version")
    missing = [key for key in (*PLAIN, *KEYS) if key not in state]
    if missing:
        parts.refuse(path, "a training checkpoint", f"it lacks {', '.join(missing)}")
    parts.check_values(path, "a training checkpoint", state, PLAIN)
    parts.mapping(path, "a configuration", state["config"])
    return state


def _check_sums(path: Path) -> None:
    """Verify the checksums of the whole archive: torch.load does not."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"bad checksum of {broken}")


def refuse_other(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume a run that was trained with different settings.

    Raises:
        ConfigError: names the first setting that differs.
    """
    before = recipe.to_dict(recipe.build(TrainConfig, before, f"{where}: "))  # newer settings get defaults
    key = difference(before, now)
    if key is not None:
        raise ConfigError(
            where=where,
            given=f"{key} = {_value(now, key)}",
            wrong=f"the existing run has {_value(before, key)}",
            fix="give another out folder or the same settings, or --resume none to replace that run",
        )


def _value(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part, ...) if isinstance(value, dict) else ...
    return "nothing" if value is ... else repr(value)
