"""What the zeros of a weight say: its tightest pattern, the axis of its inputs.

All take ``kept_w``, bool of the weight's shape: ``weight != 0``, or ``nonzero_bits(weight)`` of masks.py. For both a
negative zero, which ``weight * mask`` leaves where it prunes, is a zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern

SIZES = (2, 4, 8, 16, 32, 64)


def tightest(kept_w: Tensor, axis: int) -> Pattern | None:
    """The pattern of lowest density, then smallest M, that holds along an axis; None for a dense weight.

    Args:
        kept_w: bool, the weight's shape.
        axis: runs along the inputs.

    Returns:
        a pattern with M of :data:`SIZES` and N < M, N being at least 1.
    """
    if kept_w.numel() == 0:
        return None
    found, counts = [], kept_w.to(torch.uint8)
    for size in SIZES:  # each from the counts of the half as large groups: one pass over the weight, not six
        if counts.shape[axis] % 2:
            break
        pairs = counts.unflatten(axis, (-1, 2))
        counts = pairs.select(axis + 1, 0) + pairs.select(axis + 1, 1)
        found.append(Pattern(max(1, int(counts.max())), size))
    sparse = [pattern for pattern in found if pattern.n < pattern.m]
    return min(sparse, key=lambda pattern: (pattern.density, pattern.m), default=None)


def input_axis(kept_w: Tensor, pattern: Pattern | None = None) -> int:
    """The axis that a weight's inputs seem to run along, where no layer, plan or packed file says it.

    It is 1 in linear layers and convolutions, 2 in stacked experts, 0 in transposed convolutions and GPT-2's layers.

    Args:
        kept_w: bool, the weight's shape, of two or more dimensions.
        pattern: one that the weight should have.

    Returns:
        with a pattern, the axis along which the smallest share of groups breaks it (all do where M does not divide);
        without, the one that shows the sparsest pattern. The first of these axes wins ties.
    """
    axes = (1, 2, 0) if kept_w.ndim == 3 else (1, 0)
    if pattern is not None:
        return min(axes, key=lambda axis: _share_bad(kept_w, axis, pattern))
    found = {axis: tight for axis in axes if (tight := tightest(kept_w, axis)) is not None}
    return min(found, key=lambda axis: found[axis].density, default=1)


def _share_bad(kept_w: Tensor, axis: int, pattern: Pattern) -> float:
    if kept_w.shape[axis] % pattern.m:
        return 1.0
    broken = Grouping(pattern, axis).view(kept_w).sum(-1) > pattern.n
    return float(broken.double().mean()) if broken.numel() else 0.0
