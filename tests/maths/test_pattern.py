"""Patterns: what is read, what is refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nmlearn as nm
from nmlearn.errors import NMLearnError, PatternError

pairs = st.integers(1, 64).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m)))


@given(pairs)
def test_reads_its_own_text(pair):
    n, m = pair
    pattern = nm.Pattern(f"{n}:{m}")
    assert pattern == nm.Pattern(n, m) == nm.Pattern(pattern) == nm.Pattern(str(pattern))
    assert hash(pattern) == hash(nm.Pattern(n, m))
    assert pattern.density == n / m
    assert pattern.combinations == math.comb(m, n)


@pytest.mark.parametrize("bad", ["5:4", "0:4", "2:65", "2-4", "", "a:b", "2:4:8", "-1:4", None, 2.4, True])
def test_refuses(bad):
    with pytest.raises(PatternError) as caught:
        nm.Pattern(bad)
    assert all((caught.value.where, caught.value.given, caught.value.wrong, caught.value.fix))


def test_an_integer_is_a_pattern_that_yaml_has_eaten():
    with pytest.raises(NMLearnError, match="quote the pattern"):
        nm.Pattern(124)
