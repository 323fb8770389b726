"""How well pruned rows give the outputs of the dense ones, on the inputs that calibration saw.

The error of a layer is ``|X W^T - X V^T|^2 = tr((W - V) G (W - V)^T)`` with ``G = X^T X``: a sum over rows, each a
quadratic form of its own. Shapes are those of :mod:`nmlearn.maths.inputs`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmlearn.maths import masks


def errors(change_gok: Tensor, gram_gkk: Tensor) -> Tensor:
    """The squared error of the outputs of each row over all tokens: ``[G, O]``.

    Args:
        change_gok: pruned minus dense rows.
        gram_gkk: ``x^T x``, of the same dtype.
    """
    return ((change_gok @ gram_gkk) * change_gok).sum(-1)


def share_lost(rows_gok: Tensor, change_gok: Tensor, gram_gkk: Tensor | None = None) -> float:
    """The squared error of all outputs over the sum of their squares: 1 where nothing is left, 0 for no outputs.

    Args:
        rows_gok: the dense rows.
        change_gok: pruned minus dense rows.
        gram_gkk: ``x^T x``, of the same dtype; None for inputs that are alike: the share of squared magnitudes.
    """
    over, under = (
        (some.square() if gram_gkk is None else errors(some, gram_gkk)).double().sum()
        for some in (change_gok, rows_gok)
    )
    return float((over / under).clamp_min(0)) if under > 0 else 0.0


def refit_pcg(rows_gok: Tensor, keep_gok: Tensor, gram_gkk: Tensor, target_gok: Tensor, steps: int) -> Tensor:
    """Least squares on the support: the kept weights whose outputs are closest to the dense row's.

    Conjugate gradients with the diagonal of ``G`` as preconditioner, for all rows at once (Meng et al., ALPS,
    arXiv 2406.07831, section 3.3). K steps reach the optimum but for rounding; ten come close.

    Args:
        rows_gok: where to start; what stands in pruned places counts as 0.
        keep_gok: bool, the support.
        gram_gkk: ``x^T x``; where it is singular, an optimum near the start is found.
        target_gok: the dense rows.
        steps: how often the gram matrix is multiplied with.

    Returns:
        rows that are 0 off the support; each has at most the error that it started with.
    """
    start = masks.kept(rows_gok, keep_gok)
    diagonal_gk = gram_gkk.diagonal(dim1=-2, dim2=-1)
    inverse = torch.where(diagonal_gk > 0, diagonal_gk.reciprocal(), 1.0)[:, None]
    # Curvature below this is rounding: along such a direction, which G hardly sees, a step would have any length.
    flat = torch.finfo(gram_gkk.dtype).eps * math.sqrt(gram_gkk.shape[-1])
    values = start.clone()
    residual = masks.kept((target_gok - start) @ gram_gkk, keep_gok)
    direction = inverse * residual
    product = (residual * direction).sum(-1, keepdim=True)
    for _ in range(steps):
        pushed = masks.kept(direction @ gram_gkk, keep_gok)
        curvature = (direction * pushed).sum(-1, keepdim=True)
        seen = curvature > flat * (direction.square() / inverse).sum(-1, keepdim=True)
        length = _ratio(product, curvature * seen)
        values += length * direction
        residual -= length * pushed
        scaled = inverse * residual
        before, product = product, (residual * scaled).sum(-1, keepdim=True)
        direction = scaled + _ratio(product, before) * direction
    better = errors(values - target_gok, gram_gkk) < errors(start - target_gok, gram_gkk)
    return torch.where(better[..., None], values, start)


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Their ratio, and 0 for a row that has arrived, where both vanish."""
    return torch.where(under > 0, over / under, 0.0)
