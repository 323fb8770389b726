"""Checkpoints: the complete state of a training run, in one file that is either whole or absent."""

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
from nmlearn.lab.train import recipe, run_files
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
        if len(state["random"]) == self.ranks.size:  # with another number, each process sees other examples anyway
            random = state["random"][self.ranks.rank]
            (torch.cuda.set_rng_state if device.type == "cuda" else torch.set_rng_state)(random)

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
        _refuse(
            path, "this file", f"it cannot be read: {error.strerror or error}", "check the path and its permissions"
        )
    except pickle.UnpicklingError:  # torch's message tells how to execute the contents
        _refuse(path, "a torch.save file", "it holds more than tensors, numbers and text")
    except Exception as error:  # zipfile and torch may raise anything for broken files
        why = f" ({error})" if isinstance(error, zipfile.BadZipFile) else ""
        size = path.stat().st_size
        _refuse(path, f"a file of {size} bytes", f"it is truncated, modified or not a checkpoint{why}")
    if not isinstance(state, dict) or "format" not in state:
        _refuse(path, "a torch.save file", "it is not a training checkpoint")
    if state["format"] != FORMAT:
        theirs = f"format {state['format']} of nmlearn {state.get('nmlearn', '(unknown)')}"
        _refuse(path, theirs, f"nmlearn {nmlearn.__version__} reads format {FORMAT}", "resume with that version")
    missing = [key for key in KEYS if key not in state]
    if missing:
        _refuse(path, "a training checkpoint", f"it lacks {', '.join(missing)}")
    return state


def _check_sums(path: Path) -> None:
    """Verify the checksums of the whole archive: torch.load does not."""
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(f"bad checksum of {broken}")


def _refuse(path: Path | str, given: str, wrong: str, fix: str = "") -> NoReturn:
    fix = fix or "--resume none starts over, --resume PATH resumes from another checkpoint"
    raise StateError(where=str(path), given=given, wrong=wrong, fix=fix) from None


def _same(where: str, what: str, saved: Any, now: Any) -> None:
    """Refuse two dicts that differ, naming the first entry that does."""
    for key in sorted(saved.keys() | now.keys()):
        if saved.get(key) != now.get(key):
            _refuse(where, f"{what} with {key} = {saved.get(key)}", f"now {key} is {now.get(key)}")


def _same_tensors(where: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    _same(where, "a model", {k: _form(v) for k, v in saved.items()}, {k: _form(v) for k, v in now.items()})


def _form(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _same_groups(where: str, saved: dict[str, Any], now: dict[str, Any]) -> None:
    """Compare the structure of an optimizer's groups; their values come from the configuration or the schedule."""
    forms = [
        {
            f"group {i}": f"{len(g['params'])} weights, {', '.join(sorted(g))}"
            for i, g in enumerate(each["param_groups"])
        }
        for each in (saved, now)
    ]
    _same(where, "an optimizer", *forms)


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
