"""Allocation: one choice for each item, such that costs stay within a budget and the sum of losses is least.

This is the multiple-choice knapsack problem, solved by dynamic programming over the budget (Kellerer, Pferschy and
Pisinger, *Knapsack Problems*, 2004, chapter 11). Costs are whole numbers, so that a budget is kept exactly.

Shape suffixes: ``_b`` the part of the budget that is used, in bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 50_000


def choose(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int, bins: int = BINS
) -> list[int] | None:
    """The choices with the least sum of losses whose costs sum to at most the budget.

    What a choice costs more than the cheapest one of its item is rounded up to bins: the budget is never exceeded, and
    it is reached whenever the cheapest choices reach it. Where the costs above the cheapest are multiples of so large a
    number that ``bins`` of it hold them, nothing is rounded, and the choices are optimal. Otherwise each item wastes
    less than one bin: the losses are at most those of the best choices for a budget that is one bin an item smaller.

    Args:
        costs: of each item, of each of its choices; nonnegative.
        losses: of the same; finite, in any unit. Of equal losses the cheaper choice is taken, then the first.
        budget: of all costs together.
        bins: how fine the budget is; time and memory (two bytes an item) grow with it.

    Returns:
        the index of the choice of each item; None where the cheapest choices cost more than the budget.
    """
    cheapest = [min(each) for each in costs]
    slack = budget - sum(cheapest)
    if slack < 0:
        return None
    bin_size = _bin_size([cost - low for each, low in zip(costs, cheapest, strict=True) for cost in each], slack, bins)
    steps = [[-(-(cost - low) // bin_size) for cost in each] for each, low in zip(costs, cheapest, strict=True)]
    last = slack // bin_size
    best_b = np.zeros(last + 1)  # the least losses of the items so far within so many bins
    picks = []
    for own, lost in zip(steps, losses, strict=True):
        best_b, picked_b = _with_one_more(best_b, own, lost)
        picks.append(picked_b)
    chosen = []
    for own, picked_b in zip(reversed(steps), reversed(picks), strict=True):
        chosen.append(int(picked_b[last]))
        last -= own[chosen[-1]]
    return chosen[::-1]


def _bin_size(extras: Sequence[int], slack: int, bins: int) -> int:
    """The least multiple of what divides all costs by which the slack takes no more bins than there are."""
    divisor = math.gcd(*extras) or 1
    return divisor * max(1, -(-slack // (divisor * bins)))


def _with_one_more(
    best_b: NDArray[np.float64], steps: Sequence[int], losses: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.uint16]]:
    """The least losses with one item more, and its choice."""
    with_b, picked_b = np.full_like(best_b, math.inf), np.zeros(len(best_b), dtype=np.uint16)
    for i in sorted(range(len(steps)), key=steps.__getitem__):
        if steps[i] >= len(best_b):
            break
        reached = best_b[: len(best_b) - steps[i]] + losses[i]
        better = reached < with_b[steps[i] :]
        with_b[steps[i] :][better] = reached[better]
        picked_b[steps[i] :][better] = i
    return with_b, picked_b
