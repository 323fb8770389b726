"""Scores of weights from their sizes and those of their inputs: the higher, the more is lost without the weight.

Shapes are those of :mod:`nmlearn.maths.inputs`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.maths import masks
from nmlearn.maths.pattern import Pattern

# What an input counts at least, as a share of the largest of its group: among weights of dead inputs, whose outputs are
# 0 whatever they are, magnitude decides, and none of them replaces one that counts.
_FLOOR = 1e-6


def live(norm_gk: Tensor) -> Tensor:
    """Norms of inputs with a small one in place of 0, and 1 where all of a group are 0."""
    largest = norm_gk.amax(-1, keepdim=True)
    return torch.maximum(norm_gk, torch.where(largest > 0, _FLOOR * largest, 1.0))


def wanda(rows_gok: Tensor, norm_gk: Tensor) -> Tensor:
    """``|w| |x|``: Sun et al., *A Simple and Effective Pruning Approach for LLMs*, arXiv 2306.11695, equation 1."""
    return rows_gok.abs() * live(norm_gk)[:, None]


def relative(rows_gok: Tensor) -> Tensor:
    """``|w| / (sum of its row) + |w| / (sum of its column)``, magnitudes throughout: relative importance.

    Zhang et al., *Plug-and-Play: An Efficient Post-training Pruning Method for LLMs*, ICLR 2024, equation 3. A column
    is all weights of one input.
    """
    size_gok = rows_gok.abs()
    smallest = torch.finfo(size_gok.dtype).tiny
    rows, columns = (size_gok.sum(axis, keepdim=True).clamp_min(smallest) for axis in (-1, -2))
    return size_gok / rows + size_gok / columns


def ria(rows_gok: Tensor, norm_gk: Tensor, power: float) -> Tensor:
    """Relative importance times ``|x|^power``: the same paper, equation 4."""
    return relative(rows_gok) * live(norm_gk).pow(power)[:, None]


def top_of_groups(scores_gok: Tensor, pattern: Pattern) -> Tensor:
    """The N best-scored of every M consecutive weights: bool; nonnegative scores, what is not finite ranks last."""
    groups = masks.finite_first(scores_gok).unflatten(-1, (-1, pattern.m))
    return masks.top(groups, pattern.n).flatten(-2)
