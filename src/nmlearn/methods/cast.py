"""CAST: the network stays dense, and an L1 decay inside Adam brings what the mask prunes to zero.

Huang et al., *CAST: Continuous and Differentiable Semi-Structured Sparsity-Aware Training for Large Language Models*,
arXiv 2509.25996. Of every group the N largest magnitudes m are found again every 10 steps. Its optimizer, AdamS, is
Adam with a pull on the others in the first moment alone, so that it is divided by the root of the second one too:
m1 <- beta1 m1 + (1 - beta1) (g + decay r sign(W) (1 - m)) and m2 <- beta2 m2 + (1 - beta2) g^2, where r rises from 0 to
1 along the training. In the end what is left of the pruned weights is cut off.

What differs: masks are found a number of times along the training, and not every so many steps. That the pull is
averaged with the gradient is a reading of "inside the momentum"; the authors' code was not seen. Their learned scales
of groups, which make up for the magnitude that decay takes, are left out. Their distillation from the dense model is
:class:`nmlearn.Distillation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.errors import ScheduleError
from nmlearn.maths import adam, masks
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.schedules import along
from nmlearn.methods.method import At, Method, Setting, State, Weight, top_magnitudes
from nmlearn.methods.options import check_adam, check_count, check_not_negative


@dataclass(frozen=True)
class CAST(Method):
    """Continuous sparse training: a growing L1 decay, scaled as Adam scales gradients, of what the mask prunes.

    It steps the sparse weights itself, by their learning rate: the optimizer that it is attached to steps the others
    only, and its weight decay reaches those only.

    Attributes:
        decay: the pull at the end, in units of gradients; 4e-7 in the paper, for language models.
        end: progress at which the pull is at its largest, and what is left of pruned weights is cut off.
        refreshes: how many masks follow one another until then; the paper has one every 10 of its 7,500 steps.
        beta1, beta2, eps: of its Adam.
        weight_decay: of its Adam, decoupled.

    Raises:
        ScheduleError: an end that is not in (0, 1].
        ConfigError: a negative decay, no mask or more than a million, settings that Adam cannot have.
    """

    decay: float = 4e-7
    end: float = 1.0
    refreshes: int = 750
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    name: ClassVar[str] = "cast"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    own_step: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adam(self)
        check_not_negative(self, "decay")
        if not 0.0 < self.end <= 1.0:
            raise ScheduleError(
                where="cast", given=f"end={self.end}", wrong="progress lies in (0, 1]", fix="write 1 or less"
            )
        check_count(self, "refreshes", "masks say what decays")

    @property
    def needs_rate(self) -> bool:
        return True

    def init(self, w: Weight) -> State:
        return adam.start(w.tensor) | {masks.KEEP: masks.full_bits(w.tensor).copy_(masks.bits(top_magnitudes(w)))}

    def setting(self, pattern: Pattern, progress: float) -> int:
        """The number of the mask; the last one stays."""
        return int(along(progress, 0.0, self.end) * self.refreshes)

    def advance(self, w: Weight, setting: Setting) -> bool:
        if not setting:  # that is the one of the start
            return False
        w.state[masks.KEEP].copy_(masks.bits(top_magnitudes(w)))
        return setting == self.refreshes

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        decay = self.decay * along(at.progress, 0.0, self.end)
        for w in weights:
            assert w.grad is not None
            pull = masks.kept(w.tensor.sign(), w.state[masks.KEEP] == 0).to(w.state[adam.FIRST].dtype)
            adam.first_(w.state, w.grad + decay * pull, self.beta1)
            adam.second_(w.state, w.grad, self.beta2)
            adam.step_(w.tensor, w.state, at.lr, (self.beta1, self.beta2), self.eps, self.weight_decay)

    def used(self, w: Weight, at: At) -> Tensor:
        ended = at.progress >= self.end
        return masks.kept(w.tensor, masks.from_bits(w.state[masks.KEEP])) if ended else w.tensor

    def mask(self, w: Weight) -> Tensor:
        ended = w.setting == self.refreshes
        return masks.from_bits(w.state[masks.KEEP]) if ended else torch.ones_like(w.tensor, dtype=torch.bool)
