"""Interleaved timing, by a clock that the timed calls advance: quiet and disturbed rounds, and impossible ratios."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from nmlearn.acceleration import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still between calls; a call takes its next duration."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def taking(durations):
        turns = itertools.chain(iter(durations), itertools.repeat(list(durations)[-1]))

        def call():
            clock.now += next(turns)

        return call

    return taking


def timed(limits=None, **calls):
    return timing.interleaved(calls, seconds=0, least=10, limits=limits)


def test_calls_take_turns_and_are_waited_for():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    found = timing.interleaved(calls, seconds=0, least=1, wait=lambda: order.append("|"))
    assert "".join(order).startswith("ab|a|b|") and set(found.seconds) == {"a", "b"}


def test_the_fast_rounds_count_and_the_spread_is_told(clock):
    found = timed(a=clock([1, 1.2, 1.2, 1.2, 1.2, 1.2, 1.0, 1.0, 1.0, 1.0, 9.0]), b=clock([2]))
    assert found.seconds == pytest.approx({"a": 1.0, "b": 2.0})
    assert found.spread == pytest.approx(0.2) and not found.noise


def test_a_busy_moment_is_measured_again(clock):
    busy = [1.0, 1.0, *[8.0] * 9]  # one untimed call, then a try with a single undisturbed round
    found = timed(a=clock([*busy, 2.0]), b=clock([3.0]))
    assert found.seconds == pytest.approx({"a": 2.0, "b": 3.0}) and not found.noise and found.spread == 0


def test_what_stays_noisy_says_so_and_gives_the_least_times(clock):
    busy = [5.0, 2.0, *[8.0] * 9, 1.0, *[8.0] * 9, 3.0, *[8.0] * 9]
    found = timed(a=clock([*busy, 100.0]), b=clock([3.0]))
    assert found.seconds == pytest.approx({"a": 1.0, "b": 3.0})
    assert found.spread == pytest.approx(7) and "rounds of a" in found.noise


def test_faster_than_possible_is_measured_again_and_is_noise_if_it_stays(clock):
    slow_moment = [9.0] * 11
    limits = {"2:4": 2.0}
    found = timed(limits, **{"eager": clock([*slow_moment, 1.5]), "2:4": clock([1.0])})
    assert found.seconds == pytest.approx({"eager": 1.5, "2:4": 1.0}) and not found.noise
    found = timed(limits, **{"eager": clock([9.0]), "best": clock([8.0]), "2:4": clock([1.0])})
    assert found.seconds["best"] == pytest.approx(8) and "2:4" in found.noise and "2 is the most" in found.noise
    assert not timed(limits, **{"eager": clock([2.0]), "2:4": clock([1.0])}).noise
