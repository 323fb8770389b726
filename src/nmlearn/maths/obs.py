"""Optimal brain surgery from left to right: what a pruned weight did is made up for by those after it.

Frantar and Alistarh, *SparseGPT*, arXiv 2301.00774. With ``H = G + damping``, pruning weight j of a row costs
``w_j^2 / [H^-1]_jj`` and moves the others by ``-w_j [H^-1]_j: / [H^-1]_jj``, where H is of the weights not yet passed.
Those inverses are all in one factor: ``H^-1 = U^T U`` with U upper gives ``[H^-1]_jj = U_jj^2`` and row j as
``U_jj U_j:``. Shapes are those of :mod:`nmlearn.maths.inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.errors import DataError
from nmlearn.maths import masks
from nmlearn.maths.pattern import Pattern

DAMPING = 0.01  # the paper's share of the mean diagonal
# Columns whose corrections reach those behind them in one product.
_BLOCK = 128
# Damping beyond this share of the mean diagonal says that the matrix is none of inputs.
_MOST_DAMPING = 1.0
# Of the damping, what a dead input gets: next to nothing is lost without its weight, and magnitude ranks them.
_DEAD = 1e-12


def inverse_factor(gram_gkk: Tensor, damping: float, where: str) -> Tensor:
    """The upper factor U with ``(G + damping mean(diag G))^-1 = U^T U``; dead inputs get 1e-12 of the damping.

    Args:
        gram_gkk: ``x^T x``, symmetric.
        damping: a share of the mean of the diagonal; where it is too little for a factor, ten times as much.
        where: what an error calls the place.

    Raises:
        DataError: no damping helps: the matrix is not finite, or not one of inputs.
    """
    diagonal_gk = gram_gkk.diagonal(dim1=-2, dim2=-1)
    mean = diagonal_gk.mean(-1, keepdim=True)
    added_gkk = torch.diag_embed(torch.where(mean > 0, mean, 1.0) * torch.where(diagonal_gk > 0, 1.0, _DEAD))
    one = torch.eye(gram_gkk.shape[-1], dtype=gram_gkk.dtype, device=gram_gkk.device)
    share = damping
    while share <= _MOST_DAMPING:
        # The factor of the matrix read backwards, read backwards, is upper: H = R R^T, and U is the inverse of R.
        lower, failed = torch.linalg.cholesky_ex((gram_gkk + share * added_gkk).flip(-2, -1))
        if not bool(failed.any()):
            factor: Tensor = torch.linalg.solve_triangular(lower.flip(-2, -1), one.expand_as(lower), upper=True)
            return factor
        share = max(10 * share, 1e-6)
    raise DataError(
        where=where,
        given=f"products of its inputs with {tuple(gram_gkk.shape[-2:])} entries",
        wrong="they have no Cholesky factor, whatever is added to the diagonal",
        fix="calibrate with finite inputs, in float32, and with more of them",
    )


def saliency(rows_gok: Tensor, gram_gkk: Tensor, damping: float, where: str) -> Tensor:
    """What pruning each weight alone costs in its row's outputs when all others make up: ``w_j^2 / [H^-1]_jj``.

    Hassibi and Stork, *Optimal Brain Surgeon*, NIPS 1992, equation 5, without the factor 1/2.

    Args:
        rows_gok: the rows as they are; inputs whose weights are 0 count as if they could take over all the same.
        gram_gkk: ``x^T x``, or its mean; ``damping`` and ``where`` as in :func:`inverse_factor`.
    """
    factor_gkk = inverse_factor(gram_gkk, damping, where)
    return rows_gok.square() / factor_gkk.square().sum(-2)[:, None]


def sweep(rows_gok: Tensor, factor_gkk: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """Prune from left to right; a group is chosen when its first weight is reached, by its weights of that moment.

    Args:
        rows_gok: the dense rows.
        factor_gkk: of :func:`inverse_factor`, of the same dtype.

    Returns:
        What is kept, bool, and the rows with their corrections, 0 where pruned; both ``[G, O, K]``.
    """
    work = rows_gok.mT.contiguous()  # [G, K, O]: a column of the sweep lies together
    keep = torch.ones_like(work, dtype=torch.bool)
    size_gk = factor_gkk.diagonal(dim1=-2, dim2=-1)
    columns, width = work.shape[1], max(1, _BLOCK // pattern.m) * pattern.m
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        gaps = torch.zeros_like(work[:, start:stop])
        for j in range(start, stop):
            if j % pattern.m == 0:
                group = slice(j, j + pattern.m)
                scores = (work[:, group] / size_gk[:, group, None]).square()
                keep[:, group] = masks.top(masks.finite_first(scores).mT, pattern.n).mT
            gap = work[:, j].masked_fill(keep[:, j], 0.0) / size_gk[:, j, None]
            gaps[:, j - start] = gap
            work[:, j:stop].baddbmm_(factor_gkk[:, j, j:stop, None], gap[:, None], alpha=-1)
        work[:, stop:].baddbmm_(factor_gkk[:, start:stop, stop:].mT, gaps, alpha=-1)
    return keep.mT, masks.kept(work.mT, keep.mT)
