"""ADMM: weights are trained towards their nearest N:M weights, then the mask is fixed.

Zhang et al., *A Systematic DNN Weight Pruning Framework using Alternating Direction Method of Multipliers*, ECCV 2018
(first as arXiv 1802.05747), with the projection P on N:M: the N largest magnitudes of each group stay. Of the problem
"the loss of W, where W = Z and Z is N:M", with the scaled multiplier U:

    every step      W follows the gradient of its loss + rho / 2 |W - Z + U|^2
    now and then    Z <- P(W + U), then U <- U + W - Z
    in the end      W <- P(W), and training goes on under that mask

What differs: theirs keep shares of whole layers and not N of a group. ``rho`` is one number for all layers. ADMM on the
outputs of a layer, without training, is :mod:`nmlearn.methods.alps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from nmlearn.errors import ScheduleError
from nmlearn.maths import masks
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.schedules import along
from nmlearn.maths.scores import dtype_for
from nmlearn.methods.method import At, Method, Setting, State, Weight, grads, keep_top_, top_magnitudes
from nmlearn.methods.options import check_count, check_not_negative

# The keys of Z - U, which the weights are pulled to, and of U.
_TARGET, _DUAL = "target", "dual"


@dataclass(frozen=True)
class ADMM(Method):
    """Training with a penalty for the distance to N:M weights, by alternating directions; then under a fixed mask.

    Attributes:
        rho: the penalty. The pull on a weight is rho times its distance.
        end: progress at which the mask is fixed.
        projections: how often until then, the start not counted, the nearest N:M weights are found.

    Raises:
        ScheduleError: an end that is not in (0, 1].
        ConfigError: a negative penalty, no projection or more than a million.
    """

    rho: float = 0.01
    end: float = 0.5
    projections: int = 20

    name: ClassVar[str] = "admm"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "rho")
        check_count(self, "projections", "projections come before the end")
        if not 0.0 < self.end <= 1.0:
            raise ScheduleError(
                where="admm", given=f"end={self.end}", wrong="progress lies in (0, 1]", fix="write 1 or less"
            )

    def init(self, w: Weight) -> State:
        wide = w.tensor.to(dtype_for(w.tensor))
        split = {_TARGET: masks.kept(wide, top_magnitudes(w)), _DUAL: torch.zeros_like(wide)}
        return super().init(w) | split

    def setting(self, pattern: Pattern, progress: float) -> int:
        """How many projections are done; at the last, the mask is fixed."""
        return int(along(progress, 0.0, self.end) * self.projections)

    def ended(self, pattern: Pattern, setting: Setting | None) -> bool:
        return setting == self.projections

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        for grad, w in zip(grads(weights), weights, strict=True):
            if _TARGET in w.state:
                grad.add_(self.rho * (w.tensor - w.state[_TARGET]))

    def advance(self, w: Weight, setting: Setting) -> bool:
        if not setting or _TARGET not in w.state:
            return False
        if self.ended(w.pattern, setting):
            keep_top_(w, w.tensor.abs(), w.pattern.n)
            del w.state[_TARGET], w.state[_DUAL]
            return True
        self._project(w)
        return False

    def _project(self, w: Weight) -> None:
        moved = w.state[_DUAL] + w.tensor
        near = masks.kept(moved, top_magnitudes(replace(w, tensor=moved)))
        w.state[_DUAL].copy_(moved - near)
        w.state[_TARGET].copy_(near - w.state[_DUAL])
