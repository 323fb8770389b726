"""An exponential moving average of a model: EMA."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Average:
    """A copy of a model that follows it: average = decay * average + (1 - decay) * model, after every step.

    Early on the decay is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten. Statistics of
    batch norm are averaged too, counters copied. A moving mask leaves zeros that are nearly zero here: finalize the
    copy with the final mask.

    Args:
        model: the model to follow; it is copied.
        decay: in [0, 1).

    Attributes:
        model: the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def follow(self, model: nn.Module, step: int) -> None:
        """Take in the model after its ``step``-th optimizer step."""
        decay = min(self.decay, (1 + step) / (10 + step))
        floats: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        for mine, theirs in zip(self._tensors(self.model), self._tensors(model), strict=True):
            if mine.is_floating_point():
                floats[0].append(mine)
                floats[1].append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(floats[0], floats[1], 1 - decay)

    @staticmethod
    def _tensors(model: nn.Module) -> list[torch.Tensor]:
        return [*model.parameters(), *model.buffers()]
