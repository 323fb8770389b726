"""Transposable masks: N in every row and column, the best tile up to M = 4, and at least half of the best above."""

import functools
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.transposable import best, tiles, untiled


def largest_sum(scores, n):
    """By dynamic programming over rows: what is left of each column -> the largest sum so far."""
    m = len(scores)
    sums = {(n,) * m: 0.0}
    for row in scores:
        after = {}
        for left, total in sums.items():
            for chosen in itertools.combinations(range(m), n):
                if all(left[column] for column in chosen):
                    key = tuple(count - (column in chosen) for column, count in enumerate(left))
                    after[key] = max(after.get(key, -1e9), total + sum(row[column] for column in chosen))
        sums = after
    return sums[(0,) * m]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pattern", ["1:2", "1:4", "2:4", "3:4", "4:4", "2:3"])
def test_small_tiles_are_the_best_ones(pattern):
    p = Pattern(pattern)
    scores = random(50, p.m, p.m)
    kept = best(scores, p)
    assert bool((kept.sum(1) == p.n).all() and (kept.sum(2) == p.n).all())
    for tile, mask in zip(scores, kept, strict=True):
        assert float(tile[mask].sum()) == pytest.approx(largest_sum(tile.tolist(), p.n), abs=1e-12)


def test_there_are_ninety_tiles_of_2_4():
    """Each is the best for its own scores."""
    every = itertools.product(itertools.combinations(range(4), 2), repeat=4)
    valid = [rows for rows in every if all(sum(c in row for row in rows) == 2 for c in range(4))]
    marked = torch.tensor([[[float(c in row) for c in range(4)] for row in rows] for rows in valid])
    assert len(valid) == 90 and torch.equal(best(marked, Pattern("2:4")), marked.bool())


@pytest.mark.parametrize("pattern", ["1:8", "2:6", "3:6", "2:5"])
def test_larger_tiles_have_at_least_half_of_the_best_sum_and_mostly_all_of_it(pattern):
    p = Pattern(pattern)
    scores = random(20, p.m, p.m)
    kept = best(scores, p)
    assert bool((kept.sum(1) == p.n).all() and (kept.sum(2) == p.n).all())
    pairs = zip(scores, kept, strict=True)
    shares = [float(tile[mask].sum()) / largest_sum(tile.tolist(), p.n) for tile, mask in pairs]
    assert 0.5 <= min(shares) <= max(shares) <= 1 + 1e-12 and sum(shares) / len(shares) > 0.9


sizes = st.integers(5, 12).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


@given(sizes, st.integers(0, 2**31), st.integers(1, 40))
def test_every_row_and_column_keeps_exactly_n(size, seed, levels):
    """Also among ties, where the greedy choice often leaves rows short."""
    p = Pattern(*size)
    scores = random(3, p.m, p.m, seed=seed).mul(levels).floor()
    kept = best(scores, p)
    assert bool((kept.sum(1) == p.n).all() and (kept.sum(2) == p.n).all())


def test_rows_that_greed_leaves_short_are_filled():
    """Of 3:5; it is short of one there, and a kept entry gives way to two."""
    scores = random(400, 5, 5, seed=3)
    kept, short = best(scores, Pattern("3:5")), 0
    for tile, mask in zip(scores.tolist(), kept, strict=True):
        rows, columns, chosen = [3] * 5, [3] * 5, set()
        for i, j in sorted(itertools.product(range(5), repeat=2), key=lambda at, tile=tile: -tile[at[0]][at[1]]):
            if rows[i] and columns[j]:
                chosen.add((i, j))
                rows[i], columns[j] = rows[i] - 1, columns[j] - 1
        found = {tuple(at) for at in mask.nonzero().tolist()}
        short += sum(rows) > 0
        assert found == chosen if not sum(rows) else len(found) == 15 and len(chosen - found) <= sum(rows)
    assert 20 < short < 380


def test_the_same_whatever_is_solved_at_once(monkeypatch):
    for pattern in ("2:4", "2:8"):
        p = Pattern(pattern)
        scores = random(2, 5, p.m, p.m)
        whole = best(scores, p)
        monkeypatch.setattr("nmlearn.maths.transposable._VALUES_AT_ONCE", 300)
        assert torch.equal(best(scores, p), whole)


@pytest.mark.parametrize(
    "shape, axis", [((8, 12), 1), ((8, 12, 3, 3), 1), ((12, 8, 2), 0), ((3, 8, 12), 2), ((4, 4), 1)]
)
def test_tiles_are_outputs_by_inputs(shape, axis):
    grouping = Grouping(Pattern("2:4"), axis)
    weight = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    cut = tiles(weight, grouping)
    assert torch.equal(untiled(cut, grouping), weight)
    groups = grouping.view(weight).reshape(-1, 4)
    rows = cut.reshape(-1, 4)
    assert sorted(rows.tolist()) == sorted(groups.tolist())  # the rows of tiles are the groups
    out = grouping.output_axes()[-1]
    step = functools.reduce(lambda a, b: a * b, shape[out + 1 :], 1)
    assert bool((cut[..., 1:, :] - cut[..., :-1, :] == step).all())  # and their columns run along the outputs
