"""RandAugment (Cubuk et al. 2020) as DeiT uses it, which timm calls rand-mMAGNITUDE-mstd0.5-inc1.

Two of fifteen changes are drawn, with replacement. Each is applied with probability 1/2, at a magnitude drawn from a
normal distribution with standard deviation 0.5 and clipped to [0, 10]. All changes grow with the magnitude. This runs
in the worker processes, which import Pillow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FILL = (124, 116, 104)  # ImageNet's mean colour, for areas that a change leaves empty
Change = Callable[["Image", float, float], "Image"]  # image, magnitude / 10, sign -> image


def randaugment(image: Image, magnitude: float, random: np.random.Generator) -> Image:
    """An RGB image, randomly changed; all randomness comes from `random`. Same size."""
    for name in random.choice(list(CHANGES), 2):
        made, level, sign = random.random() < 0.5, random.normal(magnitude, 0.5), random.choice((-1.0, 1.0))
        if made:
            image = CHANGES[str(name)](image, float(np.clip(level, 0, 10)) / 10, float(sign))
    return image


def _ops() -> Any:
    from PIL import ImageOps

    return ImageOps


def _affine(image: Image, *rows: float) -> Image:
    from PIL import Image as pil

    return image.transform(image.size, pil.Transform.AFFINE, rows, resample=pil.Resampling.BICUBIC, fillcolor=FILL)


def _rotate(image: Image, level: float, sign: float) -> Image:
    from PIL import Image as pil

    return image.rotate(30 * level * sign, resample=pil.Resampling.BICUBIC, fillcolor=FILL)


def _solarize_add(image: Image, level: float, _sign: float) -> Image:
    add = min(128, int(110 * level))
    return image.point([min(255, value + add) if value < 128 else value for value in range(256)] * 3)


def _posterize(image: Image, level: float, _sign: float) -> Image:
    dropped = 2 ** (4 + int(4 * level))  # Pillow's own posterize refuses to drop all eight bits
    return image.point([value // dropped * dropped for value in range(256)] * 3)


def _enhance(kind: str) -> Change:
    def change(image: Image, level: float, sign: float) -> Image:
        from PIL import ImageEnhance

        return getattr(ImageEnhance, kind)(image).enhance(max(0.1, 1 + 0.9 * level * sign))

    return change


CHANGES: dict[str, Change] = {
    "AutoContrast": lambda image, level, sign: _ops().autocontrast(image),
    "Equalize": lambda image, level, sign: _ops().equalize(image),
    "Invert": lambda image, level, sign: _ops().invert(image),
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": lambda image, level, sign: _ops().solarize(image, 256 - min(256, int(256 * level))),
    "SolarizeAdd": _solarize_add,
    "Color": _enhance("Color"),
    "Contrast": _enhance("Contrast"),
    "Brightness": _enhance("Brightness"),
    "Sharpness": _enhance("Sharpness"),
    "ShearX": lambda image, level, sign: _affine(image, 1, 0.3 * level * sign, 0, 0, 1, 0),
    "ShearY": lambda image, level, sign: _affine(image, 1, 0, 0, 0.3 * level * sign, 1, 0),
    "TranslateX": lambda image, level, sign: _affine(image, 1, 0, 0.45 * level * sign * image.width, 0, 1, 0),
    "TranslateY": lambda image, level, sign: _affine(image, 1, 0, 0, 0, 1, 0.45 * level * sign * image.height),
}
