"""Timing on machines that are shared: calls take turns, and medians are compared."""

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
    """The median seconds of each call, all taking turns so that what disturbs one disturbs the others alike.

    Args:
        calls: what to time, by name; each is called once before.
        seconds: how long to go on, all calls together, once everything was timed `least` times.
        least: repetitions at least.
        wait: returns when all that was begun is done; for devices that compute while the caller goes on.
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
