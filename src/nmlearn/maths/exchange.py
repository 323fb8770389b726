"""Exchange kept for pruned weights of a mask until each row's mean output is that of the dense row.

Zhang et al., *Dynamic Sparse No Training*, ICLR 2024, arXiv 2310.08915. A row's mean error is ``r``, the sum over its
pruned weights of ``w E[x]``. A cycle grows one pruned weight and prunes one kept weight of the same group. Shapes are
those of :mod:`nmlearn.maths.inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths.pattern import Pattern


def exchange(
    keep_gok: Tensor,
    effect_gok: Tensor,
    grow: tuple[Tensor, Tensor],
    prune_gok: Tensor,
    pattern: Pattern,
    *,
    cycles: int,
    threshold: float,
) -> Tensor:
    """The mask after at most so many exchanges a row.

    A row stops where ``|r|`` is below the threshold, no pruned weight reduces it, or the exchange would turn its sign
    or not reduce it: the same two weights would change places again and again.

    Args:
        keep_gok: bool, the mask to start from; it is not changed.
        effect_gok: ``w E[x]``.
        grow: (a, b): the pruned weight with the largest ``sign(r) a + b`` is grown, of those that reduce ``|r|``.
        prune_gok: of the kept weights in its group, the one with the lowest of these is pruned.
        cycles: at most.
        threshold: of ``|r|``, in units of the output.

    Returns:
        bool ``[G, O, K]``, as many kept in each group as before.
    """
    signed, plain = grow
    keep = keep_gok.clone()
    error = effect_gok.masked_fill(keep, 0.0).sum(-1, keepdim=True)
    places = torch.arange(pattern.m, device=keep.device)
    for _ in range(cycles):
        sign = error.sign()
        helps = ~keep & (sign * effect_gok > 0)
        gain, grown = (sign * signed + plain).masked_fill(~helps, -torch.inf).max(-1, keepdim=True)
        group = grown // pattern.m * pattern.m + places  # [G, O, M]
        kept = keep.gather(-1, group)
        loss, place = prune_gok.gather(-1, group).masked_fill(~kept, torch.inf).min(-1, keepdim=True)
        pruned = group.gather(-1, place)
        after = error - effect_gok.gather(-1, grown) + effect_gok.gather(-1, pruned)
        moves = (error.abs() >= threshold) & torch.isfinite(gain) & torch.isfinite(loss)
        moves &= (after * sign >= 0) & (after.abs() < error.abs())
        if not bool(moves.any()):
            break
        keep.scatter_(-1, grown, keep.gather(-1, grown) | moves)
        keep.scatter_(-1, pruned, keep.gather(-1, pruned) & ~moves)
        error = torch.where(moves, after, error)
    return keep
