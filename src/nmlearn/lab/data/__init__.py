"""The data sets of the command line: real sources, read deterministically.

    task = nmlearn.lab.data.load("cifar10", path="/data", augment="crop-flip")
    for inputs, targets in task.train_batches(128, epoch=0, seed=0): ...

Your own training loop needs none of this. `DATASETS` is the whole registry: names and the functions that load them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nmlearn.errors import check_name
from nmlearn.lab.data.cifar import cifar10, cifar100
from nmlearn.lab.data.coco import CocoOptions, coco
from nmlearn.lab.data.csv_file import CsvOptions, csv_file
from nmlearn.lab.data.fashion import fashion_mnist, fashion_mnist_full
from nmlearn.lab.data.folder import FolderOptions, image_folder
from nmlearn.lab.data.labelled import LabelledOptions
from nmlearn.lab.data.options import ImageOptions, Limits
from nmlearn.lab.data.task import Batch, Task
from nmlearn.lab.data.text import TextOptions, plain_text
from nmlearn.lab.data.wordnet import wordnet_nouns

__all__ = ["DATASETS", "OPTIONS", "Batch", "Task", "load"]

DATASETS: dict[str, Callable[..., Task]] = {
    "fashion-mnist": fashion_mnist,
    "fashion-mnist-full": fashion_mnist_full,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "image-folder": image_folder,
    "coco": coco,
    "wordnet": wordnet_nouns,
    "csv": csv_file,
    "text": plain_text,
}

OPTIONS: dict[str, type[Limits]] = {
    "fashion-mnist": ImageOptions,
    "fashion-mnist-full": ImageOptions,
    "cifar10": ImageOptions,
    "cifar100": ImageOptions,
    "image-folder": FolderOptions,
    "coco": CocoOptions,
    "wordnet": LabelledOptions,
    "csv": CsvOptions,
    "text": TextOptions,
}
"""The options of each data set, for listings."""


def load(name: str, path: str | Path | None = None, **options: object) -> Task:
    """The task called `name`, read from `path` (None: the source's usual place).

    Options are those of the source's options dataclass; one that is None means its default.

    Raises:
        ConfigError: an unknown name or option, or an invalid value.
        DataError: files are missing or wrong; the error says what to put where.
    """
    check_name("data.name", name, DATASETS, "data set")
    return DATASETS[name](None if path is None else Path(path).expanduser(), **options)
