"""Any image folder in ImageNet's layout: train/CLASS/*.jpg and val/CLASS/*.jpg, decoded by Pillow in worker processes.

What happens to an image depends on (seed, epoch, its number) alone: not on the workers, the rank or the batch it falls
into.
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
from torch.utils.data import DataLoader, Dataset

from nmlearn.data import augment, picture
from nmlearn.data.mix import mix
from nmlearn.data.options import ImageOptions, parse, require
from nmlearn.data.task import Batch, Draw, Task, generator
from nmlearn.errors import ConfigError, DataError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as pretrained models expect
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")
LAYOUT = (
    "make train/CLASS/ and val/CLASS/ folders of .jpg or .png files and set data.path to the folder that holds both"
)


@dataclass(frozen=True)
class FolderOptions(ImageOptions):
    """Options of "image-folder": those of all images, and

    Attributes:
        workers: decoding processes (None: one per usable core, at most 8; 0: decode in the training process).
    """

    augment: str = "random-resized-crop"
    crop_scale: float = 0.08
    image_size: int | None = 224
    workers: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.workers is None or self.workers >= 0, "workers", self.workers, "negative", "use 0 or more")

    @property
    def side(self) -> int:
        """Height and width of what the network sees."""
        return self.image_size or 224

    @property
    def processes(self) -> int:
        """The number of decoding processes."""
        return min(8, len(os.sched_getaffinity(0))) if self.workers is None else self.workers


class Example(NamedTuple):
    """One image file and its class."""

    file: Path
    label: int


class Broken(NamedTuple):
    """What a worker hands over in place of an image that it cannot decode: exceptions lose their type on the way."""

    file: Path
    reason: str


class Decoded(Dataset[tuple[Tensor, int] | Broken]):
    """uint8 images of one pass; lives in the worker processes."""

    def __init__(self, examples: Sequence[Example], kind: str, options: FolderOptions, seeds: tuple[int, ...]) -> None:
        self.examples, self.kind, self.options, self.seeds = examples, kind, options, seeds

    def __getitem__(self, index: int) -> tuple[Tensor, int] | Broken:
        file, label = self.examples[index]
        seeds = (*self.seeds, index)
        try:
            return picture.read(file, self.kind, self.options.side, self.options.crop_scale, seeds), label
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises on damaged files
            return Broken(file, str(error))


class ImageFolder(Task):
    """An image classification task read from files as it goes."""

    kind = "image"

    def __init__(self, root: Path, options: FolderOptions) -> None:
        self.name, self.source, self.options = "image-folder", str(root), options
        names = class_names(root)
        self.classes = len(names)
        self._train = list_images(root, "train", names)[: options.train_limit]
        self._eval = list_images(root, "val", names)[: options.eval_limit]
        self.train_size, self.eval_size = len(self._train), len(self._eval)
        self.input_shape = (3, options.side, options.side)
        self._mean, self._std = torch.tensor(MEAN), torch.tensor(STD)

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        data = Decoded(self._train, self.options.augment, self.options, (seed, epoch))
        batches = self._decode(data, [draw.indices for draw in draws])
        for draw, (images, labels) in zip(draws, batches, strict=True):
            random = generator(draw.seed)
            yield mix(images, labels, self.classes, random, mixup=self.options.mixup, cutmix=self.options.cutmix)

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        yield from self._decode(Decoded(self._eval, "none", self.options, ()), parts)

    def _decode(self, data: Decoded, parts: Sequence[Tensor]) -> Iterator[Batch]:
        loader = DataLoader(
            data,
            batch_sampler=[part.tolist() for part in parts],
            num_workers=self.options.processes,
            collate_fn=collate,
            generator=generator(0),  # else the loader draws its workers' seeds from the global one
        )
        for batch in loader:
            if isinstance(batch, Broken):
                fix = "replace or remove the file"
                raise DataError(where="data.path", given=batch.file, wrong=f"no image ({batch.reason})", fix=fix)
            images, labels = batch
            yield augment.normalise(images, self._mean, self._std), labels


def image_folder(path: Path | None = None, **options: object) -> Task:
    """The image folder `path`, float32 [3, size, size], one class per folder in train/, sorted by name.

    Raises:
        ConfigError: an option is wrong, or Pillow is missing.
        DataError: a folder is missing or empty; while iterating: a file is no image.
    """
    settings = parse(FolderOptions, options)
    if path is None or not path.is_dir():
        wrong = "data.path is not set" if path is None else "no such folder"
        raise DataError(where="data.path", given=path or "nothing", wrong=wrong, fix=LAYOUT)
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        fix = "pip install pillow"
        raise ConfigError(where="data.name", given="image-folder", wrong=f"needs Pillow ({error})", fix=fix) from error
    return ImageFolder(path, settings)


def class_names(root: Path) -> list[str]:
    """Names of the folders in root/train, sorted."""
    folder = root / "train"
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
    if not names:
        wrong = "no such folder" if not folder.is_dir() else "no class folders in it"
        raise DataError(where="data.path", given=folder, wrong=wrong, fix=LAYOUT)
    return names


def list_images(root: Path, part: str, names: Sequence[str]) -> list[Example]:
    """The images under root/part, ordered by the hash of their place in it: limits then take some of every class."""
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
    """uint8 [b, 3, size, size] and int64 [b], or the first broken image."""
    for item in items:
        if isinstance(item, Broken):
            return item
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)
