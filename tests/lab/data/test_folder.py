"""Image folders in ImageNet's layout, made of random JPEGs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.errors import ConfigError, DataError
from nmlearn.lab import data
from nmlearn.lab.data import decoding
from small_data import equal, write_images


def test_classes_and_sizes_come_from_the_folders(tmp_path: Path) -> None:
    task = data.load("image-folder", write_images(tmp_path), image_size=24, workers=0)
    assert (task.classes, task.train_size, task.eval_size) == (2, 8, 8)
    inputs, labels = next(task.eval_batches(8))
    assert inputs.shape == (8, 3, 24, 24) and labels.bincount().tolist() == [4, 4]


def test_worker_processes_change_nothing(tmp_path: Path) -> None:
    write_images(tmp_path)
    alone, many = (data.load("image-folder", tmp_path, image_size=16, workers=count, cutmix=1.0) for count in (0, 2))
    assert equal(list(alone.train_batches(3, epoch=0, seed=2)), list(many.train_batches(3, epoch=0, seed=2)))
    assert equal(list(alone.eval_batches(3)), list(many.eval_batches(3)))


@pytest.mark.parametrize("kind", ["none", "flip", "crop-flip", "random-resized-crop"])
def test_an_image_is_augmented_by_seed_epoch_and_number(kind: str, tmp_path: Path) -> None:
    task = data.load("image-folder", write_images(tmp_path), image_size=16, workers=0, augment=kind)
    alone = torch.cat([images for images, _ in task.train_batches(8, epoch=0, seed=0)])
    shares = [list(task.train_batches(2, epoch=0, seed=0, rank=rank, world=2)) for rank in range(2)]
    split = torch.cat([images for step in zip(*shares, strict=True) for images, _ in step])
    assert torch.equal(alone, split)  # neither the rank nor the batch has a say
    later = torch.cat([images for images, _ in task.train_batches(8, epoch=1, seed=0)])
    pixels = [{image.numpy().tobytes() for image in epoch} for epoch in (alone, later)]
    assert (pixels[0] == pixels[1]) == (kind == "none")


def test_limits_take_some_of_every_class(tmp_path: Path) -> None:
    task = data.load("image-folder", write_images(tmp_path, 20), image_size=8, workers=0, train_limit=10, eval_limit=10)
    for batches in (task.train_batches(10, epoch=0, seed=0), task.eval_batches(10)):
        assert len(next(batches)[1].unique()) == 2


@given(width=st.integers(1, 300), height=st.integers(1, 300), smallest=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_random_boxes_lie_in_the_image(width: int, height: int, smallest: float, seed: int) -> None:
    left, top, right, bottom = decoding.random_box(width, height, smallest, np.random.default_rng(seed))
    assert -1e-9 <= left < right <= width + 1e-9 and -1e-9 <= top < bottom <= height + 1e-9
    assert 0.74 < (right - left) / (bottom - top) < 1.34


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_images_are_named(workers: int, tmp_path: Path) -> None:
    file = write_images(tmp_path) / "train" / "dog" / "1.jpg"
    for raw in (b"no image", file.read_bytes()[:300]):
        file.write_bytes(raw)
        task = data.load("image-folder", tmp_path, image_size=16, workers=workers)
        with pytest.raises(DataError, match=r"dog/1.jpg: not an image"):
            list(task.train_batches(4, epoch=0, seed=0))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(DataError, match="its class 'bird' is not in train"):
        data.load("image-folder", tmp_path)
    shutil.rmtree(tmp_path / "val")
    with pytest.raises(DataError, match=r"/val: no such folder"):
        data.load("image-folder", tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(DataError, match=r"/val: no images in it"):
        data.load("image-folder", tmp_path)
    shutil.rmtree(tmp_path / "train")
    with pytest.raises(DataError, match=r"/train: no such folder"):
        data.load("image-folder", tmp_path)
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"/train: no class folders"):
        data.load("image-folder", tmp_path)


def test_missing_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ConfigError, match="pip install pillow"):
        data.load("image-folder", tmp_path)
