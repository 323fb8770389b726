"""Combinations: the table, rank and unrank are one bijection."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import nmlearn as nm
from nmlearn.errors import PatternError
from nmlearn.maths.combinations import rank, table, unrank

small = st.integers(1, 12).flatmap(lambda m: st.builds(nm.Pattern, st.integers(1, m), st.just(m)))
any_pattern = st.integers(1, 64).flatmap(lambda m: st.builds(nm.Pattern, st.integers(1, m), st.just(m)))


@given(small)
def test_the_table_lists_every_keep_set_once_in_order(pattern):
    rows = [tuple(row.nonzero().flatten().tolist()) for row in table(pattern)]
    assert rows == list(itertools.combinations(range(pattern.m), pattern.n))


@given(small)
def test_rank_numbers_the_table(pattern):
    numbers = torch.arange(pattern.combinations)
    assert torch.equal(rank(table(pattern), pattern), numbers)
    assert torch.equal(unrank(numbers, pattern), table(pattern))


@given(any_pattern, st.randoms(use_true_random=False))
def test_rank_and_unrank_are_inverse_up_to_64(pattern, random):
    numbers = torch.tensor([[random.randrange(pattern.combinations) for _ in range(3)] for _ in range(2)])
    masks = unrank(numbers, pattern)
    assert masks.shape == (2, 3, pattern.m) and (masks.sum(-1) == pattern.n).all()
    assert torch.equal(rank(masks, pattern), numbers)


def test_refusals():
    with pytest.raises(PatternError, match="too many to list"):
        table(nm.Pattern("32:64"))
    with pytest.raises(PatternError, match="exactly 2 of 4"):
        rank(torch.tensor([[True, False, False, False]]), nm.Pattern("2:4"))
    with pytest.raises(PatternError, match="combinations 0 to 5"):
        unrank(torch.tensor([6]), nm.Pattern("2:4"))
