"""Any image folder in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg, decoded by Pillow in worker processes.

The augmentation of an image depends only on (seed, epoch, its number): not on the workers, the rank or the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nmlearn.errors import DataError
from nmlearn.lab.data import augment, decoding
from nmlearn.lab.data.mix import mix
from nmlearn.lab.data.options import ImageOptions, parse, require
from nmlearn.lab.data.pipeline import Broken, Key, Pipeline, image_root, processes
from nmlearn.lab.data.task import Batch, Draw, Task, generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained models expect
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
LAYOUT = (
    "make train/CLASS/ and val/CLASS/ folders of .jpg or .png files and set data.path to the folder that holds both"
)


@dataclass(frozen=True)
class FolderOptions(ImageOptions):
    """Options of "image-folder", in addition to those of all image sources.

    Attributes:
        randaugment: magnitude of RandAugment in [0, 10], 0 for off; DeiT uses 9 (see `nmlearn.lab.data.randaugment`).
        erasing: probability that a box of a training image is filled with noise; DeiT uses 0.25.
        repeats: how often an epoch shows each image, with a new augmentation; DeiT uses 3, with a third of the images.
        interpolation: "bilinear" or "bicubic", for resizing.
        workers: decoding processes (None: this process's share of the usable cores, at most 16; 0: decode in the
            training process).
    """

    augment: str = "random-resized-crop"
    crop_scale: float = 0.08
    image_size: int | None = 224
    randaugment: float = 0.0
    erasing: float = 0.0
    repeats: int = 1
    interpolation: str = "bilinear"
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        strength, share, shown = self.randaugment, self.erasing, self.repeats
        require(0 <= strength <= 10, "randaugment", strength, "not in [0, 10]", "use 0 for off, or for instance 9")
        require(0 <= share <= 1, "erasing", share, "not in [0, 1]", "use 0 for off, or for instance 0.25")
        require(shown >= 1, "repeats", shown, "not positive", "use 1, or for instance 3")
        known = self.interpolation in ("bilinear", "bicubic")
        require(known, "interpolation", self.interpolation, "no such interpolation", "use bilinear or bicubic")
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "negative", "use 0 or more")

    @property
    def side(self) -> int:
        """Height and width of the network's input."""
        return self.image_size or 224


class Example(NamedTuple):
    """One image file and its class."""

    file: Path
    label: int


class Decoded(Dataset[tuple[Tensor, int] | Broken]):
    """uint8 images by Key; lives in the worker processes. Repeated images have numbers past the last one."""

    def __init__(self, parts: dict[str, list[Example]], options: FolderOptions) -> None:
        self.parts, self.options = parts, options

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Broken:
        examples = self.parts[key.part]
        file, label = examples[key.number % len(examples)]
        kind = self.options.augment if key.part == "train" else "none"
        try:
            return decoding.read(file, kind, self.options, (*key.seeds, key.number)), label
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises these on damaged files
            return Broken(file, str(error))


class ImageFolder(Task):
    """An image classification task that reads files on the fly.

    Workers return uint8 in channels_last memory order; the rest happens on `device`.
    """

    kind = "image"

    def __init__(self, root: Path, options: FolderOptions) -> None:
        self.name, self.source, self.options, self.repeats = "image-folder", str(root), options, options.repeats
        names = class_names(root)
        self.classes = len(names)
        train = list_images(root, "train", names)[: options.train_limit]
        evaluation = list_images(root, "val", names)[: options.eval_limit]
        self.train_size, self.eval_size = len(train), len(evaluation)
        self.input_shape = (3, options.side, options.side)
        decoded = Decoded({"train": train, "val": evaluation}, options)
        self._pipeline = Pipeline(decoded, collate, processes(options.workers))

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        keys = [[Key("train", number, (seed, epoch)) for number in draw.indices.tolist()] for draw in draws]
        options = self.options
        for draw, (images, labels) in zip(draws, self._read(keys), strict=True):
            random = generator(draw.seed)
            if options.erasing:
                augment.erase_(images, options.erasing, random)
            yield mix(images, labels, self.classes, random, mixup=options.mixup, cutmix=options.cutmix)

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        return self._read([[Key("val", number) for number in part.tolist()] for part in parts])

    def _read(self, keys: Sequence[list[Key]]) -> Iterator[Batch]:
        mean, std = torch.tensor(MEAN, device=self.device), torch.tensor(STD, device=self.device)
        for images, labels in self._pipeline.batches(keys):
            images, labels = (each.to(self.device, non_blocking=True) for each in (images, labels))
            yield augment.normalise(images, mean, std), labels


def image_folder(path: Path | None = None, **options: object) -> Task:
    """The image folder `path`, float32 [3, size, size], one class per folder in train/, sorted by name.

    Raises:
        ConfigError: an option is wrong, or Pillow is missing.
        DataError: a folder is missing or empty; while iterating: a file is not an image.
    """
    settings = parse(FolderOptions, options)
    return ImageFolder(image_root(path, "image-folder", LAYOUT), settings)


def class_names(root: Path) -> list[str]:
    """Names of the folders in root/train, sorted."""
    folder = root / "train"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        wrong = "no such folder" if not folder.is_dir() else "no class folders in it"
        raise DataError(where="data.path", given=folder, wrong=wrong, fix=LAYOUT)
    return names


def list_images(root: Path, part: str, names: Sequence[str]) -> list[Example]:
    """The images under root/part, ordered by the hash of their relative path: limits then keep some of every class."""
    if not (root / part).is_dir():
        raise DataError(where="data.path", given=root / part, wrong="no such folder", fix=LAYOUT)
    strange = sorted({entry.name for entry in (root / part).iterdir() if entry.is_dir()} - set(names))
    if strange:
        wrong = f"its class {strange[0]!r} is not in train"
        raise DataError(where="data.path", given=root / part, wrong=wrong, fix=LAYOUT)
    found = []
    for label, name in enumerate(names):
        for folder, _, files in os.walk(root / part / name):
            found += [Example(Path(folder, file), label) for file in files if file.lower().endswith(SUFFIXES)]
    if not found:
        raise DataError(where="data.path", given=root / part, wrong="no images in it", fix=LAYOUT)
    base = root / part
    return sorted(found, key=lambda e: hashlib.sha256(e.file.relative_to(base).as_posix().encode()).digest())


def collate(items: Sequence[tuple[Tensor, int] | Broken]) -> Batch | Broken:
    """uint8 [b, 3, size, size] in channels_last memory order and int64 [b], or the first broken image."""
    for item in items:
        if isinstance(item, Broken):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images).permute(0, 3, 1, 2), torch.tensor(labels)
