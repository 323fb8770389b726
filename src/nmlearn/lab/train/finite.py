"""Skips steps whose loss is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.lab.train.ranks import Ranks

MOST_IN_A_ROW = 5
"""This many skipped steps in a row end the run: it will not recover by itself."""


class Finite:
    """Watches the loss of every step, and undoes the effects of a forward pass with a bad one.

    A NaN loss comes with NaN gradients, which would reach every weight in the step. The forward pass has already put
    NaN into the running statistics of batch norm.

    Args:
        model: its buffers are restored when a step is skipped.
        ranks: a step is skipped by all processes or by none.

    Attributes:
        left_out: total number of skipped steps.
        in_a_row: number of skipped steps since the last finite loss.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        self._ranks = ranks
        kept = model.state_dict(keep_vars=True)
        self._buffers = [buffer for name, buffer in model.named_buffers() if name in kept]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._loss = torch.zeros(())
        self._arrived: torch.cuda.Event | None = None
        self.left_out = self.in_a_row = 0

    @torch.no_grad()
    def begin(self) -> None:
        """Start a step: save the buffers."""
        _copy(self._before, self._buffers)

    def see(self, loss: Tensor) -> None:
        """Record the loss of a step. Call this before the last backward pass: a GPU sends the value meanwhile."""
        total = self._ranks.sum(loss.detach().clone())
        self._loss = total.to("cpu", non_blocking=True)
        if total.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @torch.no_grad()
    def leaves_out(self) -> bool:
        """Whether to skip the step; if so, the buffers are restored to before the forward pass."""
        if self._arrived is not None:
            self._arrived.synchronize()
        if math.isfinite(float(self._loss)):
            self.in_a_row = 0
            return False
        _copy(self._buffers, self._before)
        self.left_out += 1
        self.in_a_row += 1
        return True

    @property
    def loss(self) -> float:
        """The last recorded loss, summed over all processes."""
        return float(self._loss)

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"left_out": self.left_out, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts."""
        self.left_out, self.in_a_row = state["left_out"], state["in_a_row"]


@torch.no_grad()
def broken(model: nn.Module) -> list[str]:
    """Names of the weights with a non-finite value. Waits for the device once."""
    named = [(name, p) for name, p in model.named_parameters() if p.numel()]
    if not named:
        return []
    ends = torch.stack([torch.stack(torch.aminmax(p)).float() for _, p in named])  # both are NaN where any value is
    return [name for (name, _), fine in zip(named, ends.isfinite().all(1).tolist(), strict=True) if not fine]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
