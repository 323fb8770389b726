"""The group view: where groups run, and that nothing straddles or copies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmlearn as nm
from nmlearn.errors import PatternError
from nmlearn.maths.groups import Grouping


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


@given(st.sampled_from([1, 2, 5]), st.sampled_from([(1, 2), (1, 4), (0, 4), (2, 3)]), st.integers(0, 3))
def test_a_violation_names_the_first_bad_group_as_a_python_index(groups, place, bad):
    (axis, rank), pattern = place, nm.Pattern("2:4")
    shape = [3] * rank
    shape[axis] = 4 * groups
    mask = torch.zeros(shape, dtype=torch.bool)
    view = Grouping(pattern, axis).view(mask)
    view[..., :2] = True
    rows = [tuple(i.tolist()) for i in torch.ones(view.shape[:-1]).nonzero()]
    chosen = sorted(rows[i] for i in torch.randperm(len(rows))[:bad])
    for index in chosen:
        view[index] = True
    why = Grouping(pattern, axis).violation(mask)
    assert bool(why) == bool(chosen)
    if chosen:
        assert why.startswith(f"{len(chosen)} of {len(rows)} groups break 2:4; the first is ")
        first = why[why.index("[") : why.index("]") + 1]
        assert torch.equal(eval(f"mask{first}"), view[chosen[0]]) and why.endswith("with 4 non-zeros")


def test_an_empty_weight_breaks_no_pattern():
    assert Grouping(nm.Pattern("2:4"), 1).violation(torch.zeros(0, 8, dtype=torch.bool)) == ""
