"""Mixup and cutmix: blended images with blended targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional


def mix(
    images: Tensor, labels: Tensor, classes: int, generator: Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """The batch blended with a permutation of itself; unchanged when both alphas are 0.

    With both on, each batch uses one of them with equal probability, as in DeiT's recipe (Touvron et al. 2021).

    Args:
        images: float32 [b, C, H, W], after normalisation.
        labels: int64 [b].
        mixup, cutmix: alphas of the Beta(alpha, alpha) distribution of the mixing ratio, 0 for off.

    Returns:
        images of the same shape and float32 targets [b, classes] whose rows sum to 1 (the labels unchanged when off).
    """
    if not (mixup or cutmix):
        return images, labels
    # torch has no public Beta sampling with a generator; numpy does.
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    use_cutmix = bool(cutmix) and (not mixup or random.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = float(random.beta(alpha, alpha))
    other = torch.randperm(len(labels), generator=generator)
    if use_cutmix:
        images, share = paste(images, images[other.to(images.device)], share, random)
    else:
        images = torch.lerp(images[other.to(images.device)], images, share)
    hard = functional.one_hot(labels, classes).float()
    return images, torch.lerp(hard[other.to(hard.device)], hard, share)


def paste(images: Tensor, others: Tensor, share: float, random: np.random.Generator) -> tuple[Tensor, float]:
    """`images` with one box, about 1 - share of the area, copied from `others` (Yun et al. 2019, equations 1 and 2).

    The box is clipped at the border, so the share that actually remains is returned with the images.
    """
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    middle = random.integers(0, height), random.integers(0, width)
    top, bottom = _edges(int(middle[0]), side, height)
    left, right = _edges(int(middle[1]), side, width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)


def _edges(middle: int, share: float, size: int) -> tuple[int, int]:
    half = int(size * share) // 2
    return max(middle - half, 0), min(middle + half, size)
