"""Operator splitting (ADMM): dense rows with few errors and sparse rows of the pattern, drawn together.

Meng et al., *ALPS*, NeurIPS 2024, arXiv 2406.07831, section 3.2: minimize ``tr((W - W0) H (W - W0)^T)`` subject to
``W = D`` and D in the pattern. With a dual V and a penalty rho

    W = (W0 H - V + rho D) (H + rho)^-1        D = the N largest of each group of W + V / rho        V += rho (W - D)

One eigendecomposition of H serves every rho. Shapes are those of :mod:`nmlearn.maths.inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths import masks
from nmlearn.maths.importance import live, top_of_groups
from nmlearn.maths.pattern import Pattern

# The penalty grows once in so many rounds, by how much of the support has changed in them.
_ROUNDS = 3
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


def split(
    rows_gok: Tensor, gram_gkk: Tensor, pattern: Pattern, damping: float, rho: float, rounds: int
) -> tuple[Tensor, Tensor]:
    """Find a support by ADMM.

    Inputs are scaled to norm 1 first, so that rho and the damping mean the same for every layer.

    Args:
        rows_gok: the dense rows.
        gram_gkk: ``x^T x``, of the same dtype.
        damping: added to the diagonal of the scaled ``G``, which is 1.
        rho: the penalty at the start.
        rounds: at most; fewer when the support has come to rest.

    Returns:
        What is kept, bool, and D, 0 where pruned; both ``[G, O, K]``.
    """
    diagonal_gk = gram_gkk.diagonal(dim1=-2, dim2=-1)
    norm_gk, dead_gk = live(diagonal_gk.clamp_min(0).sqrt()), (diagonal_gk <= 0)[:, None]
    scaled = gram_gkk / (norm_gk[:, :, None] * norm_gk[:, None, :])
    one = torch.eye(scaled.shape[-1], dtype=scaled.dtype, device=scaled.device)
    values_gk, vectors_gkk = torch.linalg.eigh(scaled + damping * one)
    first = rows_gok * norm_gk[:, None]
    pulled = first @ (scaled + damping * one)
    keep = before = top_of_groups(first.abs(), pattern)
    sparse, dual = masks.kept(first, keep), torch.zeros_like(first)
    for done in range(1, rounds + 1):
        turned = (pulled - dual + rho * sparse) @ vectors_gkk
        dense = (turned / (values_gk.clamp_min(0) + rho)[:, None]) @ vectors_gkk.mT
        wanted = torch.where(dead_gk, first, dense + dual / rho)  # nothing depends on weights of dead inputs
        keep = top_of_groups(wanted.abs(), pattern)
        sparse = masks.kept(wanted, keep)
        dual += rho * (dense - sparse)
        if done % _ROUNDS == 0:
            changed = float((keep & ~before).sum()) / max(1.0, float(keep.sum()))
            if not changed:
                break
            rho *= next(growth for least, growth in _GROWTH if changed >= least)
            before = keep
    return keep, sparse / norm_gk[:, None]
