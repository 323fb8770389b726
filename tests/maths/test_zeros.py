"""What the zeros of a weight say."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.zeros import input_axis, tightest


def kept(shape: tuple[int, ...], axis: int, pattern: Pattern) -> torch.Tensor:
    """Exactly N random places of every group."""
    mask = torch.zeros(shape, dtype=torch.bool)
    view = Grouping(pattern, axis).view(mask)
    view |= torch.rand(view.shape).argsort(-1) < pattern.n
    return mask


@given(st.sampled_from(["1:2", "1:4", "2:4", "3:8", "1:16", "5:32", "1:64"]), st.sampled_from([(1, 2), (1, 4), (0, 2)]))
def test_the_pattern_and_the_axis_that_were_put_in(text: str, place: tuple[int, int]) -> None:
    (axis, rank), pattern = place, Pattern(text)
    shape = [200, 200, 2, 2][:rank]
    shape[axis] = 128
    mask = kept(tuple(shape), axis, pattern)
    assert tightest(mask, axis) == pattern
    assert input_axis(mask) == input_axis(mask, pattern) == axis
    assert not Grouping(pattern, axis).violation(mask)


def test_dense_and_empty_weights_have_no_pattern() -> None:
    assert tightest(torch.ones(4, 8, dtype=torch.bool), 1) is None
    assert tightest(torch.ones(4, 7, dtype=torch.bool), 1) is None
    assert tightest(torch.zeros(0, 8, dtype=torch.bool), 1) is None
    assert input_axis(torch.ones(4, 8, dtype=torch.bool)) == 1
