"""The C(M, N) combinations of a group, in lexicographic order of their kept places.

The number of a combination is its rank in that order. It is stable, so files may store it. For 2:4:

    0: 0 1    1: 0 2    2: 0 3    3: 1 2    4: 1 3    5: 2 3
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

from nmlearn.errors import PatternError
from nmlearn.maths.pattern import Pattern

# A table of this many rows at M = 64 takes 64 MiB; nobody can afford scores for more combinations than that anyway.
LARGEST_TABLE = 1_000_000


def table(pattern: Pattern, device: torch.device | str = "cpu", dtype: torch.dtype = torch.bool) -> Tensor:
    """All combinations as a tensor ``[C, M]`` of zeros and ones; row k is combination k. Do not write into it.

    Raises:
        PatternError: C(M, N) exceeds a million.
    """
    return _table(pattern, torch.device(device)).to(dtype)  # the bool one is cached, at an eighth of the memory or less


@functools.cache
def _table(pattern: Pattern, device: torch.device) -> Tensor:
    if pattern.combinations > LARGEST_TABLE:
        raise PatternError(
            where="combinations",
            given=pattern,
            wrong=f"it has {pattern.combinations} combinations, too many to list",
            fix='use elimination="weight", which needs no table',
        )
    kept = torch.tensor(list(itertools.combinations(range(pattern.m), pattern.n)), device=device)
    return torch.zeros(len(kept), pattern.m, dtype=torch.bool, device=device).scatter_(1, kept, True)


def rank(mask_gm: Tensor, pattern: Pattern) -> Tensor:
    """The number of the combination that each group keeps.

    Args:
        mask_gm: bool ``[..., M]`` with exactly N true in every group.

    Returns:
        int64 ``[...]`` in [0, C(M, N)).

    Raises:
        PatternError: a group does not keep exactly N.
    """
    kept = mask_gm.sum(-1)
    if mask_gm.shape[-1] != pattern.m or bool((kept != pattern.n).any()):
        raise PatternError(
            where="rank",
            given=f"a mask of shape {tuple(mask_gm.shape)}",
            wrong=f"not every group keeps exactly {pattern.n} of {pattern.m}",
            fix="fill groups that keep fewer before ranking them",
        )
    # Counting the combinations that come later: with r places still to fill at place j, skipping j to keep a later one
    # passes over the C(M-1-j, r-1) combinations that do keep j.
    skips = torch.stack([_keeping(pattern, j, mask_gm.device) for j in range(pattern.m)])
    left = pattern.n - (mask_gm.cumsum(-1) - mask_gm.long())
    places = torch.arange(pattern.m, device=mask_gm.device)
    return torch.where(mask_gm, 0, skips[places, left]).sum(-1)


def unrank(number: Tensor, pattern: Pattern) -> Tensor:
    """The masks of numbered combinations, the inverse of :func:`rank`.

    Args:
        number: int64 ``[...]`` in [0, C(M, N)).

    Returns:
        bool ``[..., M]``.

    Raises:
        PatternError: a number is out of range.
    """
    if number.numel() and not 0 <= int(number.min()) <= int(number.max()) < pattern.combinations:
        raise PatternError(
            where="unrank",
            given=f"numbers from {int(number.min())} to {int(number.max())}",
            wrong=f"{pattern} has the combinations 0 to {pattern.combinations - 1}",
            fix="check the file or the pattern that these numbers belong to",
        )
    rest, left = number.clone(), torch.full_like(number, pattern.n)
    mask = torch.zeros(*number.shape, pattern.m, dtype=torch.bool, device=number.device)
    for j in range(pattern.m):
        keeping = _keeping(pattern, j, number.device)[left]
        kept = (rest < keeping) & (left > 0)
        mask[..., j] = kept
        rest = torch.where(kept, rest, rest - keeping)
        left = left - kept.long()
    return mask


def _keeping(pattern: Pattern, j: int, device: torch.device) -> Tensor:
    """``[N + 1]``: how many combinations keep place j when r places are still to fill, by r."""
    column = [math.comb(pattern.m - 1 - j, r - 1) if r else 0 for r in range(pattern.n + 1)]
    return torch.tensor(column, dtype=torch.int64, device=device)
