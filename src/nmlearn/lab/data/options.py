"""Options of the sources: one frozen dataclass each, built from a dict. Errors name the nearest option."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from nmlearn.errors import ConfigError, check_name, check_type

AUGMENTATIONS = ("none", "flip", "crop-flip", "random-resized-crop")

AnyOptions = TypeVar("AnyOptions", bound="Limits")


@dataclass(frozen=True)
class Limits:
    """Options of every source.

    Attributes:
        train_limit, eval_limit: use only this many examples, the first ones (None: all).
    """

    train_limit: int | None = None
    eval_limit: int | None = None

    def __post_init__(self) -> None:
        for name in ("train_limit", "eval_limit"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "not positive", "use at least 1, or null for all")


@dataclass(frozen=True)
class ImageOptions(Limits):
    """Options of image sources.

    Attributes:
        augment: "none", "flip" (horizontal), "crop-flip" (random crop after padding by an eighth, and flip; He et al.
        2016,
            section 4.2) or "random-resized-crop" (random area and aspect ratio, and flip; Szegedy et al. 2015).
        crop_scale: smallest fraction of the area that a random-resized crop keeps.
        mixup: alpha of mixup's Beta distribution, 0 for off (Zhang et al. 2018).
        cutmix: alpha of cutmix's Beta distribution, 0 for off (Yun et al. 2019). With both on, each batch uses one.
        image_size: side of the square input images (None: the source's own size).
    """

    augment: str = "crop-flip"
    crop_scale: float = 0.25
    mixup: float = 0.0
    cutmix: float = 0.0
    image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.augment in AUGMENTATIONS
        require(known, "augment", self.augment, "no such augmentation", f"use one of {', '.join(AUGMENTATIONS)}")
        require(0 < self.crop_scale <= 1, "crop_scale", self.crop_scale, "not in (0, 1]", "use for instance 0.25")
        for name in ("mixup", "cutmix"):
            require(
                getattr(self, name) >= 0, name, getattr(self, name), "negative", "use 0 for off, or for instance 0.8"
            )
        size = self.image_size
        require(size is None or size >= 1, "image_size", size, "not positive", "use for instance 32")


def require(condition: bool, name: str, given: object, wrong: str, fix: str) -> None:
    """Raise a ConfigError for option `name` unless `condition` holds."""
    if not condition:
        raise ConfigError(where=f"data.options.{name}", given=repr(given), wrong=wrong, fix=fix)


def parse(kind: type[AnyOptions], given: Mapping[str, object]) -> AnyOptions:
    """`given` as `kind`; None means the default.

    Raises:
        ConfigError: an unknown option, or a value of the wrong type or out of range.
    """
    known = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    for name, value in given.items():
        check_name(f"data.options.{name}", name, known, "option of this data set")
        if value is not None:
            check_type(f"data.options.{name}", value, known[name])
    return kind(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
