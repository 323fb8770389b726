"""What the zeros of a weight say: its tightest pattern, its first bad group, the axis of its inputs.

All take ``kept_w``, bool of the weight's shape: ``weight != 0`` to ask for values, ``nonzero_bits(weight)`` of masks.py
to ask for bits, for which a negative zero is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.groups import Grouping
from nmlearn.pattern import Pattern

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


def bad_group(kept_w: Tensor, axis: int, pattern: Pattern) -> tuple[str, int, int] | None:
    """The first group that keeps more than N, as a Python index, how many it keeps, and how many groups are bad.

    Raises:
        PatternError: M does not divide the length of the axis.
    """
    counts = Grouping(pattern, axis).view(kept_w).sum(-1)
    bad = (counts > pattern.n).nonzero()
    if len(bad) == 0:
        return None
    place = bad[0].tolist()
    start = place[axis] * pattern.m
    index = [str(i) for i in place]
    index[axis] = f"{start}:{start + pattern.m}"
    return ", ".join(index), int(counts[tuple(place)]), len(bad)


def input_axis(kept_w: Tensor) -> int:
    """Inputs run along dimension 1; of three dimensions (a convolution, or stacked experts) along the sparser of 1, 2.

    It says nothing about transposed convolutions: for those the layer must be known.
    """
    if kept_w.ndim != 3:
        return 1
    found = {axis: pattern for axis in (1, 2) if (pattern := tightest(kept_w, axis)) is not None}
    return min(found, key=lambda axis: found[axis].density, default=1)
