"""Augmentation, mixing and Fashion-MNIST."""

from __future__ import annotations

import gzip
import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nmlearn.errors import DataError
from nmlearn.lab import data
from nmlearn.lab.data import augment, fashion
from nmlearn.lab.data.mix import mix
from nmlearn.lab.data.task import generator


def images(count: int = 16, channels: int = 3, size: int = 12, seed: int = 0) -> Tensor:
    shape = (count, channels, size, size)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator(seed))


@given(padding=st.integers(0, 4), seed=st.integers(0, 1000))
def test_crop_is_a_window_of_the_padded_image(padding: int, seed: int) -> None:
    before = images(5, 2, 6)
    after = augment.crop(before, padding, generator(seed))
    padded = torch.nn.functional.pad(before, (padding,) * 4)
    windows = padded.unfold(2, 6, 1).unfold(3, 6, 1)  # [b, C, rows, columns, H, W]
    for number in range(5):
        hits = (windows[number] == after[number][:, None, None]).all(dim=(0, 3, 4))
        assert hits.any()


def test_crop_reaches_every_offset() -> None:
    position = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4).expand(400, -1, -1, -1)
    corners = augment.crop(position, 1, generator(0))[:, 0, 1, 1]
    assert set(corners.tolist()) == {1, 2, 3, 5, 6, 7, 9, 10, 11}


def test_flip_mirrors_about_half() -> None:
    before = images(400)
    after = augment.flip(before, generator(0))
    mirrored = (after == before.flip(-1)).all(dim=(1, 2, 3))
    assert ((after == before).all(dim=(1, 2, 3)) | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_random_resized_crop_of_the_whole_square_is_a_resize() -> None:
    ramp = torch.arange(8.0).view(1, 1, 1, 8).expand(64, 1, 8, 8)
    crops = augment.random_resized_crop(ramp, 8, 1.0, generator(0))
    assert crops.shape == (64, 1, 8, 8)
    steps = crops.diff(dim=-1)[..., 1:-1]
    # A crop of the full area has sides of at most the image's, and at least 3/4 of them in one direction.
    assert steps.min() > math.sqrt(0.75) - 1e-3 and steps.max() < 1 + 1e-3


@given(smallest=st.floats(0.05, 1.0), seed=st.integers(0, 100))
def test_random_resized_crop_stays_within_the_image(smallest: float, seed: int) -> None:
    before = images(4)
    after = augment.random_resized_crop(before, 9, smallest, generator(seed))
    assert after.shape == (4, 3, 9, 9) and after.dtype == torch.float32
    assert after.min() >= before.min() and after.max() <= before.max() + 1e-3


def test_normalise() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)
    result = augment.normalise(pixels, torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25]))
    assert torch.allclose(result.flatten(), torch.tensor([-1.0, 3.0]))


def test_resize_leaves_the_right_size_alone() -> None:
    assert torch.equal(augment.resize(images(), 12), images().float())
    assert augment.resize(images(), 24).shape == (16, 3, 24, 24)


@given(
    mixup=st.sampled_from([0.0, 0.2, 1.0]),
    cutmix=st.sampled_from([0.0, 0.2, 1.0]),
    seed=st.integers(0, 500),
    count=st.integers(1, 9),
)
def test_mixed_targets_are_the_shares_of_the_pixels(mixup: float, cutmix: float, seed: int, count: int) -> None:
    # Images of class k are k everywhere, so the mean pixel tells what share of which class is in it.
    labels = torch.arange(count) % 4
    before = labels.float().view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    after, targets = mix(before, labels, 4, generator(seed), mixup=mixup, cutmix=cutmix)
    if not (mixup or cutmix):
        assert torch.equal(after, before) and torch.equal(targets, labels)
        return
    assert targets.shape == (count, 4) and targets.min() >= 0
    assert torch.allclose(targets.sum(1), torch.ones(count))
    assert torch.allclose(after.mean(dim=(1, 2, 3)), targets @ torch.arange(4.0), atol=1e-5)


