"""Masks: exactly N, the lowest index wins ties, and removed means +0.0."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmlearn.maths import masks

rows = st.integers(1, 9).flatmap(
    lambda k: st.tuples(
        st.lists(
            st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0]), min_size=k, max_size=k), min_size=1, max_size=6
        ),
        st.integers(0, k),
    )
)


@given(rows)
def test_top_is_the_stable_choice(case):
    scores, count = case
    chosen = masks.top(torch.tensor(scores), count)
    for row, mask in zip(scores, chosen.tolist(), strict=True):
        best = sorted(range(len(row)), key=lambda i: (-row[i], i))[:count]
        assert [i for i, kept in enumerate(mask) if kept] == sorted(best)


def test_top_of_more_rows_than_fit_at_once(monkeypatch):
    scores = torch.randn(50, 3, 8)
    expected = masks.top(scores, 3)
    monkeypatch.setattr(masks, "_VALUES_AT_ONCE", 40)
    assert torch.equal(masks.top(scores, 3), expected) and (expected.sum(-1) == 3).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_clear_leaves_kept_bits_and_makes_positive_zeros(dtype, memory_format):
    x = torch.randn(4, 8, 3, 3).to(dtype).to(memory_format=memory_format)
    x[0, :4, 0, 0] = torch.tensor([math.nan, math.inf, -0.0, -1.0]).to(dtype)
    mask = torch.rand(4, 8, 3, 3) > 0.5
    mask[0, :4, 0, 0] = False
    before = x.clone()
    masks.clear_(x, masks.bits(mask))
    assert torch.equal(x[mask], before[mask])
    assert (x[~mask] == 0).all() and not torch.signbit(x[~mask]).any()
    assert torch.equal(masks.from_bits(masks.bits(mask)), mask)


def test_full_bits_keep_everything():
    x = torch.tensor([math.nan, -0.0, 1.5])
    cleared = masks.clear_(x.clone(), masks.full_bits(x))
    assert torch.equal(cleared.view(torch.int32), x.view(torch.int32))


def test_counts_of_several_masks():
    before = {"a": torch.tensor([[True, False], [True, True]]), "gone": torch.ones(3, dtype=torch.bool)}
    now = {"a": torch.tensor([[False, True], [True, True]]), "new": torch.tensor([True, False, False])}
    assert masks.counts(now, before).tolist() == [3 + 1, 2, 4 + 3]
    assert masks.counts(now, {}).tolist() == [4, 0, 7]
    assert masks.counts({}, before).tolist() == [0, 0, 0]
