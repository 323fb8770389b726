"""Image data sets that fit in memory: uint8 tensors, augmented batch by batch in the training process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from nmlearn.lab.data import augment
from nmlearn.lab.data.mix import mix
from nmlearn.lab.data.options import ImageOptions
from nmlearn.lab.data.task import Batch, Draw, Task, first, generator


@dataclass(frozen=True)
class Labelled:
    """images uint8 [n, C, H, W] and labels int64 [n]."""

    images: Tensor
    labels: Tensor


class ArrayImages(Task):
    """An image classification task held in memory.

    Args:
        name, source, classes: as in `Task`.
        train, evaluation: the examples, in a fixed order that is not sorted by class (limits keep the first ones).
        mean, std: of the training pixels per channel, in [0, 1].
    """

    kind = "image"

    def __init__(
        self,
        name: str,
        train: Labelled,
        evaluation: Labelled,
        *,
        classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        source: str,
        options: ImageOptions,
    ) -> None:
        self.name, self.classes, self.source, self.options = name, classes, source, options
        self._train, self._eval = train, evaluation
        self._mean, self._std = torch.tensor(mean), torch.tensor(std)
        self.train_size = first(len(train.labels), options.train_limit)
        self.eval_size = first(len(evaluation.labels), options.eval_limit)
        channels, own_size = train.images.shape[1:3]
        self._size = options.image_size or int(own_size)
        self.input_shape = (int(channels), self._size, self._size)

    def read_train(self, draws: Sequence[Draw], *, seed: int, epoch: int) -> Iterator[Batch]:
        for draw in draws:
            random = generator(draw.seed)
            images = augment.normalise(self._augment(self._train.images[draw.indices], random), self._mean, self._std)
            labels = self._train.labels[draw.indices]
            yield mix(images, labels, self.classes, random, mixup=self.options.mixup, cutmix=self.options.cutmix)

    def read_eval(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for part in parts:
            images = augment.resize(self._eval.images[part], self._size)
            yield augment.normalise(images, self._mean, self._std), self._eval.labels[part]

    def _augment(self, images: Tensor, random: Generator) -> Tensor:
        kind = self.options.augment
        if kind == "random-resized-crop":
            images = augment.random_resized_crop(images, self._size, self.options.crop_scale, random)
        if kind == "crop-flip":
            # An eighth of the side: the 4 pixels of He et al. 2016 at 32 x 32.
            images = augment.crop(images, images.shape[-1] // 8, random)
        if kind != "none":
            images = augment.flip(images, random)
        return augment.resize(images, self._size)
