"""Keeping pruned weights at +0.0 through an optimizer: their gradients, and what optimizers remember of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.model.shards import local

# Copies of the weight that optimizers outside torch keep in their state and write back into it: timm's Lookahead.
_COPIES = {"lookahead_slow_buff"}


def gradient(w: SparseWeight) -> None:
    """Clear the gradient of what is pruned; one that was cleared and is still as it was costs nothing."""
    grad = w.parameter.grad
    if w.density == 1.0 or grad is None:
        return
    if w.cleared is None or w.cleared[0]() is not grad or w.cleared[1] != grad._version:
        masks.clear_(local(grad), w.state[masks.KEEP])
        w.cleared = weakref.ref(grad), grad._version


def hooks(weights: Iterable[SparseWeight]) -> list[Any]:
    """Hooks that clear every gradient as soon as it is there, before clipping, logging or the optimizer see it."""

    def clears(w: SparseWeight) -> Any:
        return w.parameter.register_post_accumulate_grad_hook(torch.compiler.disable(lambda _: gradient(w)))

    return [clears(w) for w in weights]


def moments(w: SparseWeight, optimizer: Optimizer | None) -> None:
    """Clear what the optimizer remembers of pruned values, when a mask has changed.

    Without it the weight is cleared after every step all the same. But moments that nothing feeds any more fade through
    denormal numbers, which processors multiply slowly, and copies of the weight would be written back.
    """
    if optimizer is None:  # it is gone, and its memory with it
        return
    # In torch's own optimizers a tensor of the weight's shape holds a number a value. Elsewhere it may be the matrix of
    # a preconditioner, which is square as the weight happens to be.
    elementwise = type(optimizer).__module__.startswith("torch.optim.")
    for name, tensor in optimizer.state.get(w.parameter, {}).items():
        alike = isinstance(tensor, Tensor) and tensor.shape == w.parameter.shape
        if alike and (elementwise or name in _COPIES):
            masks.clear_(local(tensor), w.state[masks.KEEP])
