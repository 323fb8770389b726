"""The candidate kernels of one layer, and the time each takes on the shapes that the layer saw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from nmlearn.acceleration import cpu_candidates, gpu_candidates
from nmlearn.acceleration.fusing import Choice
from nmlearn.acceleration.gpu import gpu_of
from nmlearn.acceleration.gpu_candidates import GpuChoice
from nmlearn.acceleration.measured import Measured, Times
from nmlearn.acceleration.observing import Dense, Seen, hooked, replaceable
from nmlearn.acceleration.timing import interleaved
from nmlearn.maths.pattern import Pattern
from nmlearn.maths.zeros import tightest

FASTER = 0.97  # a kernel is chosen when it takes at most this share of the best dense time
# From this many tokens or pixels on, arithmetic takes the time of a product by a weight; with fewer, reading the weight
# does, and a packed one may fit a cache that the dense one does not.
COMPUTE_BOUND = 64
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# The candidates of a convolution in each memory format, and those of a linear layer.
_SPARSE = {
    "channels_last": ("rows", "tokens", *cpu_candidates.ROUNDED, *gpu_candidates.KERNELS),
    "contiguous": ("tokens of planes",),
    "": ("rows", "tokens", *cpu_candidates.ROUNDED, *gpu_candidates.KERNELS),
}
_EAGER = {"channels_last": "eager channels_last", "contiguous": "eager", "": "eager"}


@dataclass
class Found:
    """One layer's times (seconds over all its calls), why candidates failed, or why there are none."""

    name: str
    layer: Dense
    pattern: Pattern | None
    rounded: tuple[str, ...]  # what is offered in addition to the candidates that compute the same as the layer
    why: str = ""
    times: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    noise: str = ""

    @property
    def images(self) -> bool:
        return isinstance(self.layer, nn.Conv2d) and not self.why

    def add(self, seconds: Mapping[str, float], count: int) -> None:
        """Add the times of another shape; a candidate that does not support it is dropped."""
        candidates = [candidate for candidate in seconds if candidate in self.times or not self.times]
        self.times = {
            candidate: self.times.get(candidate, 0.0) + count * seconds[candidate] for candidate in candidates
        }

    def drop(self, candidate: str, why: str) -> None:
        """Take a candidate away, for a reason."""
        del self.times[candidate]
        self.failed[candidate] = why

    def dense(self) -> float:
        return min(seconds for candidate, seconds in self.times.items() if candidate.startswith(("eager", "prepacked")))

    def eager(self, images: str) -> float:
        return self.times[_EAGER[images if self.images else ""]]

    def best_sparse(self, images: str) -> tuple[str, float]:
        candidates = [candidate for candidate in _SPARSE[images if self.images else ""] if candidate in self.times]
        if not candidates:
            return "", float("inf")
        return min(((candidate, self.times[candidate]) for candidate in candidates), key=lambda pair: pair[1])

    def gains(self, images: str) -> bool:
        """Whether a packed candidate takes the place of the dense layer."""
        return self.best_sparse(images)[1] <= FASTER * self.dense()

    def best(self, images: str) -> tuple[str, float]:
        """The fastest candidate that the model can use: packed, or eager."""
        return min(self.best_sparse(images), (_EAGER[images], self.eager(images)), key=lambda pair: pair[1])

    def choice(self, kernel: str) -> Choice | GpuChoice:
        assert self.pattern is not None
        if kernel in gpu_candidates.KERNELS:
            return GpuChoice(self.layer, self.pattern, kernel)
        return cpu_candidates.choice(self.layer, self.pattern, kernel, self.name)


def find(name: str, layer: Dense, seen: Seen, times: Times, rounded: tuple[str, ...]) -> Found:
    """Measure a layer's candidates, or say why it has only the dense one."""
    pattern = tightest(layer.weight.detach() != 0, 1)
    if pattern is None:
        return Found(name, layer, None, rounded, "dense: its zeros have no pattern")
    found = Found(name, layer, pattern, rounded, _refusal(name, layer, pattern, seen, bool(rounded)))
    if not found.why:
        for (shape, dtype), count in seen.inputs[name].items():
            _measure(found, pattern, shape, dtype, count, times)
    return found


def _refusal(name: str, layer: Dense, pattern: Pattern, seen: Seen, int8: bool) -> str:
    if name in seen.readers:
        return "its parent reads the weight directly"
    if not replaceable(name):
        return "it is a whole model, or compiled alone: only what a module calls can be replaced"
    if hooked(layer):
        return "it has hooks, which a packed layer would not have"
    if not seen.inputs[name]:
        return "the example did not call it"
    if gpu_of(layer.weight.device):
        return gpu_candidates.refusal(layer, pattern, seen.inputs[name], int8)
    return cpu_candidates.refusal(layer, pattern)


def _measure(
    found: Found, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype, count: int, times: Times
) -> None:
    layer, name, rounded, gpu = found.layer, found.name, found.rounded, gpu_of(found.layer.weight.device)
    what = f"{' '.join([_geometry(layer), str(pattern), *rounded])} on {list(shape)} {str(dtype)[6:]}"
    needed = [_EAGER[images] for images in (FORMATS if found.images else ("",))]
    limit = _limit(layer, pattern, shape)
    if gpu is None:

        def on_cpu() -> Measured:
            calls = cpu_candidates.calls(layer, pattern, name, rounded, shape, dtype)
            # Without oneDNN's kernels for the dtype, dense may be slow for another reason than its zeros.
            packed = [candidate for candidate in calls if not candidate.startswith(("eager", "prepacked"))]
            limits = {c: limit * (layer.weight.itemsize if c in rounded else 1) for c in packed}
            return interleaved(calls, limits=limits if "prepacked" in calls else dict.fromkeys(packed, math.inf)), {}

        timing, failed = times.of(what, needed, on_cpu)
    else:
        what = f"{what}, {gpu.described()}"
        timing, failed = times.of(
            what, needed, lambda: gpu_candidates.measure(layer, pattern, shape, dtype, gpu, limit)
        )
    found.add(timing.seconds, count)
    found.failed |= failed
    found.noise = found.noise or timing.noise


def _limit(layer: Dense, pattern: Pattern, shape: tuple[int, ...]) -> float:
    """How many times faster than dense a packed kernel of the weight's dtype can be."""
    products = math.prod(shape[:-1]) if isinstance(layer, nn.Linear) else shape[0] * math.prod(shape[-2:])
    if products < COMPUTE_BOUND:
        return math.inf
    return pattern.m / pattern.n


def _geometry(layer: Dense) -> str:
    shape = "x".join(str(length) for length in layer.weight.shape)
    if isinstance(layer, nn.Linear):
        return f"linear {shape}"
    return f"conv {shape} stride {layer.stride} padding {layer.padding} dilation {layer.dilation} groups {layer.groups}"
