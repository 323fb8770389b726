"""Reading ahead: the processes that stay, and the order in memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from nmlearn.lab import data
from nmlearn.lab.data import pipeline
from nmlearn.lab.data.pipeline import Key, Pipeline
from small_data import equal, write_images


class Origin(Dataset[tuple[int, int]]):
    """The process that reads, and the number."""

    def __getitem__(self, key: Key) -> tuple[int, int]:
        return os.getpid(), key.number


def read(reading: Pipeline, count: int = 6) -> list[Any]:
    return [item for batch in reading.batches([[Key("train", number)] for number in range(count)]) for item in batch]


def test_processes_stay_for_the_next_epoch() -> None:
    reading = Pipeline(Origin(), list, 2)
    first, second = read(reading), read(reading, 4)
    assert [number for _, number in first] == [0, 1, 2, 3, 4, 5]
    assert [number for _, number in second] == [0, 1, 2, 3]
    assert {process for process, _ in first} == {process for process, _ in second}
    assert os.getpid() not in {process for process, _ in first}


def test_an_epoch_that_is_left_early_does_not_leak_into_the_next() -> None:
    reading = Pipeline(Origin(), list, 1)
    left = reading.batches([[Key("train", number)] for number in range(100, 110)])
    assert next(left)[0][1] == 100
    left.close()
    assert [number for _, number in read(reading)] == [0, 1, 2, 3, 4, 5]


def test_epochs_read_in_turns_do_not_disturb_each_other() -> None:
    reading = Pipeline(Origin(), list, 1)
    one, other = (reading.batches([[Key("train", start + n)] for n in range(3)]) for start in (0, 10))
    pairs = [(a[0][1], b[0][1]) for a, b in zip(one, other, strict=True)]
    assert pairs == [(0, 10), (1, 11), (2, 12)]


def test_ranks_share_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(24))
    assert pipeline.processes(None) == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert pipeline.processes(None) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert pipeline.processes(None) == 1
    assert pipeline.processes(0) == 0


def test_batches_come_in_the_order_of_channels_last(tmp_path: Path) -> None:
    task = data.load("image-folder", write_images(tmp_path), image_size=16, workers=0)
    images, _ = next(task.train_batches(4, epoch=0, seed=0))
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_the_middle_of_an_epoch_is_the_same_with_processes_that_stayed(tmp_path: Path) -> None:
    options = {"image_size": 16, "workers": 2, "randaugment": 9.0, "erasing": 0.5, "mixup": 0.8}
    task = data.load("image-folder", write_images(tmp_path), **options)
    whole = [list(task.train_batches(2, epoch=epoch, seed=1)) for epoch in range(2)]
    fresh = data.load("image-folder", tmp_path, **{**options, "workers": 0})
    assert equal(whole[1][2:], list(fresh.train_batches(2, epoch=1, seed=1, skip=2)))
