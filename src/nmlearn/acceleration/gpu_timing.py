"""Times on a GPU, of kernels that take microseconds.

Launching takes longer than such a kernel, so calls are replayed from CUDA graphs where they can be captured. A weight
that the last call left in the cache is faster than it is inside a model, so each way goes round copies of its weight
that together exceed the cache.
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
class Way:
    """One way to compute a layer.

    Attributes:
        copy: gives the layer's call with a weight in memory of its own.
        nbytes: of the weight.
        x: the input.
    """

    copy: Callable[[], Call]
    nbytes: int
    x: Tensor


def of_ways(ways: Mapping[str, Callable[[], Way]], gpu: Gpu) -> tuple[dict[str, float], dict[str, str]]:
    """Seconds of one call by way, and of ways that cannot be made or called, why.

    A way that cannot be captured is timed call after call, which is never to its advantage. Errors of eager ways are
    raised.
    """
    made: dict[str, Way] = {}
    failed: dict[str, str] = {}
    for name, make in ways.items():
        try:
            way = make()
            way.copy()(way.x)
            gpu.wait()
        except Exception as error:  # libraries without a kernel for this device, no compiler, no memory ...
            if name.startswith("eager"):
                raise
            failed[name] = _reason(error)
        else:
            made[name] = way
    copies = {name: _copies(way, gpu) for name, way in made.items()}
    count = max(FEWEST, *copies.values())
    runs = {name: _run(way, copies[name], count, gpu) for name, way in made.items()}
    seconds = interleaved(runs, wait=gpu.wait)
    return {name: taken / count for name, taken in seconds.items()}, failed


def of_model(name: str, call: Callable[[], object], gpu: Gpu) -> dict[str, float]:
    """Seconds of a whole model, "called" from Python, and in a "graph" where it can be captured."""
    found = {"called": interleaved({name: call}, wait=gpu.wait)[name]}
    graph = gpu.captured(call)
    if graph is not None:
        found["graph"] = interleaved({name: graph}, wait=gpu.wait)[name]
    return found


def _copies(way: Way, gpu: Gpu) -> int:
    return min(MOST, max(1, -(-CACHES * gpu.cache_bytes() // max(1, way.nbytes))))


def _run(way: Way, copies: int, count: int, gpu: Gpu) -> Callable[[], object]:
    run = partial(_all, [way.copy() for _ in range(copies)], way.x, count)
    return gpu.captured(run) or run


def _all(calls: Sequence[Call], x: Tensor, count: int) -> None:
    for i in range(count):
        calls[i % len(calls)](x)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:_LONGEST] if lines else type(error).__name__
