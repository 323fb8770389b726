"""The survivors' schedule against the paper's formula and its laws."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nmlearn as nm
from nmlearn.errors import ScheduleError
from nmlearn.maths.schedules import Falling

shares = st.floats(0, 1)
spans = st.tuples(shares, shares).map(sorted)


@given(spans, st.integers(1, 20000), st.floats(-2, 3), st.sampled_from([1, 2, 3, 4, 0.5]))
def test_clamped_and_never_rising(span, first, p, power):
    schedule = Falling(span[0], span[1], power)
    assert 1 <= schedule.count(p, first) <= first
    assert schedule.count(p + 0.1, first) <= schedule.count(p, first)
    assert schedule.count(span[1], first) == 1
    if p < span[0]:
        assert schedule.count(p, first) == first


@given(st.integers(1, 199), st.integers(2, 70))
def test_is_the_papers_formula(step, first):
    p, end = Fraction(step, 200), Fraction(1, 2)
    exact = 1 + math.ceil((first - 1) * (1 - p / end) ** 3) if p < end else 1
    assert Falling(0.0, 0.5, 3).count(step / 200, first) == exact


def test_the_papers_epochs_for_two_of_four():
    # 120 epochs, end after 60: the survivors change at epochs 5, 10, 16, 25 and 60.
    counts = [Falling().count(epoch / 120, 6) for epoch in range(121)]
    changes = {epoch: counts[epoch] for epoch in range(1, 121) if counts[epoch] != counts[epoch - 1]}
    assert changes == {5: 5, 10: 4, 16: 3, 25: 2, 60: 1}


@pytest.mark.parametrize("bad", [(-0.1, 0.5, 3), (0.6, 0.5, 3), (0, 1.1, 3), (0, 0.5, 0), (0, math.nan, 3)])
def test_refuses(bad):
    with pytest.raises(ScheduleError):
        Falling(*bad)


def test_start_equals_end_is_one_step():
    schedule = Falling(0.3, 0.3)
    assert [schedule.count(p, 6) for p in (0.0, 0.29, 0.3, 0.31, 2.0)] == [6, 6, 1, 1, 1]


def test_gradual_falls_to_n():
    method = nm.Gradual("2:8")
    values = [method.setting(nm.Pattern("2:8"), t / 20) for t in range(21)]
    assert values[0] == 8 and values[-1] == 2 and values == sorted(values, reverse=True)
