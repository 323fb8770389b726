"""Prefetching: worker processes decode and batch examples while the network computes.

The processes persist between epochs. What is read depends only on the keys, so the number of processes changes nothing.
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


def image_root(path: Path | None, source: str, layout: str) -> Path:
    """The folder of a source that reads image files, after a check of its requirements.

    Args:
        source: its name, for errors.
        layout: the expected contents of the folder, for errors.

    Raises:
        ConfigError: Pillow is missing.
        DataError: there is no such folder.
    """
    if path is None or not path.is_dir():
        wrong = "data.path is not set" if path is None else "no such folder"
        raise DataError(where="data.path", given=path or "nothing", wrong=wrong, fix=layout)
    needs(source, "PIL.Image", "Pillow", "pip install pillow")
    return path


def needs(source: str, module: str, name: str, fix: str) -> None:
    """Refuse a source whose optional package is missing, before anything is read.

    Raises:
        ConfigError: the package cannot be imported.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(where="data.name", given=source, wrong=f"needs {name} ({error})", fix=fix) from error


class Key(NamedTuple):
    """An example to read: its index in a part of the data, and the seeds of its augmentation."""

    part: str
    number: int
    seeds: tuple[int, ...] = ()


class Broken(NamedTuple):
    """Returned by a worker for an unreadable file: exceptions would lose their type on the way."""

    file: Path
    reason: str
    wrong: str = "not an image"
    fix: str = "replace or remove the file"


class Keys:
    """The batches of keys of the current epoch; a persistent DataLoader iterates over them once per epoch."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Key]] = ()

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class Pipeline:
    """Prefetched batches of examples.

    Args:
        examples: maps a Key to an example, or to a Broken.
        collate: turns a list of examples into a batch, or into its first Broken.
        processes: number of worker processes; 0 reads in this process.
    """

    def __init__(self, examples: Dataset[Any], collate: Callable[[list[Any]], Any], processes: int) -> None:
        self._examples, self._collate, self._processes = examples, collate, processes
        self._idle: list[tuple[Keys, DataLoader[Any]]] = []

    def batches(self, keys: Sequence[list[Key]]) -> Iterator[Any]:
        """The batches of these keys, in order; in pinned memory if there is a GPU, so that copies are asynchronous.

        Several pipelines may be read in turns: each has its own processes.

        Raises:
            DataError: a file cannot be read.
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
            generator=generator(0),  # otherwise the loader draws its workers' seeds from the global one
        )
        return keys, loader


def processes(asked: int | None) -> int:
    """The number of reading processes: as requested, or this rank's share of the usable cores, at most 16."""
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MOST_PROCESSES, max(1, len(os.sched_getaffinity(0)) // ranks)) if asked is None else asked
