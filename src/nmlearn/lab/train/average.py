"""An exponential moving average of a model: EMA."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average:
    """A copy of a model that follows it: average = decay * average + (1 - decay) * model, after every step.

    Early on the decay is min(decay, (1 + t) / (10 + t)), so that the random start is soon forgotten. Batch norm
    statistics are averaged too; counters are copied. A changing mask leaves values near zero in the average: finalize
    the copy with the final mask.

    Args:
        model: the model to follow; it is copied.
        decay: in [0, 1).

    Attributes:
        model: the averaged model, in evaluation mode.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._averaged = AveragedModel(model, multi_avg_fn=self._blend, use_buffers=True)
        self.model: nn.Module = self._averaged.module.eval().requires_grad_(False)
        self.decay = self._decay_now = decay

    def follow(self, model: nn.Module, step: int) -> None:
        """Update with the model after its ``step``-th optimizer step."""
        self._decay_now = min(self.decay, (1 + step) / (10 + step))
        self._averaged.n_averaged.fill_(step)  # at its initial 0, torch would copy the model over the average
        self._averaged.update_parameters(model)

    def _blend(self, mine: Sequence[Tensor], theirs: Sequence[Tensor], _: Tensor | int) -> None:
        if mine[0].is_floating_point():
            get_ema_multi_avg_fn(self._decay_now)(list(mine), list(theirs), 0)
        else:  # torch would average integers too, rounding down: at a decay of 0.9 an index of 7 becomes 6
            for own, other in zip(mine, theirs, strict=True):
                own.copy_(other)
