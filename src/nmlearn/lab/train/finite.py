"""Steps that are left out because their loss is not finite."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.lab.train.ranks import Ranks

MOST_IN_A_ROW = 5
"""So many steps left out one after another end a training: it will not find back by itself."""


class Finite:
    """Watches the loss of every step, and takes back what a forward pass with a bad one did.

    A loss of NaN comes with gradients of NaN, which would be in every weight after the step, and the forward pass has
    left them in the running statistics of batch norm already.

    Args:
        model: its buffers are put back when a step is left out.
        ranks: a step is left out by all processes or by none.

    Attributes:
        left_out: how many steps were, in all.
        in_a_row: how many of them were the last ones.
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
        """A step begins: remember the buffers."""
        _copy(self._before, self._buffers)

    def see(self, loss: Tensor) -> None:
        """Take in the loss of a step. Call it before the last backward pass, during which a GPU sends the value."""
        total = self._ranks.sum(loss.detach().clone())
        self._loss = total.to("cpu", non_blocking=True)
        if total.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    @torch.no_grad()
    def leaves_out(self) -> bool:
        """Whether the step is to be left out; the buffers are as before the forward pass then."""
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
        """The loss seen last, summed over all processes."""
        return float(self._loss)

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"left_out": self.left_out, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting from a checkpoint's counts."""
        self.left_out, self.in_a_row = state["left_out"], state["in_a_row"]


@torch.no_grad()
def broken(model: nn.Module) -> list[str]:
    """Names of the weights with a value that is not finite. Waits for the device once."""
    named = [(name, p) for name, p in model.named_parameters() if p.numel()]
    if not named:
        return []
    ends = torch.stack([torch.stack(torch.aminmax(p)).float() for _, p in named])  # both are NaN where any value is
    return [name for (name, _), fine in zip(named, ends.isfinite().all(1).tolist(), strict=True) if not fine]


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)
