"""Paths that no file can have, or that may not be looked up: an error in four parts from whatever takes a path."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import nmlearn as nm
from impossible_paths import NAMES
from nmlearn.errors import ConfigError, FormatError, WriteError
from nmlearn.files import atomic, model_file
from nmlearn.files.formats import container

STATE = {"a": torch.ones(2)}


def replace(path: Path) -> None:
    with atomic.replacing(path):
        pass


def explain(path: Path) -> None:
    with atomic.explained(path):
        path.open("wb").close()


def read(path: Path) -> None:
    with container.opened(path):
        pass


# Every public function of the room that takes a path: what calls it with one, and the error.
CALLS: dict[Callable[..., Any], tuple[Callable[[Path], object], type[nm.NMLearnError] | None]] = {
    nm.save: (lambda path: nm.save(STATE, path), WriteError),
    nm.load: (nm.load, FormatError),
    model_file.stored: (model_file.stored, FormatError),
    model_file.notes: (model_file.notes, FormatError),
    model_file.convert: (lambda path: model_file.convert(path, path), FormatError),
    container.opened: (read, FormatError),
    container.write: (lambda path: container.write(path, STATE, {}), WriteError),
    atomic.write_atomic: (lambda path: atomic.write_atomic(path, lambda file: None), WriteError),
    atomic.replacing: (replace, WriteError),
    atomic.explained: (explain, WriteError),
    atomic.sweep: (atomic.sweep, None),  # nothing was left next to it
}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_a_path_that_no_file_can_have(tmp_path: Path, function: Callable[..., Any], name: str) -> None:
    call, error = CALLS[function]
    path = tmp_path / NAMES[name]
    if error is None:
        call(path)
    else:
        with pytest.raises(error) as caught:
            call(path)
        assert caught.value.where == str(path) and caught.value.wrong and caught.value.fix
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_target_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    nm.save(STATE, tmp_path / "m.safetensors")
    for packed in (True, False):
        with pytest.raises(WriteError):
            model_file.convert(tmp_path / "m.safetensors", tmp_path / NAMES[name], packed)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_table_has_every_public_function_that_takes_a_path() -> None:
    found = {
        getattr(function, "__wrapped__", function)
        for module in (model_file, container, atomic)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and function.__module__ == module.__name__
        if any("Path" in str(p.annotation) for p in inspect.signature(function).parameters.values())
    }
    assert found == {getattr(function, "__wrapped__", function) for function in CALLS}


@pytest.mark.parametrize("function", [nm.save, nm.load], ids=lambda function: function.__name__)
def test_a_path_in_a_folder_that_may_not_be_entered(
    tmp_path: Path, function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As every look-up below it then fails; the tests may run as root, whom no folder refuses."""
    path, looked_up = tmp_path / "m.safetensors", os.stat

    def refused(place: Any, *rest: Any, **more: Any) -> os.stat_result:
        if Path(place) == path:
            raise PermissionError(13, "Permission denied", str(place))
        return looked_up(place, *rest, **more)

    monkeypatch.setattr(os, "stat", refused)
    call, error = CALLS[function]
    with pytest.raises(error, match="Permission denied"):
        call(path)


class Octets:
    """A path of bytes."""

    def __fspath__(self) -> bytes:
        return b"m.safetensors"


@pytest.mark.parametrize("path", [b"m.safetensors", Octets()], ids=["bytes", "an object"])
def test_bytes_are_no_path(path: Any) -> None:
    for call in (lambda path: nm.save(STATE, path), nm.load):
        with pytest.raises(ConfigError, match=f"{type(path).__name__} as the path"):
            call(path)