def test_mixup_and_cutmix_are_both_drawn() -> None:
    before, labels = torch.rand(8, 3, 12, 12), torch.arange(8)
    mixed = [mix(before, labels, 8, generator(seed), mixup=1.0, cutmix=1.0)[0] for seed in range(60)]
    pasted = [bool(torch.isin(after, before).all()) for after in mixed]  # mixup makes new values, cutmix does not
    assert 15 < sum(pasted) < 45


def test_shipped_subset_is_balanced_and_normalised() -> None:
    task = data.load("fashion-mnist", augment="none")
    assert (task.train_size, task.eval_size, task.classes, task.input_shape) == (10_000, 2_000, 10, (1, 28, 28))
    inputs, labels = next(task.train_batches(10_000, epoch=0, seed=0))
    assert labels.bincount().tolist() == [1000] * 10
    assert torch.cat([part for _, part in task.eval_batches(512)]).bincount().tolist() == [200] * 10
    assert abs(inputs.mean()) < 0.01 and abs(inputs.std() - 1) < 0.01


@pytest.mark.parametrize("kind", ["none", "flip", "crop-flip", "random-resized-crop"])
def test_augmentations_reach_the_batches(kind: str) -> None:
    task = data.load("fashion-mnist", train_limit=64, augment=kind, image_size=20)
    first, second = (next(task.train_batches(64, epoch=0, seed=0))[0] for _ in range(2))
    unchanged = data.load("fashion-mnist", train_limit=64, augment="none", image_size=20)
    plain, _ = next(unchanged.train_batches(64, epoch=0, seed=0))
    assert first.shape == (64, 1, 20, 20) and torch.equal(first, second)
    assert torch.equal(first, plain) == (kind == "none")


def write_idx(file: Path, values: np.ndarray) -> bytes:
    raw = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)
    return raw


@pytest.fixture
def idx_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four small IDX files, two of them unpacked, with their sums known."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("t10k", 10)):
        pixels = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values in ((f"{part}-images-idx3-ubyte", pixels), (f"{part}-labels-idx1-ubyte", labels)):
            raw = write_idx(tmp_path / (f"{name}.gz" if part == "train" else name), values)
            monkeypatch.setitem(fashion.UNPACKED_MD5, name, hashlib.md5(raw).hexdigest())
    return tmp_path


def test_full_set_reads_idx_files(idx_folder: Path) -> None:
    task = data.load("fashion-mnist-full", idx_folder)
    assert (task.train_size, task.eval_size, task.source) == (20, 10, str(idx_folder))


def test_full_set_refuses_other_bytes(idx_folder: Path) -> None:
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.zeros(20, np.uint8))
    with pytest.raises(DataError, match="are not Fashion-MNIST's"):
        data.load("fashion-mnist-full", idx_folder)


def test_damaged_idx_files_are_named(idx_folder: Path) -> None:
    file = idx_folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images.*cannot be decompressed"):
        data.load("fashion-mnist-full", idx_folder)
    for raw in (b"", b"\0\0\x08\x03\0", b"\0\0\x0d\x01" + bytes(8), b"\0\0\x08\x01" + bytes([0, 0, 0, 9, 1])):
        with pytest.raises(DataError, match="not a complete IDX file"):
            fashion.parse_idx(raw, file)


@pytest.mark.skipif(not fashion.DEBIAN_FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_subset_is_the_start_of_debians_set() -> None:
    full, subset = data.load("fashion-mnist-full"), data.load("fashion-mnist")
    assert (full.train_size, full.eval_size) == (60_000, 10_000)
    first_full, first_subset = next(full.eval_batches(100)), next(subset.eval_batches(100))
    assert torch.equal(first_full[0], first_subset[0]) and torch.equal(first_full[1], first_subset[1])
