"""Stepping weights ahead of torch.optim.SGD with momentum: its momentum buffers are written in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, optim

from nmlearn.learn.ahead import Ahead, keeps
from nmlearn.learn.weight import SparseWeight
from nmlearn.native.training import WeightStep


class FusedSGD(Ahead):
    """Steps the weights of an SGD."""

    def _applies(self, group: dict[str, Any]) -> bool:
        return type(self.optimizer) is optim.SGD and _is_plain(group) and self._alone()

    def _step(self, group: dict[str, Any], own: list[SparseWeight]) -> WeightStep:
        moments = [self._known(w.parameter).get("momentum_buffer") for w in own]
        return WeightStep(moments, keeps(own), float(group["momentum"]), float(group["weight_decay"]))


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether SGD is nothing but momentum and weight decay: v <- momentum v + (g + decay w); w <- w - lr v."""
    extras = any(group[key] for key in ("dampening", "nesterov", "maximize", "fused", "differentiable"))
    learned = any(isinstance(group[key], Tensor) for key in ("momentum", "weight_decay"))
    fixed_lr = not (isinstance(group["lr"], torch.Tensor) and group["lr"].requires_grad)
    return not extras and not learned and fixed_lr and group["momentum"] != 0
