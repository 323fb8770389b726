"""What DeiT does to images: RandAugment as timm has it, random erasing, and each image several times an epoch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nmlearn.errors import ConfigError
from nmlearn.lab import data
from nmlearn.lab.data import augment, decoding
from nmlearn.lab.data.folder import FolderOptions
from nmlearn.lab.data.randaugment import CHANGES, randaugment
from nmlearn.lab.models import external
from small_data import write_images

INCREASING = {"Posterize", "Solarize", "Color", "Contrast", "Brightness", "Sharpness"}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_timms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the optional package pillow")
    try:
        external.imported("timm")
    except ConfigError as error:
        pytest.skip(f"needs the optional package timm: {error.wrong}")
    from timm.data import auto_augment

    theirs = name + "Increasing" * (name in INCREASING) + "Rel" * name.startswith("Translate")
    assert theirs in auto_augment._RAND_INCREASING_TRANSFORMS
    options = {"img_mean": (124, 116, 104), "interpolation": image.Resampling.BICUBIC}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    pixels[:20] //= 3
    original = image.fromarray(pixels)
    for sign, draw in ((-1.0, 0.9), (1.0, 0.1)):
        monkeypatch.setattr(random, "random", lambda draw=draw: draw)
        for magnitude in (0, 3.7, 9, 9.99 if name == "Posterize" else 10):  # timm and Pillow 13 fail at 10 there
            op = auto_augment.AugmentOp(theirs, prob=1.0, magnitude=magnitude, hparams=options)
            assert np.array_equal(op(original), CHANGES[name](original, magnitude / 10, sign)), (magnitude, sign)
            assert CHANGES[name](original, 1.0, sign).size == original.size
    assert len(CHANGES) == len(auto_augment._RAND_INCREASING_TRANSFORMS)


def test_two_changes_each_made_half_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def note(image: object, level: float, sign: float) -> object:
        made.append(level)
        return image

    for name in CHANGES:
        monkeypatch.setitem(CHANGES, name, note)
    generator = np.random.default_rng(0)
    for _ in range(2000):
        randaugment(object(), 9, generator)  # type: ignore[arg-type]
    assert len(made) == pytest.approx(2000, rel=0.05)
    assert np.median(made) == pytest.approx(0.9, abs=0.01) and max(made) == 1.0  # clipped at 10


def test_erasing() -> None:
    images = torch.full((400, 3, 32, 32), 5.0)
    erased = augment.erase_(images.clone(), 0.25, torch.Generator().manual_seed(0))
    touched = (erased != 5.0).any(1)
    share = touched.flatten(1).float().mean(1)
    hit = share > 0
    assert float(hit.float().mean()) == pytest.approx(0.25, abs=0.06)
    assert float(share[hit].min()) > 0.01 and float(share[hit].max()) < 0.36
    assert float(share[hit].mean()) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    noise = erased[erased != 5.0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.02) and float(noise.std()) == pytest.approx(1, abs=0.02)
    for mask in touched[hit]:  # one box
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    same = augment.erase_(images.clone(), 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(same, erased)


def test_repeats_show_some_images_several_times_each_anew(tmp_path: Path) -> None:
    task = data.load("image-folder", write_images(tmp_path, 9), image_size=16, workers=0, repeats=3)
    shares = [list(task.train_batches(3, epoch=0, seed=0, rank=rank, world=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    for step in zip(*shares, strict=True):
        labels = torch.stack([labels for _, labels in step])
        assert (labels == labels[0]).all()  # the three copies are with three ranks, at one place
        pixels = torch.stack([images for images, _ in step]).flatten(2)
        assert (pixels[0] != pixels[1]).any(1).all() and (pixels[1] != pixels[2]).any(1).all()
    first = torch.cat([images for images, _ in shares[0]])
    assert len(first.flatten(1).unique(dim=0)) == 6
    again = list(task.train_batches(3, epoch=0, seed=0, world=3, skip=1))
    assert torch.equal(again[0][0], shares[0][1][0])


@pytest.mark.parametrize("option", [{"randaugment": 11}, {"erasing": 2.0}, {"repeats": 0}, {"interpolation": "area"}])
def test_options_that_make_no_sense(option: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"data.options.{next(iter(option))}"):
        data.load("image-folder", tmp_path, **option)


def test_randaugment_in_the_folder(tmp_path: Path) -> None:
    write_images(tmp_path)
    options = {"image_size": 16, "workers": 0}
    tasks = [data.load("image-folder", tmp_path, randaugment=m, **options) for m in (0.0, 9.0, 9.0)]
    plain, changed, again = (next(task.train_batches(8, epoch=0, seed=0))[0] for task in tasks)
    assert torch.equal(changed, again) and not torch.equal(plain, changed)


def test_large_jpegs_are_decoded_small(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs the optional package pillow")
    random = np.random.default_rng(0)
    coarse = image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    large = coarse.resize((1600, 1200), image.Resampling.BICUBIC)
    large.save(tmp_path / "a.jpg", quality=95)
    large.save(tmp_path / "a.png")
    for kind in ("none", "random-resized-crop"):
        options = FolderOptions(image_size=100, crop_scale=0.5)
        ours = decoding.read(tmp_path / "a.jpg", kind, options, (3, 1)).float()
        exact = decoding.read(tmp_path / "a.png", kind, options, (3, 1)).float()
        assert float((ours - exact).abs().mean()) < 2  # of 255: the same part of the image
    with image.open(tmp_path / "a.jpg") as opened:
        opened.draft(None, (115, 100))
        assert opened.size == (200, 150)
