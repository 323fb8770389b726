"""Times on a GPU, of kernels that take microseconds.

Launching takes longer than such a kernel, so calls are replayed from CUDA graphs where they can be captured. A weight
that the last call left in the cache is faster than it is inside a model, so each candidate goes round copies of
its weight that together exceed the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from nmlearn.acceleration.baselines import Call
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.timing import interleaved

FEWEST, MOST = 32, 256  # calls in a graph: enough to hide its launch, few enough to be captured soon
CACHES = 3  # copies of a weight fill the cache so often
_LONGEST = 160  # letters of an error that are kept


@dataclass(frozen=True)
class Candidate:
    """One way to compute a layer.

    Attributes:
        copy: gives the layer's call with a weight in memory of its own.
        nbytes: of the weight.
        x: the input.
    """

    copy: Callable[[], Call]
    nbytes: int
    x: Tensor


def of_candidates(
    candidates: Mapping[str, Callable[[], Candidate]], gpu: Gpu
) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of one call by candidate, and of candidates that cannot be made or called, why.

    A candidate that cannot be captured is timed call after call, which is never to its advantage. Errors of
    eager candidates are raised.
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
    seconds = interleaved(runs, wait=gpu.wait)
    return {name: taken / count for name, taken in seconds.items()}, failed


def of_model(name: str, call: Callable[[], object], gpu: Gpu) -> dict[str, float]:
    """Seconds of a whole model, "called" from Python, and in a "graph" where it can be captured."""
    found = {"called": interleaved({name: call}, wait=gpu.wait)[name]}
    graph = gpu.captured(call)
    if graph is not None:
        found["graph"] = interleaved({name: graph}, wait=gpu.wait)[name]
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
