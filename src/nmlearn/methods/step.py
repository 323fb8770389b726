"""STEP: Adam's second moment is learned densely, then rests while the masks are learned.

Lu et al., *STEP: Learning N:M Structured Sparsity Masks from Scratch with Precondition*, ICML 2023, arXiv 2302.01172.
Under masks the gradients give a poor second moment. So the first phase is dense Adam. From the switch at step t0 on the
second moment v stays as it is, and the weights are masked by magnitude at every step, with the straight-through
gradient g: m <- beta1 m + (1 - beta1) g and W <- W - lr m' / (sqrt(v'(t0)) + eps), m' and v' without the bias of their
start.

What differs: the paper finds the switch by itself from how much v still changes (AutoSwitch), within 10 % to 50 % of
the steps. Here it is a share of them, because schedules depend on progress alone: so ranks and resumed runs agree.
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
from nmlearn.methods.method import At, Method, Setting, State, Weight, top_magnitudes
from nmlearn.methods.options import check_adam


@dataclass(frozen=True)
class STEP(Method):
    """Dense Adam first, then masks by magnitude under its second moment, which no longer changes.

    It steps the sparse weights itself, by their learning rate: the optimizer that it is attached to steps the others
    only, and its weight decay reaches those only.

    Attributes:
        switch: progress at which the second phase begins; the paper stays within 0.1 and 0.5.
        beta1, beta2, eps: of its Adam.
        weight_decay: of its Adam, decoupled.

    Raises:
        ScheduleError: a switch that is not in (0, 1].
        ConfigError: settings that Adam cannot have.
    """

    switch: float = 0.25
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    name: ClassVar[str] = "stepadam"  # "step" has its own meaning in recipes and reports
    holds: ClassVar[Literal["shadow"]] = "shadow"
    own_step: ClassVar[bool] = True
    dense_gradient: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_adam(self)
        if not 0.0 < self.switch <= 1.0:
            raise ScheduleError(
                where="stepadam",
                given=f"switch={self.switch}",
                wrong="the second moment is learned before progress comes there, in (0, 1]",
                fix="write 0.25",
            )

    @property
    def needs_rate(self) -> bool:
        return True

    def init(self, w: Weight) -> State:
        return adam.start(w.tensor)

    def setting(self, pattern: Pattern, progress: float) -> int:
        return int(progress >= self.switch)

    def advance(self, w: Weight, setting: Setting) -> bool:
        return bool(setting)

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        for w in weights:
            assert w.grad is not None
            adam.first_(w.state, w.grad, self.beta1)
            if at.progress < self.switch or not w.state[adam.SECONDS]:
                adam.second_(w.state, w.grad, self.beta2)
            adam.step_(w.tensor, w.state, at.lr, (self.beta1, self.beta2), self.eps, self.weight_decay)

    def used(self, w: Weight, at: At) -> Tensor:
        return masks.kept(w.tensor, top_magnitudes(w)) if at.progress >= self.switch else w.tensor

    def mask(self, w: Weight) -> Tensor:
        return top_magnitudes(w) if w.setting else torch.ones_like(w.tensor, dtype=torch.bool)
