"""S-STE: a continuous projection in place of a mask, scaled once so that it is closest to the dense weight.

Hu et al., *S-STE: Continuous Pruning Function for Efficient 2:4 Sparse Pre-training*, NeurIPS 2024, arXiv 2409.09099:
the (M-N)-th smallest magnitude of a group is subtracted from all its magnitudes, and what falls below zero is zero. The
result is multiplied by one number a weight, beta = <W, S(W)> / <S(W), S(W)>, found at the start and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nmlearn.maths.groups import Grouping
from nmlearn.methods.method import At, Method, State, Weight


@dataclass(frozen=True)
class SSTE(Method):
    """Continuous pruning: soft-thresholded groups, scaled by one fixed number a weight, straight-through gradient.

    A weight near the threshold is nearly zero when its place in the mask changes, so the loss does not jump.
    """

    name: ClassVar[str] = "sste"
    holds: ClassVar[Literal["shadow"]] = "shadow"
    dense_gradient: ClassVar[bool] = True
    whole: ClassVar[bool] = True

    def init(self, w: Weight) -> State:
        soft = soft_threshold(w.tensor, w.grouping).double()
        beta = (w.tensor.double() * soft).sum() / soft.square().sum()
        # A weight of zeros, or M:M, has nothing to scale.
        return {"scale": torch.nan_to_num(beta, nan=1.0, posinf=1.0, neginf=1.0).cpu()}

    def impossible(self, w: Weight) -> str:
        return "" if float(w.state["scale"]) > 0 else "the scale brings a weight near to itself, so it is above 0"

    def used(self, w: Weight, at: At) -> Tensor:
        return soft_threshold(w.tensor, w.grouping).mul_(w.state["scale"])  # a number, in no low precision

    def mask(self, w: Weight) -> Tensor:
        return soft_threshold(w.tensor, w.grouping) != 0


def soft_threshold(weight: Tensor, grouping: Grouping) -> Tensor:
    """``sign(w) max(|w| - t, 0)``, t being the (M-N)-th smallest magnitude of the group (0 where M = N).

    Args:
        weight: float, any layout.

    Returns:
        of its shape and dtype; at most N non-zeros a group, and +0.0 for the others. What is not finite counts as 0.
    """
    pruned = grouping.pattern.m - grouping.pattern.n
    if not pruned:
        return weight.clone()
    magnitude_gm = grouping.view(weight.abs().nan_to_num(0.0, posinf=0.0))
    threshold = magnitude_gm.kthvalue(pruned, dim=-1, keepdim=True).values
    left = grouping.unview((magnitude_gm - threshold).clamp_min_(0))
    return torch.where(left > 0, left * weight.sign(), 0.0)
