"""Transposable masks: N kept in each row and in each column of a tile of M x M, so that the transpose is N:M too.

Hubara et al., *Accelerated Sparse Neural Training*, NeurIPS 2021, arXiv 2102.08124. Up to M = 4 the best tile is found
among all (90 for 2:4); that is what Hu et al., *Accelerating Transformer Pre-training with 2:4 Sparsity*, arXiv
2404.01847, do. Above, entries are taken greedily, the largest first, while row and column have room: a matching of at
least half the largest sum. It may leave rows and columns short, which are then filled one entry at a time.
"""

from __future__ import annotations

import functools
import itertools

import torch
from torch import Tensor

from nmlearn.maths.combinations import table
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.scores import of_combinations

_LISTED = 4  # the largest M whose tiles are listed: at 2:5 there would be 2,040
_VALUES_AT_ONCE = 1 << 22


def tiles(x_w: Tensor, grouping: Grouping) -> Tensor:
    """The tiles ``[..., M, M]`` of a weight, rows by columns: outputs by inputs. Shares memory.

    Args:
        x_w: of the weight's shape, with numbers of outputs and of inputs that M divides.
    """
    m, rows = grouping.pattern.m, grouping.output_axes()[-1]
    by_rows = x_w.movedim((rows, grouping.axis), (-2, -1))
    x_mm: Tensor = by_rows.unflatten(-1, (-1, m)).unflatten(-3, (-1, m)).transpose(-3, -2)
    return x_mm


def untiled(x_mm: Tensor, grouping: Grouping) -> Tensor:
    """The inverse of :func:`tiles`."""
    by_rows = x_mm.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return by_rows.movedim((-2, -1), (grouping.output_axes()[-1], grouping.axis))


def best(scores_mm: Tensor, pattern: Pattern) -> Tensor:
    """Exactly N true in each row and column: the largest sum up to M = 4, greedily above.

    Args:
        scores_mm: finite scores ``[..., M, M]``.

    Returns:
        bool ``[..., M, M]``; among equal sums or scores the first wins, on every rank and device.
    """
    m = pattern.m
    scores_tmm = scores_mm.reshape(-1, m, m)
    solve, values = (_listed, len(_choices(pattern))) if m <= _LISTED else (_greedy, m * m)
    parts = [solve(some, pattern) for some in scores_tmm.split(max(1, _VALUES_AT_ONCE // values))]
    return torch.cat(parts).view(scores_mm.shape)


def _listed(scores_tmm: Tensor, pattern: Pattern) -> Tensor:
    """The best of all tiles."""
    choices = torch.tensor(_choices(pattern), device=scores_tmm.device)  # [C, M]: the combination of each row
    by_rows = of_combinations(scores_tmm, pattern)
    sums = by_rows[:, 0, choices[:, 0]]  # in one order of addition, so that ties are ties
    for row in range(1, pattern.m):
        sums = sums + by_rows[:, row, choices[:, row]]
    return table(pattern, scores_tmm.device)[choices[sums.argmax(-1)]]


@functools.cache
def _choices(pattern: Pattern) -> list[tuple[int, ...]]:
    """The valid tiles by the combinations of their rows."""
    n, m = pattern.n, pattern.m
    rows = list(itertools.combinations(range(m), n))
    every = itertools.product(range(len(rows)), repeat=m)
    return [each for each in every if _balanced([rows[row] for row in each], n, m)]


def _balanced(rows: list[tuple[int, ...]], n: int, m: int) -> bool:
    return all(sum(column in row for row in rows) == n for column in range(m))


def _greedy(scores_tmm: Tensor, pattern: Pattern) -> Tensor:
    """The largest first, while row and column have room; then what is short is filled."""
    t, m, _ = scores_tmm.shape
    order = scores_tmm.flatten(1).argsort(dim=1, descending=True, stable=True)
    kept = torch.zeros_like(order, dtype=torch.bool)
    room = torch.full((2, t, m), pattern.n, device=order.device)  # of rows and of columns
    for place in order.split(1, dim=1):
        row, column = place // m, place % m
        fits = (room[0].gather(1, row) > 0) & (room[1].gather(1, column) > 0)
        kept.scatter_(1, place, fits)
        room[0].scatter_add_(1, row, -fits.long())
        room[1].scatter_add_(1, column, -fits.long())
    kept_tmm = kept.view(t, m, m)
    while bool((short := (kept_tmm.sum(2) < pattern.n).any(1)).any()):
        kept_tmm[short] = _one_more(scores_tmm[short], kept_tmm[short], pattern)
    return kept_tmm


def _one_more(scores_tmm: Tensor, kept_tmm: Tensor, pattern: Pattern) -> Tensor:
    """One entry more in tiles that are short of some.

    Where an entry of a short row and a short column is free, the largest is taken. Otherwise the first short row r and
    column c share a kept entry, and another kept entry (i, j) gives way to (r, j) and (i, c), which are free. There is
    one: else every row in which c is free, and every column in which r is, would be short, so that an entry that they
    share was free to take.
    """
    t, m, _ = scores_tmm.shape
    each = torch.arange(t, device=scores_tmm.device)
    rows, columns = kept_tmm.sum(2) < pattern.n, kept_tmm.sum(1) < pattern.n
    r, c = rows.int().argmax(1), columns.int().argmax(1)
    scores_r, scores_c = scores_tmm[each, r][:, None, :], scores_tmm[each, :, c][:, :, None]
    free = rows[:, :, None] & columns[:, None, :] & ~kept_tmm
    swaps = kept_tmm & ~kept_tmm[each, r][:, None, :] & ~kept_tmm[each, :, c][:, :, None]
    takes = free.flatten(1).any(1)
    gains = torch.where(takes[:, None, None], scores_tmm, scores_r + scores_c - scores_tmm)
    gains = gains.masked_fill(~torch.where(takes[:, None, None], free, swaps), -torch.inf)
    place = gains.flatten(1).argmax(1)
    i, j = place // m, place % m
    more_tmm = kept_tmm.clone()
    more_tmm[each, i, j] = takes
    more_tmm[each, torch.where(takes, i, r), j] = True
    more_tmm[each, i, torch.where(takes, j, c)] = True
    return more_tmm
