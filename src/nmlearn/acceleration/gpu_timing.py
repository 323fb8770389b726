"""Timing kernels that take microseconds on a GPU.

Launching takes longer than such a kernel, so calls are replayed from CUDA graphs where they can be captured. A weight
still cached from the last call would be faster than inside a model, so each candidate cycles through copies of its
weight that together exceed the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from nmlearn.acceleration.baselines import Call
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.timing import Timing, interleaved

FEWEST, MOST = 32, 256  # calls in a graph: enough to hide its launch, few enough to capture quickly
CACHES = 3  # the copies of a weight fill the cache this many times
_LONGEST = 160  # characters kept of an error message


@dataclass(frozen=True)
class Candidate:
    """One kernel for a layer.

    Attributes:
        copy: returns the layer's call with its own copy of the weight.
        nbytes: of the weight.
        x: the input.
    """

    copy: Callable[[], Call]
    nbytes: int
    x: Tensor


def of_candidates(
    candidates: Mapping[str, Callable[[], Candidate]], gpu: Gpu, limits: Mapping[str, float]
) -> tuple[Timing, dict[str, str]]:
    """Seconds per call by candidate, and why other candidates cannot be made or called; limits as in `interleaved`.

    A candidate that cannot be captured is timed call after call, which never favours it. Errors of eager candidates
    are raised.
    """
    made: dict[str, Candidate] = {}
    failed: dict[str, str] = {}
    for name, make in candidates.items():
        try:
            candidate = make()
            candidate.copy()(candidate.x)
            gpu.wait()
        except Exception as error:  # libraries without a kernel for this device, no compiler, no memory ...
            if name.startswith("eager"):
                raise
            failed[name] = _reason(error)
        else:
            made[name] = candidate
    copies = {name: _copies(candidate, gpu) for name, candidate in made.items()}
    count = max(FEWEST, *copies.values())
    runs = {name: _run(candidate, copies[name], count, gpu) for name, candidate in made.items()}
    timing = interleaved(runs, wait=gpu.wait, limits=limits)
    return replace(timing, seconds={name: total / count for name, total in timing.seconds.items()}), failed


def of_model(name: str, call: Callable[[], object], gpu: Gpu) -> dict[str, float]:
    """Seconds of a whole model, "called" from Python, and as a "graph" if it can be captured."""
    found = {"called": interleaved({name: call}, wait=gpu.wait).seconds[name]}
    graph = gpu.captured(call)
    if graph is not None:
        found["graph"] = interleaved({name: graph}, wait=gpu.wait).seconds[name]
    return found


def _copies(candidate: Candidate, gpu: Gpu) -> int:
    return min(MOST, max(1, -(-CACHES * gpu.cache_bytes() // max(1, candidate.nbytes))))


def _run(candidate: Candidate, copies: int, count: int, gpu: Gpu) -> Callable[[], object]:
    run = partial(_all, [candidate.copy() for _ in range(copies)], candidate.x, count)
    return gpu.captured(run) or run


def _all(calls: Sequence[Call], x: Tensor, count: int) -> None:
    for i in range(count):
        calls[i % len(calls)](x)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:_LONGEST] if lines else type(error).__name__
