"""Checkpoints: all of a training that its future depends on, in one file that is whole or absent."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

import nmlearn
from nmlearn.errors import ConfigError, StateError
from nmlearn.lab.train import files, recipe
from nmlearn.lab.train.accounting import Accounting
from nmlearn.lab.train.config import TrainConfig
from nmlearn.lab.train.finite import Finite
from nmlearn.lab.train.folder import RunFolder, difference
from nmlearn.lab.train.journal import MaskWatch, Stopwatch
from nmlearn.lab.train.ranks import Ranks
from nmlearn.lab.train.setting import Setting

FORMAT = 1
KEYS = ("config", "step", "model", "optimizer", "sparsifier", "average", "random", "accounting", "masks", "seconds")


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
    finite: Finite

    def save(self, step: int) -> None:
        """Save the state after ``step`` optimizer steps. All processes take part, the first one writes.

        Raises:
            WriteError: the system refuses; the last checkpoint is kept.
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
            "sparsifier": setting.sparsifier.state_dict(),
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
            The step to go on from; None when there is no checkpoint and the run starts at its beginning.

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
        if self.ranks.first and not own:
            self.folder.clear()
        if state is None:
            return None
        if self.ranks.first and own:
            self.folder.cut_metrics(state["metrics_bytes"])
        assert path is not None
        self._restore(path, state)
        return int(state["step"])

    def _own_later(self, step: int) -> dict[str, Any] | None:
        """This run's own checkpoint when it began at a given one and was interrupted: the same command goes on."""
        if self.config.resume == "auto" or not self.folder.checkpoint.exists():
            return None
        try:
            state = load(self.folder.checkpoint)
        except StateError:  # it is damaged, which may be why another checkpoint is named
            return None
        same = difference(state["config"], recipe.to_dict(self.config)) is None
        return state if same and state["step"] > step else None

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        setting, device, where = self.setting, self.ranks.device, str(path)
        _same(where, "data", state.get("data", self._data()), self._data())
        _same_tensors(where, state["model"], setting.model.state_dict())
        setting.model.load_state_dict(state["model"])
        _same_groups(where, state["optimizer"], setting.optimizer.state_dict())
        setting.optimizer.load_state_dict(state["optimizer"])
        setting.sparsifier.load_state_dict(state["sparsifier"])
        if setting.average is not None:
            setting.average.model.load_state_dict(state["average"])
        self.accounting.load_state_dict(state["accounting"])
        self.masks.masks = {name: mask.to(device) for name, mask in state["masks"].items()}
        self.watch.seconds = state["seconds"]
        self.finite.load_state_dict(state.get("finite", self.finite.state_dict()))
        if len(state["random"]) == self.ranks.size:  # another number of processes sees other examples each anyway
            random = state["random"][self.ranks.rank]
            (torch.cuda.set_rng_state if device.type == "cuda" else torch.set_rng_state)(random)

    def _data(self) -> dict[str, Any]:
        """What a checkpoint has to agree with about the data beyond their configuration: a folder may have changed."""
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
        WriteError: the system refuses; a file that was there is as it was.
    """
    files.write_atomic(path, lambda file: torch.save(state, file))


def load(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU; nothing in it is executed, and every byte is compared with its checksum.

    Raises:
        StateError: the file is missing, cut short, changed, or not a checkpoint of this version.
    """
    try:
        _check_sums(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        _refuse(
            path, "this file", f"it cannot be read: {error.strerror or error}", "check the path and its permissions"
        )
    except pickle.UnpicklingError:  # what it says is about how to execute what is in it
        _refuse(path, "a file of torch.save", "it holds more than tensors, numbers and text")
    except Exception as error:  # zipfile and torch raise nearly anything for broken files
        why = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        size = path.stat().st_size
        _refuse(path, f"a file of {size} bytes", f"it is cut short, was changed or is no checkpoint{why}")
    if not isinstance(state, dict) or "format" not in state:
        _refuse(path, "a file of torch.save", "it is not a training checkpoint")
    if state["format"] != FORMAT:
        theirs = f"format {state['format']} of nmlearn {state.get('nmlearn', '(unknown)')}"
        _refuse(path, theirs, f"nmlearn {nmlearn.__version__} reads format {FORMAT}", "resume with that version")
    missing = [key for key in KEYS if key not in state]
    if missing:
        _refuse(path, "a training checkpoint", f"it lacks {', '.join(missing)}")
    return state


def _check_sums(path: Path) -> None:
    """Read all of the archive that a checkpoint is: torch.load compares no checksums."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"bad checksum of {broken}")


def _refuse(path: Path | str, given: str, wrong: str, fix: str = "") -> NoReturn:
    fix = fix or "--resume none starts anew, --resume PATH goes on from another checkpoint"
    raise StateError(where=str(path), given=given, wrong=wrong, fix=fix) from None


def _same(where: str, what: str, saved: Any, now: Any) -> None:
    """Refuse what differs, by the first entry of two dicts."""
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            _refuse(where, f"{what} with {key} = {saved.get(key)}", f"now {key} is {now.get(key)}")


def _same_tensors(where: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    _same(where, "a model", {k: _form(v) for k, v in saved.items()}, {k: _form(v) for k, v in now.items()})


def _form(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _same_groups(where: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare what the groups of an optimizer hold; their values are the configuration's or the schedule's."""
    forms = [
        {
            f"group {i}": f"{len(g['params'])} weights, {', '.join(sorted(g))}"
            for i, g in enumerate(each["param_groups"])
        }
        for each in (saved, now)
    ]
    _same(where, "an optimizer", *forms)


def refuse_other(where: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on from a run that learned differently.

    Raises:
        ConfigError: names the first setting that differs.
    """
    before = recipe.to_dict(recipe.build(TrainConfig, before, f"{where}: "))  # settings newer than it have defaults
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
        value = value.get(part, ...) if isinstance(value, dict) else ...
    return "nothing" if value is ... else repr(value)
