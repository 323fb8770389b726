"""Timing on shared machines: calls are interleaved and medians compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    seconds: float = 0.3,
    least: int = 7,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The median seconds of each call, interleaved so that a disturbance affects all of them alike.

    Args:
        calls: what to time, by name; each is called once first, untimed.
        seconds: how long to measure, all calls together; longer if some were not timed `least` times by then.
        least: the minimum number of repetitions.
        wait: returns when all launched work is done; for asynchronous devices.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    wait()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()), [0] * least)) < least:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            wait()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
