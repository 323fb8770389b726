"""The knapsack of choices against all combinations, tried one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from nmlearn.maths.allocation import choose

Table = list[list[float]]


@st.composite
def problems(draw: st.DrawFn, highest: int = 60) -> tuple[list[list[int]], Table, int]:
    """Costs, losses and a budget of up to five items with up to four choices each."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    cost, loss = st.integers(0, highest), st.floats(0, 1e3) | st.sampled_from([0.0, 1.0])
    costs = [draw(st.lists(cost, min_size=n, max_size=n)) for n in sizes]
    losses = [draw(st.lists(loss, min_size=n, max_size=n)) for n in sizes]
    return costs, losses, draw(st.integers(0, sum(map(max, costs)) + 5))


def total(table: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return math.fsum(each[i] for each, i in zip(table, chosen, strict=True))


def least(costs: list[list[int]], losses: Table, budget: int) -> float:
    """The least losses of all combinations within the budget; infinite where there is none."""
    every = itertools.product(*(range(len(each)) for each in costs))
    return min((total(losses, chosen) for chosen in every if total(costs, chosen) <= budget), default=math.inf)


@given(problems())
def test_the_choices_are_the_best_of_all_combinations(problem: tuple[list[list[int]], Table, int]) -> None:
    costs, losses, budget = problem
    chosen = choose(costs, losses, budget)
    if chosen is None:
        assert least(costs, losses, budget) == math.inf
        return
    assert total(costs, chosen) <= budget
    assert total(losses, chosen) == pytest.approx(least(costs, losses, budget), rel=1e-12, abs=1e-12)


@given(problems(highest=10**12), st.integers(1, 50))
def test_a_coarse_budget_is_kept_and_wastes_less_than_a_bin_an_item(
    problem: tuple[list[list[int]], Table, int], bins: int
) -> None:
    costs, losses, budget = problem
    chosen = choose(costs, losses, budget, bins)
    slack = budget - sum(map(min, costs))
    assert (chosen is None) == (slack < 0)
    if chosen is None:
        return
    assert total(costs, chosen) <= budget
    divisor = math.gcd(*(cost - min(each) for each in costs for cost in each)) or 1
    bin_size = divisor * max(1, math.ceil(slack / (divisor * bins)))
    smaller = budget - (len(costs) + 1) * bin_size  # the last bin of the slack may not be full either
    found = total(losses, chosen)
    assert least(costs, losses, budget) <= found * (1 + 1e-12) <= least(costs, losses, smaller) * (1 + 2e-12) + 1e-12


@given(problems(), st.integers(2, 10**15))
def test_the_unit_of_costs_does_not_matter(problem: tuple[list[list[int]], Table, int], unit: int) -> None:
    """Costs that are multiples of one large number are not rounded."""
    costs, losses, budget = problem
    larger = [[cost * unit for cost in each] for each in costs]
    assert choose(larger, losses, budget * unit + unit - 1) == choose(costs, losses, budget)


@given(problems())
def test_more_budget_never_costs_losses(problem: tuple[list[list[int]], Table, int]) -> None:
    costs, losses, budget = problem
    some, more = choose(costs, losses, budget), choose(costs, losses, budget + 7)
    assume(some is not None)
    assert some is not None and more is not None
    assert total(losses, more) <= total(losses, some) * (1 + 1e-12)


def test_of_equal_losses_the_cheapest_is_chosen_then_the_first() -> None:
    assert choose([[9, 4, 4], [5, 1]], [[0.0, 0.0, 0.0], [0.0, 2.0]], 20) == [1, 0]


def test_what_cannot_be_reached_and_what_is_reached_exactly() -> None:
    costs, losses = [[10, 5], [10, 6]], [[0.0, 1.0], [0.0, 3.0]]
    assert [choose(costs, losses, budget) for budget in (10, 11, 15, 19, 20)] == [
        None, [1, 1], [1, 0], [1, 0], [0, 0],
    ]  # fmt: skip
    assert choose([], [], 0) == []


def test_many_items_take_the_densest_first() -> None:
    """Two hundred items of equal costs: the budget goes to those whose losses are largest."""
    costs, losses = [[3, 1]] * 200, [[0.0, float(i)] for i in range(200)]
    chosen = choose(costs, losses, 200 + 2 * 150 + 1)
    assert chosen == [1] * 50 + [0] * 150
