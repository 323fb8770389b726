"""MaxQ: a soft mask that weighs the kept values by their rank in the filter and in the kernel position.

Xiang et al., *MaxQ: Multi-Axis Query for N:M Sparsity Network*, CVPR 2024, arXiv 2312.07061. The mask of largest
magnitudes m is multiplied by 1 + q_filter + q_kernel. Each q looks along an axis of the weight for the N/M largest
magnitudes and gives them sigmoid((|w| - t) / tau), t being the middle of the gap at the cut, and 0 to the others. A
share of the groups, those of smallest L1 norm, is left dense at first, and falls to none. The gradient goes straight
through, pruned weights decay as in SR-STE, and the factors are in the weight in use: nothing is left to fold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.errors import ScheduleError
from nmlearn.maths import masks
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import At, Method, Weight, grads, top_magnitudes
from nmlearn.methods.options import check_not_negative, refuse


@dataclass(frozen=True)
class MaxQ(Method):
    """Multi-axis query: kept weights are scaled by 1 to 3 according to their rank, groups become sparse one by one.

    Attributes:
        start, end: between these shares of training the share of dense groups falls from 1 to 0, linearly.
        decay: the pull on what the soft mask leaves off, 2e-4 as in SR-STE.
        tau: the width of the sigmoid, 1e-2.

    Raises:
        ScheduleError: not 0 <= start <= end <= 1.
        ConfigError: tau is not above 0, or a negative decay.
    """

    start: float = 0.0
    end: float = 0.25
    decay: float = 2e-4
    tau: float = 1e-2

    name: ClassVar[str] = "maxq"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ScheduleError(
                where="maxq",
                given=f"start={self.start}, end={self.end}",
                wrong="progress lies in [0, 1], and groups cannot be sparse before they begin to be",
                fix="write start=0, end=0.25",
            )
        check_not_negative(self, "decay")
        if not self.tau > 0:
            refuse("tau", self.tau, "a sigmoid has a width", "write 0.01")

    def setting(self, pattern: Pattern, progress: float) -> float:
        """The share of groups that is dense at this progress."""
        if progress >= self.end:
            return 0.0
        if progress <= self.start:
            return 1.0
        return 1.0 - (progress - self.start) / (self.end - self.start)

    def learn(self, weights: Sequence[Weight], at: At) -> None:
        for grad, w in zip(grads(weights), weights, strict=True):
            off = 1.0 - self._soft_mask(w, at).clamp_(0.0, 1.0)
            grad.addcmul_(off, w.tensor, value=self.decay)

    def used(self, w: Weight, at: At) -> Tensor:
        soft = self._soft_mask(w, at)
        return torch.where(soft != 0, soft * w.tensor, 0.0)

    def mask(self, w: Weight) -> Tensor:
        share = w.setting if isinstance(w.setting, float) else self.setting(w.pattern, 0.0)
        return top_magnitudes(w) | self._dense(w, share)

    def _soft_mask(self, w: Weight, at: At) -> Tensor:
        hard = top_magnitudes(w) | self._dense(w, self.setting(w.pattern, at.progress))
        magnitudes, outputs = masks.finite_first(w.tensor.abs()), w.grouping.output_axes()
        spatial = [axis for axis in range(w.tensor.dim()) if axis not in (*outputs, w.grouping.axis)]
        queries = self._query(magnitudes, outputs, w.pattern)
        if math.prod(w.tensor.shape[axis] for axis in spatial) > 1:  # per kernel position, over inputs and outputs
            queries = queries + self._query(magnitudes, spatial, w.pattern)
        return torch.where(hard, queries + 1.0, 0.0)

    def _query(self, magnitudes: Tensor, kept_axes: Sequence[int], pattern: Pattern) -> Tensor:
        """Ranks within each slice along the kept axes: of the weight's shape, 0 below the cut."""
        others = [axis for axis in range(magnitudes.dim()) if axis not in kept_axes]
        rows = magnitudes.permute(*kept_axes, *others).flatten(len(kept_axes)).flatten(0, len(kept_axes) - 1)
        count = max(1, round(rows.shape[-1] * pattern.n / pattern.m))
        if count >= rows.shape[-1] or not rows.numel():
            return torch.ones_like(magnitudes)
        cut = rows.topk(count + 1).values[:, -2:]
        shape = [magnitudes.shape[axis] if axis in kept_axes else 1 for axis in range(magnitudes.dim())]
        middle, least = cut.mean(-1).view(shape), cut[:, 0].view(shape)
        return torch.where(magnitudes >= least, torch.sigmoid((magnitudes - middle) / self.tau), 0.0)

    def _dense(self, w: Weight, share: float) -> Tensor:
        """The groups that are dense at a share: those of smallest L1 norm; bool, of the weight's shape."""
        norms = w.grouping.view(masks.finite_first(w.tensor.abs())).sum(-1, dtype=torch.float32)
        count = round(share * norms.numel())
        chosen = masks.top(-norms.flatten(), count).view(norms.shape)
        return w.grouping.unview(chosen.unsqueeze(-1).expand(*norms.shape, w.pattern.m))
