"""What the programs of this folder share: arguments, data, a network, and the step at which one is killed.

Each program has the structure of a training script that many people copy: what it makes in which order, what its
checkpoints hold, and how it resumes. The lines that end in ``# nm`` are what nmlearn adds. Without them the program is
the script as it was; ``tests/test_loops.py`` runs both.
"""

from __future__ import annotations

import argparse
import copy
import os
import signal
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

MARK = "  # nm"
BATCHES = 4  # of an epoch


def arguments() -> argparse.Namespace:
    """What every program is told: steps of the optimizer, a checkpoint, a folder, and the step after which it dies."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--kill-at", type=int, default=-1)
    return parser.parse_args()


def may_be_killed(args: argparse.Namespace, steps: int) -> None:
    """Die after so many steps, without a chance to write anything."""
    if steps == args.kill_at:
        os.kill(os.getpid(), signal.SIGKILL)


def images(batch_size: int = 8, batches: int = BATCHES) -> tuple[DataLoader[tuple[Tensor, ...]], DistributedSampler]:
    """Images of noise, shuffled by the number of the epoch."""
    generator = torch.Generator().manual_seed(7)
    count = batch_size * batches
    x, y = torch.randn(count, 3, 8, 8, generator=generator), torch.randint(4, (count,), generator=generator)
    data = TensorDataset(x, y)
    sampler: DistributedSampler = DistributedSampler(data, num_replicas=1, rank=0)
    return DataLoader(data, batch_size, sampler=sampler), sampler


class Block(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def tiny_resnet() -> nn.Module:
    """A stem, two residual blocks and an output layer."""
    stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return nn.Sequential(stem, Block(16), Block(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def tiny_mlp() -> nn.Module:
    """Four linear layers over flat images."""
    layers = [nn.Linear(192, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU()]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(32, 4))


class Ema(nn.Module):
    """An average with its model in ``module``, as timm keeps it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__()
        self.module = copy.deepcopy(model).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.module.state_dict().values(), model.state_dict().values(), strict=True):
            mine.copy_(self.decay * mine + (1 - self.decay) * theirs)


@torch.no_grad()
def accuracy(model: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> float:
    """The share of right answers, in percent."""
    model.eval()
    right = [float((model(x).argmax(1) == y).float().mean()) for x, y in loader]
    return 100 * sum(right) / len(right)
