"""A teacher for the tests of distillation, of the language model of the tests of calibration."""

from __future__ import annotations

import copy

import torch
from torch import nn

LAYERS = {"layers.*": 1.0}
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])


def other(model: nn.Module, seed: int = 1) -> nn.Module:
    """The same network with other weights."""
    twin, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for p in twin.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return twin
