"""Reading ahead: worker processes decode and batch examples while the network computes.

The processes stay from one epoch to the next. What is read depends on the keys alone, so neither they nor their number
change anything.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab.data.task import generator

MOST_PROCESSES = 16


def pictures_below(path: Path | None, source: str, layout: str) -> Path:
    """The folder of a source that reads image files, after a look at what it needs.

    Args:
        source: its name, for errors; layout: what the folder should hold, likewise.

    Raises:
        ConfigError: Pillow is missing.
        DataError: no folder.
    """
    if path is None or not path.is_dir():
        wrong = "data.path is not set" if path is None else "no such folder"
        raise DataError(where="data.path", given=path or "nothing", wrong=wrong, fix=layout)
    needs(source, "PIL.Image", "Pillow", "pip install pillow")
    return path


def needs(source: str, module: str, name: str, fix: str) -> None:
    """Refuse a source whose optional package is missing, before anything is read.

    Raises:
        ConfigError: it is.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(where="data.name", given=source, wrong=f"needs {name} ({error})", fix=fix) from error


class Key(NamedTuple):
    """What is read: an example's place in a part of the data, and the seeds of all that is random about it."""

    part: str
    number: int
    seeds: tuple[int, ...] = ()


class Broken(NamedTuple):
    """What a worker hands over in place of a file that it cannot read: exceptions lose their type on the way."""

    file: Path
    reason: str
    wrong: str = "no image"
    fix: str = "replace or remove the file"


class Keys:
    """The batches of keys of the epoch at hand; a DataLoader that stays asks anew for them."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Pipeline:
    """Batches of examples, read ahead.

    Args:
        examples: from a Key to an example, or to a Broken.
        collate: a batch of examples, or the first Broken, from a list of them.
        processes: that read; 0 reads in this one.
    """

    def __init__(self, examples: Dataset[Any], collate: Callable[[list[Any]], Any], processes: int) -> None:
        self._examples, self._collate, self._processes = examples, collate, processes
        self._idle: list[tuple[Keys, DataLoader[Any]]] = []

    def batches(self, keys: Sequence[list[Key]]) -> Iterator[Any]:
        """The batches of these keys, in order; with a GPU in pinned memory, so that copying them does not wait.

        Several may be read in turns: each has processes of its own.

        Raises:
            DataError: a file that cannot be read.
        """
        mine, loader = pair = self._idle.pop() if self._idle else self._new()
        mine.batches = keys
        try:
            for batch in loader:
                if isinstance(batch, Broken):
                    wrong = f"{batch.wrong} ({batch.reason})"
                    raise DataError(where="data.path", given=batch.file, wrong=wrong, fix=batch.fix)
                yield batch
        finally:
            self._idle.append(pair)

    def _new(self) -> tuple[Keys, DataLoader[Any]]:
        keys = Keys()
        loader = DataLoader(
            self._examples,
            batch_sampler=keys,
            num_workers=self._processes,
            persistent_workers=self._processes > 0,
            collate_fn=self._collate,
            pin_memory=torch.cuda.is_available(),
            generator=generator(0),  # else the loader draws its workers' seeds from the global one
        )
        return keys, loader


def processes(asked: int | None) -> int:
    """How many processes read: as many as asked, or this rank's share of the usable cores, at most 16."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_PROCESSES, max(1, len(os.sched_getaffinity(0)) // ranks)) if asked is None else asked
