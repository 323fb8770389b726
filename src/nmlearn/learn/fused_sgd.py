"""Stepping weights ahead of torch.optim.SGD, in the pass over memory that steps their scores.

Scores read every weight and gradient just before the optimizer does, and memory is what both cost: SGD's own passes
cost more than the scores. Where the optimizer is torch's SGD with momentum, the kernels do its arithmetic too, with the
same bits (tested), and while ``optimizer.step`` runs such a weight has no gradient, which is how SGD skips it. Momentum
lives in the optimizer's state as ever. Where other hooks on the optimizer could tell, nothing is done ahead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, optim

from nmlearn.native.training import WeightStep


class Ahead:
    """Knows for one optimizer which weights may be stepped ahead of it, and hides them while it steps."""

    def __init__(self, optimizer: optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []

    def weight_step(self, group: dict[str, Any], parameters: list[nn.Parameter], hooks: Any) -> WeightStep | None:
        """What the optimizer is about to do to parameters of a group; None where that is not for others to do.

        Args:
            hooks: the caller's own step hooks, before and after.
        """
        if type(self.optimizer) is not optim.SGD or not _is_plain(group) or not self._alone(*hooks):
            return None
        state = self.optimizer.state
        buffers = [state[p].get("momentum_buffer") if p in state else None for p in parameters]
        moments = [b if type(p) is nn.Parameter else None for p, b in zip(parameters, buffers, strict=True)]
        return WeightStep(moments, float(group["momentum"]), float(group["weight_decay"]))

    def _alone(self, before: Any, after: Any) -> bool:
        """Whether no other hook comes between learning and the optimizer, or between the optimizer and ``show``."""
        others_before = list(self.optimizer._optimizer_step_pre_hooks.values())[-1:] != [before]
        others_after = list(self.optimizer._optimizer_step_post_hooks.values())[:1] != [after]
        return not others_before and not others_after

    def hide(self, parameters: list[nn.Parameter]) -> None:
        """Take the gradients of weights that have been stepped, so that the optimizer passes them by."""
        self._hidden = [(p, p.grad) for p in parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def show(self) -> None:
        """Put the gradients back."""
        for parameter, grad in self._hidden:
            parameter.grad = grad
        self._hidden = []


def _is_plain(group: dict[str, Any]) -> bool:
    """Whether SGD is nothing but momentum and weight decay: v <- momentum v + (g + decay w); w <- w - lr v."""
    extras = any(group[key] for key in ("dampening", "nesterov", "maximize", "fused", "differentiable"))
    learned = any(isinstance(group[key], Tensor) for key in ("momentum", "weight_decay"))
    fixed_lr = not (isinstance(group["lr"], torch.Tensor) and group["lr"].requires_grad)
    return not extras and not learned and fixed_lr and group["momentum"] != 0
