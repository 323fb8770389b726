"""Removing the lowest-scored combinations of every group, for good.

What is alive is a bool tensor of its own and never inferred from scores, so no optimizer can bring a removed
combination back. A weight is on while at least one surviving combination holds it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmlearn.errors import StateError
from nmlearn.maths import masks
from nmlearn.maths.combinations import table
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.scores import of_combinations
from nmlearn.native import removal

# Bounds the memory of one elimination: this many scores of combinations are looked at in one go.
_SCORES_AT_ONCE = 1 << 22


def weights_left(survivors: int, pattern: Pattern) -> int:
    """Elimination by weight: the smallest r, N <= r <= M, with C(r, N) >= survivors."""
    return next(r for r in range(pattern.n, pattern.m + 1) if math.comb(r, pattern.n) >= survivors)


def combinations_(
    alive_gc: Tensor, scores_g: Tensor, pattern: Pattern, survivors: int, *, explicit: bool = False
) -> Tensor:
    """Leave the ``survivors`` best-scored of the combinations alive; the lowest number wins ties.

    Args:
        alive_gc: bool ``[..., C]``, contiguous, changed in place.
        scores_g: float ``[..., M]`` scores of weights, whose sums score the combinations.
        survivors: how many stay in each group, at most as many as are alive.
        explicit: the scores are ``[..., C]``, those of the combinations. (C and M tell nothing: they are equal at 3:4.)

    Returns:
        bool ``[..., M]``: the weights that a surviving combination holds.
    """
    t_cm = table(pattern, alive_gc.device, torch.float32)
    kept = torch.empty(*alive_gc.shape[:-1], pattern.m, dtype=torch.bool, device=alive_gc.device)
    if not explicit and removal.combinations_(alive_gc, scores_g, t_cm, survivors, kept):
        return kept
    alive, flat = alive_gc.view(-1, len(t_cm)), scores_g.reshape(-1, scores_g.shape[-1])
    step = max(1, _SCORES_AT_ONCE // len(t_cm))
    for some, s in zip(alive.split(step), flat.split(step), strict=True):
        a_gc = s if explicit else of_combinations(s, pattern)
        some.copy_(masks.top(a_gc.masked_fill(~some, -math.inf), survivors))
    return held(alive_gc, pattern)


def held(alive_gc: Tensor, pattern: Pattern) -> Tensor:
    """The weights that a combination alive holds: bool ``[..., M]``."""
    t_cm = table(pattern, alive_gc.device, torch.float32)
    rows = alive_gc.reshape(-1, len(t_cm))
    kept = torch.empty(len(rows), pattern.m, dtype=torch.bool, device=alive_gc.device)
    step = max(1, _SCORES_AT_ONCE // len(t_cm))
    for some, out in zip(rows.split(step), kept.split(step), strict=True):
        out.copy_((some.float() @ t_cm) > 0)
    return kept.view(*alive_gc.shape[:-1], pattern.m)


def weights(kept_gm: Tensor, s_gm: Tensor, left: int) -> Tensor:
    """Leave the ``left`` best-scored weights of those each group keeps: bool ``[..., M]``; the first wins ties."""
    return masks.top(s_gm.masked_fill(~kept_gm, -math.inf), left)


def check_finite(name: str, values: Tensor, what: str) -> None:
    """Refuse to remove anything from a weight that is lost already: scores take no gradient in that is not finite, but
    optimizers do.

    Args:
        values: the weight, or its scores.
        what: which of the two, for the error.

    Raises:
        StateError: a value is NaN or infinite.
    """
    # Both ends are NaN where any value is. One pass that only reads, several times as fast as torch.isfinite or a norm.
    if values.numel() and not bool(torch.stack(torch.aminmax(values)).isfinite().all()):
        raise StateError(
            where=name,
            given=f"{int((~torch.isfinite(values)).sum())} of {values.numel()} {what} that are not finite",
            wrong="a gradient was NaN or infinite in an earlier step and the optimizer took it in",
            fix="resume from a checkpoint before it; lower the learning rate, clip gradients, or skip such steps",
        )
