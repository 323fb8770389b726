"""One image file -> one augmented uint8 tensor. Runs in the decoding processes; Pillow is imported here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nmlearn.data.augment import ASPECT

if TYPE_CHECKING:
    from PIL.Image import Image

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
EVAL_SHARE = 0.875  # 224 of 256: the centre crop of He et al. 2016 and nearly everyone since


def read(file: Path, kind: str, size: int, smallest: float, seeds: tuple[int, ...]) -> Tensor:
    """The image as uint8 [3, size, size], augmented as `kind` says (see `ImageOptions`) with randomness from `seeds`
    only.

    Raises:
        OSError, ValueError, SyntaxError: the file is no image.
    """
    from PIL import Image

    random = np.random.default_rng(seeds)
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    box = _box(image, kind, smallest, random)
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if kind != "none" and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _box(image: Image, kind: str, smallest: float, random: np.random.Generator) -> Box:
    """The part of the image that the network sees."""
    width, height = image.size
    if kind == "random-resized-crop":
        return random_box(width, height, smallest, random)
    side = EVAL_SHARE * min(width, height)
    across, down = random.random(2) if kind == "crop-flip" else (0.5, 0.5)
    left, top = across * (width - side), down * (height - side)
    return (left, top, left + side, top + side)


def random_box(width: int, height: int, smallest: float, random: np.random.Generator) -> Box:
    """At least `smallest` of the area, aspect ratio log-uniform in [3/4, 4/3] (Szegedy et al. 2015).

    Ten tries, then the largest centred box of an allowed aspect ratio.
    """
    for _ in range(10):
        area = width * height * random.uniform(smallest, 1)
        aspect = math.exp(random.uniform(-1, 1) * math.log(ASPECT))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            left, top = random.uniform(0, width - w), random.uniform(0, height - h)
            return (left, top, left + w, top + h)
    w, h = min(width, height * ASPECT), min(height, width * ASPECT)
    return ((width - w) / 2, (height - h) / 2, (width + w) / 2, (height + h) / 2)
