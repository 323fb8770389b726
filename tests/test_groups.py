"""The group view: where groups run, and that nothing straddles or copies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmlearn as nm
from nmlearn.errors import PatternError
from nmlearn.groups import Grouping


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from([2, 4, 16]), st.integers(1, 3), st.booleans())
def test_conv_groups_are_consecutive_inputs_of_one_row_and_position(rows, groups, m, k, channels_last):
    inputs = groups * m
    weight = torch.arange(rows * inputs * k * k).view(rows, inputs, k, k).float()
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    view = Grouping(nm.Pattern(1, m), 1).view(weight)
    assert view.shape == (rows, groups, k, k, m) and view.data_ptr() == weight.data_ptr()
    expected = weight.permute(0, 2, 3, 1).reshape(rows, k, k, groups, m).permute(0, 3, 1, 2, 4)
    assert torch.equal(view, expected)
    assert Grouping(nm.Pattern(1, m), 1).groups_shape(tuple(weight.shape)) == view.shape[:-1]


@pytest.mark.parametrize(
    ("weight", "axis", "shape"),
    [
        (nn.Linear(8, 3).weight, 1, (3, 2, 4)),
        (nn.Conv1d(8, 3, 5).weight, 1, (3, 2, 5, 4)),
        (nn.Conv3d(8, 3, 2).weight, 1, (3, 2, 2, 2, 2, 4)),
        (nn.Conv2d(16, 6, 3, groups=2).weight, 1, (6, 2, 3, 3, 4)),
        (nn.ConvTranspose2d(8, 3, 2).weight, 0, (2, 3, 2, 2, 4)),
        (torch.zeros(5, 6, 12), 2, (5, 6, 3, 4)),
    ],
)
def test_shapes(weight, axis, shape):
    view = Grouping(nm.Pattern("2:4"), axis).view(weight)
    assert view.shape == shape
    view.detach().fill_(7.0)
    assert (weight == 7.0).all()


def test_refuses_what_m_does_not_divide():
    with pytest.raises(PatternError, match="3 input channels, not a multiple of 4"):
        Grouping(nm.Pattern("2:4"), 1).view(torch.zeros(8, 3, 7, 7))
