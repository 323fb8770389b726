"""Statistics of batch norms, estimated again after the weights before them have changed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nmlearn.learn.running import run
from nmlearn.model.example import evaluating


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that normalize by running statistics in evaluation."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def reestimate(model: nn.Module, batches: Iterable[Any]) -> int:
    """Set the running mean and variance of every batch norm to their averages over batches, each of the same weight.

    The model runs in evaluation mode but for its batch norms, without gradients; training flags and momenta are as
    before.

    Args:
        batches: a tensor, a tuple of arguments or a dict of keyword arguments each.

    Returns:
        how many batch norms there are; 0 runs nothing.

    Raises:
        ConfigError: the model refuses a batch.
    """
    norms = batch_norms(model)
    momenta = [norm.momentum for norm in norms]
    if not norms:
        return 0
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a cumulative average
                norm.train()
            for batch in batches:
                run(model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return len(norms)
