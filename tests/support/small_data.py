"""Small data sets in the real file formats, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nmlearn.lab import data
from nmlearn.lab.data.arrays import ArrayImages, Labelled
from nmlearn.lab.data.options import ImageOptions


def numbered(size: int, evaluation: int = 1, **options: object) -> ArrayImages:
    """Images whose label is their number, so that batches tell which examples they hold."""

    def part(count: int) -> Labelled:
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
        return Labelled(images, torch.arange(count))

    settings = ImageOptions(**options)
    return ArrayImages(
        "numbered", part(size), part(evaluation), classes=256, mean=[0.5], std=[0.5], source="test", options=settings
    )


def write_images(root: Path, per_class: int = 4) -> Path:
    """A folder of JPEGs in ImageNet's layout: two classes of random pictures of various sizes."""
    image = pytest.importorskip("PIL.Image", reason="needs the optional package pillow")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                shape = (*random.integers(20, 50, 2), 3)
                image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{number}.jpg")
    return root


def write_definitions(file: Path) -> Path:
    """WordNet's noun file: an indented licence, then nouns of classes 4 to 9 and one of each class that is left out."""
    lines = ["  1 This software and database is being provided to you | as is"]
    for number in range(120):
        label = 3 if number == 0 else 16 if number == 1 else 4 + number % 6
        lines.append(f'{number:08} {label:02} n 01 word 0 000 | a definition of thing {number}; "an example"  ')
    file.write_text("\n".join(lines))
    return file


def equal(a: list[data.Batch], b: list[data.Batch]) -> bool:
    same = (torch.equal(x, y) for left, right in zip(a, b, strict=True) for x, y in zip(left, right, strict=True))
    return all(same)
