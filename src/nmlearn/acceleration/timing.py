"""Timing on shared machines: calls are interleaved, the fast rounds compared, and what is noisy is measured again."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SPREAD = 0.5  # of quiet rounds: the median is at most this much above the low decile
TRIES = 3
_SLACK = 1.1  # a call may be this much faster than its limit before that counts as impossible


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Attributes:
        seconds: the low decile of each call's rounds, by name.
        spread: how far the median of a call's rounds lies above its low decile, as a share of it; the widest.
        noise: why these times are not to be trusted; empty if they are.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0
    noise: str = ""


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.3,
    least: int = 7,
    wait: Callable[[], object] = lambda: None,
    limits: Mapping[str, float] | None = None,
) -> Timing:
    """Time calls in turn, so that a disturbance affects all of them alike.

    Times that are noisy (a wide spread, or a call faster than is possible) are measured again, `TRIES` times in all.
    The first try without noise decides; if there is none, the least times of all tries are given, with the reason.

    Args:
        calls: what to time, by name; each is called once first, untimed.
        seconds: how long a try takes, all calls together; longer if some were not timed `least` times by then.
        least: the minimum number of rounds.
        wait: returns when all launched work is done; for asynchronous devices.
        limits: how many times faster than the fastest call without a limit a call can be: M/N for a product by an N:M
            weight whose arithmetic takes the time.
    """
    for call in calls.values():
        call()
    wait()
    tries: list[Timing] = []
    while not tries or (tries[-1].noise and len(tries) < TRIES):
        tries.append(_judged(_rounds(calls, seconds, least, wait), limits or {}))
    if not tries[-1].noise:
        return tries[-1]
    fastest = {name: min(each.seconds[name] for each in tries) for name in calls}
    return Timing(fastest, max(each.spread for each in tries), tries[-1].noise)


def _rounds(
    calls: Mapping[str, Callable[[], object]], seconds: float, least: int, wait: Callable[[], object]
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()), [0] * least)) < least:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return times


def _judged(times: Mapping[str, list[float]], limits: Mapping[str, float]) -> Timing:
    low = {name: sorted(rounds)[(len(rounds) - 1) // 10] for name, rounds in times.items()}
    spreads = {name: statistics.median(rounds) / low[name] - 1 for name, rounds in times.items() if low[name]}
    widest = max(spreads, key=spreads.__getitem__, default="")
    spread = spreads.get(widest, 0.0)
    if spread > SPREAD:
        return Timing(low, spread, f"half of the rounds of {widest} took over {spread:.0%} more than the fast ones")
    return Timing(low, spread, _impossible(low, limits))


def _impossible(seconds: Mapping[str, float], limits: Mapping[str, float]) -> str:
    """Which call is faster than it can be; empty if none is."""
    dense = min((s for name, s in seconds.items() if name not in limits), default=0.0)
    for name, limit in limits.items():
        if name in seconds and dense > _SLACK * limit * seconds[name]:
            return f"{name} seems over {_SLACK * limit:.3g} times faster than dense; {limit:g} is the most possible"
    return ""
