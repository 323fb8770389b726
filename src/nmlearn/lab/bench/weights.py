"""Random weights with a pattern."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nmlearn.maths.groups import Grouping
from nmlearn.maths.masks import top
from nmlearn.maths.pattern import Pattern


def sparse_(weight: Tensor, pattern: str) -> Tensor:
    """Keep the N largest of every M along the inputs, in place."""
    cut = Grouping(Pattern(pattern), 1)
    with torch.no_grad():
        w_gm = cut.view(weight)
        w_gm.mul_(top(w_gm.abs(), cut.pattern.n))
    return weight


def sparse_network_(model: nn.Module, pattern: str) -> nn.Module:
    """Every Linear and Conv2d whose input channels M divides; batch norms get statistics that folding cannot ignore."""
    m = Pattern(pattern).m
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[1] % m == 0:
            sparse_(module.weight, pattern)
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data):
                assert tensor is not None
                tensor.uniform_(0.4, 0.8)
    return model.eval()
