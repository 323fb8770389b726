"""LBC as the paper writes it, derived independently of the library, for tests: masked layers, one score parameter per
combination in the optimizer, the straight-through mask in the forward pass, removal of the lowest scores.

Only two things differ from the authors' restated text: a removed combination is remembered in a tensor of its own, and
progress is counted in optimizer steps.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskedLayer(nn.Module):
    """A linear or convolution layer whose weight is masked by the union of the surviving combinations."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, n: int, m: int) -> None:
        super().__init__()
        self.layer, self.m = layer, m
        combos = list(itertools.combinations(range(m), n))
        rows = [[float(j in combo) for j in range(m)] for combo in combos]
        self.register_buffer("t", torch.tensor(rows, dtype=layer.weight.dtype))
        groups = layer.weight.numel() // m
        start = 1.0 / math.comb(m - 1, n - 1)
        self.scores = nn.Parameter(torch.full((groups, len(combos)), start, dtype=layer.weight.dtype))
        self.register_buffer("alive", torch.ones(groups, len(combos), dtype=torch.bool))

    def mask(self) -> Tensor:
        """Straight-through: 0 or 1 forward, the summed scores of the surviving combinations backward."""
        held = (self.alive.to(self.t.dtype) @ self.t > 0).to(self.t.dtype)
        summed = (self.scores * self.alive) @ self.t
        flat = held + summed - summed.detach()
        w = self.layer.weight
        if w.dim() == 2:
            return flat.view(w.shape)
        o, i, kh, kw = w.shape
        return flat.view(o, kh, kw, i).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        w = self.layer.weight * self.mask()
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, w, self.layer.bias)
        return self.layer._conv_forward(x, w, self.layer.bias)

    @torch.no_grad()
    def remove(self, survivors: int) -> None:
        """The lowest-scored surviving combinations, one by one; of equals the last one goes first."""
        numbers = np.broadcast_to(np.arange(self.scores.shape[1]), self.scores.shape)
        scores = np.where(self.alive.numpy(), self.scores.numpy(), np.inf)
        for row, order in enumerate(np.lexsort((-numbers, scores))):
            for k in order[: int(self.alive[row].sum()) - survivors]:
                self.alive[row, k] = False


def survivors(c: int, step: int, total: int, start: float, end: float, power: float) -> int:
    p = step / total
    if p < start:
        return c
    if p >= end:
        return 1
    return min(c, 1 + math.ceil((c - 1) * (1 - (p - start) / (end - start)) ** power - 1e-9))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, data: list, schedule: tuple[float, float, float]):
    """Yields after every step the loss, the masked weights and the alive sets, layer by layer."""
    layers = [m for m in model.modules() if isinstance(m, MaskedLayer)]
    for t, (x, y) in enumerate(data, start=1):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        for layer in layers:
            layer.remove(survivors(layer.scores.shape[1], t, len(data), *schedule))
        yield loss.item(), [(m.layer.weight * m.mask()).detach() for m in layers], [m.alive.clone() for m in layers]
