"""One image file -> one augmented uint8 tensor. Runs in the worker processes, which import Pillow."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nmlearn.lab.data.augment import ASPECT
from nmlearn.lab.data.randaugment import randaugment

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels
EVAL_SHARE = 0.875  # 224 of 256: the usual centre crop since He et al. 2016


class DecodingOptions(Protocol):
    """The options of "image-folder" that decoding uses."""

    @property
    def side(self) -> int: ...
    @property
    def crop_scale(self) -> float: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def randaugment(self) -> float: ...


def read(file: Path, kind: str, options: DecodingOptions, seeds: tuple[int, ...]) -> Tensor:
    """The image as uint8 [side, side, 3], augmented by `kind` (see `ImageOptions`); all randomness comes from `seeds`.

    A JPEG is decoded at a half, a quarter or an eighth of its size when the crop still has all the pixels it needs: its
    cosine transform allows it, and decoding takes most of the time.

    Raises:
        OSError, ValueError, SyntaxError: the file is not an image.
    """
    from PIL import Image

    random = np.random.default_rng(seeds)
    side = options.side
    with Image.open(file) as opened:
        width, height = opened.size
        left, top, right, bottom = _box(width, height, kind, options.crop_scale, random)
        opened.draft(None, (math.ceil(side * width / (right - left)), math.ceil(side * height / (bottom - top))))
        image = opened if opened.mode == "RGB" else opened.convert("RGB")
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, right * across, bottom * down)
        image = image.resize((side, side), Image.Resampling[options.interpolation.upper()], box=box)
    if kind != "none" and random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if kind != "none" and options.randaugment:
        image = randaugment(image, options.randaugment, random)
    return torch.from_numpy(np.array(image))


def _box(width: int, height: int, kind: str, smallest: float, random: np.random.Generator) -> Box:
    """The crop of the image that the network gets."""
    if kind == "random-resized-crop":
        return random_box(width, height, smallest, random)
    side = EVAL_SHARE * min(width, height)
    across, down = random.random(2) if kind == "crop-flip" else (0.5, 0.5)
    left, top = across * (width - side), down * (height - side)
    return (left, top, left + side, top + side)


def random_box(width: int, height: int, smallest: float, random: np.random.Generator) -> Box:
    """At least `smallest` of the area, aspect ratio log-uniform in [3/4, 4/3] (Szegedy et al. 2015).

    At most ten tries, then the largest centred box of an allowed aspect ratio.
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
