"""Random augmentation of whole batches of images, each with an explicit generator.

Shapes: images [b, C, H, W]. The crop and the flip only move pixels, so they work on uint8 and are done before the
conversion to float32: a quarter of the memory traffic.
"""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor
from torch.nn import functional

ASPECT = 4 / 3  # random-resized crops have width / height in [3/4, 4/3] (Szegedy et al. 2015)


def crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Each image shifted by a uniform offset in [-padding, padding] in both directions, with black borders.

    The random crop of He et al. 2016, section 4.2. Same shape and dtype as `images`.
    """
    batch, _, height, width = images.shape
    padded = functional.pad(images, (padding, padding, padding, padding))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view with the window of every offset
    row, column = torch.randint(0, 2 * padding + 1, (2, batch), generator=generator)
    return windows[torch.arange(batch), :, row, column]


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Each image mirrored left to right with probability 1/2. Same shape and dtype as `images`."""
    mirrored = torch.rand(images.shape[0], generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def random_resized_crop(images: Tensor, size: int, smallest: float, generator: Generator) -> Tensor:
    """A random part of each image, at least `smallest` of its area, resized bilinearly to size x size.

    Area uniform in [smallest, 1], aspect ratio log-uniform in [3/4, 4/3] (Szegedy et al. 2015); sides longer than
    the image are clamped to it. uint8 or float in, float32 out in the same value range: [b, C, size, size].
    """
    batch = images.shape[0]
    draws = torch.rand(4, batch, generator=generator)
    area = smallest + (1 - smallest) * draws[0]
    aspect = torch.exp((2 * draws[1] - 1) * math.log(ASPECT))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # fractions of the side
    grid = torch.zeros(batch, 2, 3)  # sampling coordinates run from -1 to 1
    grid[:, 0, 0], grid[:, 1, 1] = width, height
    grid[:, 0, 2], grid[:, 1, 2] = (1 - width) * (2 * draws[2] - 1), (1 - height) * (2 * draws[3] - 1)
    where = functional.affine_grid(grid, [batch, images.shape[1], size, size], align_corners=False)
    return functional.grid_sample(images.float(), where, padding_mode="border", align_corners=False)


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear with antialiasing to size x size, float32 in the same value range; images of that size do not change."""
    if images.shape[-2:] == (size, size):
        return images.float()
    return functional.interpolate(images.float(), (size, size), mode="bilinear", antialias=True)


def erase_(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """With `probability`, fill a box of each image with normal noise, in place (Zhong et al. 2020, as DeiT uses it).

    The box has 2 to 33 % of the area, uniform, and an aspect ratio log-uniform in [0.3, 1 / 0.3]; at most ten tries.
    images: float32 [b, C, H, W] after normalisation, on any device; they are returned.
    """
    channels, height, width = images.shape[1:]
    for number in (torch.rand(len(images), generator=generator) < probability).nonzero().flatten().tolist():
        draws = torch.rand(10, 4, generator=generator)
        area = height * width * (0.02 + (1 / 3 - 0.02) * draws[:, 0])
        aspect = torch.exp((2 * draws[:, 1] - 1) * math.log(0.3))
        tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        fitting = ((tall < height) & (wide < width)).nonzero().flatten().tolist()[:1]
        for k in fitting:
            h, w = int(tall[k]), int(wide[k])
            top, left = int(draws[k, 2] * (height - h + 1)), int(draws[k, 3] * (width - w + 1))
            noise = torch.randn(channels, h, w, generator=generator)
            images[number, :, top : top + h, left : left + w] = noise.to(images.device)
    return images


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std per channel: values 0 to 255 in, float32 out. mean, std: float32 [C], of [0, 1]."""
    scale = (1 / (255 * std))[:, None, None]
    return images.float() * scale - (mean / std)[:, None, None]
