"""The candidates of a layer on a GPU: dense, decode (Triton), and 2:4 by either of torch's backends.

Layers are replaced alone: nothing around them is folded in, and there is no int8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmlearn.acceleration import baselines, gpu_timing
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.gpu_timing import Candidate
from nmlearn.acceleration.observing import Dense
from nmlearn.acceleration.timing import Timing
from nmlearn.maths.pattern import Pattern
from nmlearn.model.layers import padding_of
from nmlearn.packed.gpu_modules import DecodeLinear, SemiStructuredConv2d, SemiStructuredLinear
from nmlearn.packed.kernels import semi_structured, triton_decode

KERNELS = ("decode", *semi_structured.MULTIPLES)


@dataclass(frozen=True)
class GpuChoice:
    """A dense layer to pack for one of :data:`KERNELS`."""

    layer: Dense
    pattern: Pattern
    kernel: str


def pack(choice: GpuChoice) -> DecodeLinear | SemiStructuredLinear | SemiStructuredConv2d:
    """The packed layer."""
    layer = choice.layer
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if choice.kernel == "decode":
        return DecodeLinear(weight, bias, choice.pattern).eval()
    backend: semi_structured.Backend = "cutlass" if choice.kernel == "cutlass" else "cusparselt"
    if isinstance(layer, nn.Linear):
        return SemiStructuredLinear(weight, bias, backend=backend).eval()
    down, across = layer.stride
    return SemiStructuredConv2d(weight, bias, stride=(down, across), backend=backend).eval()


def refusal(layer: Dense, pattern: Pattern, inputs: Iterable[tuple[tuple[int, ...], torch.dtype]], int8: bool) -> str:
    """Why each candidate lacks support for an input that the layer saw; empty if there is something to measure."""
    if int8:
        return "there are no int8 kernels for GPUs"
    reasons: dict[str, str] = dict.fromkeys(KERNELS, "")
    for shape, dtype in inputs:
        for candidate, why in refusals(layer, pattern, shape, dtype).items():
            reasons[candidate] = reasons[candidate] or why
    if not all(reasons.values()):
        return ""
    candidates: dict[str, list[str]] = {}
    for candidate, why in reasons.items():
        candidates.setdefault(why, []).append(candidate)
    return "; ".join(f"{', '.join(same)}: {why}" for why, same in candidates.items())


def refusals(layer: Dense, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, str]:
    """For each candidate, why it does not support such inputs; "" if it does, as far as is known without a call."""
    if dtype != layer.weight.dtype:
        return dict.fromkeys(KERNELS, f"its inputs are {str(dtype)[6:]}, its weight {str(layer.weight.dtype)[6:]}")
    x, (outputs, inputs) = torch.empty(shape, dtype=dtype, device=layer.weight.device), layer.weight.shape[:2]
    if isinstance(layer, nn.Conv2d):
        if layer.kernel_size != (1, 1) or layer.groups != 1 or padding_of(layer) != [(0, 0), (0, 0)]:
            return dict.fromkeys(KERNELS, "only 1x1 convolutions without padding and groups are supported")
        x = semi_structured.pixels(x)
    found = {"decode": triton_decode.obstacle(x, pattern, outputs, inputs)}
    if isinstance(layer, nn.Conv2d):
        found["decode"] = "not for convolutions"
    return found | {b: semi_structured.obstacle(x, pattern, outputs, inputs, b) for b in semi_structured.MULTIPLES}


def measure(
    layer: Dense, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype, gpu: Gpu, limit: float
) -> tuple[Timing, dict[str, str]]:
    """Seconds of each candidate on an input of this shape and dtype, and why others failed."""
    x = torch.randn(shape, dtype=dtype, device=layer.weight.device)
    candidates = _dense(layer, x)
    if isinstance(layer, nn.Conv2d):
        x = x.contiguous(memory_format=torch.channels_last)
    for candidate, why in refusals(layer, pattern, shape, dtype).items():
        if not why:
            candidates[candidate] = _packed(GpuChoice(layer, pattern, candidate), x)
    return gpu_timing.of_candidates(candidates, gpu, dict.fromkeys(KERNELS, limit))


def _dense(layer: Dense, x: Tensor) -> dict[str, Callable[[], Candidate]]:
    def made(images: torch.memory_format, x: Tensor) -> Candidate:
        def copied() -> baselines.Call:
            return baselines.eager(layer, images, layer.weight.detach().clone(memory_format=torch.preserve_format))

        return Candidate(copied, layer.weight.nbytes, x)

    candidates: dict[str, Callable[[], Candidate]] = {"eager": lambda: made(torch.contiguous_format, x)}
    if isinstance(layer, nn.Conv2d):
        last = x.contiguous(memory_format=torch.channels_last)
        candidates["eager channels_last"] = lambda: made(torch.channels_last, last)
    return candidates


def _packed(choice: GpuChoice, x: Tensor) -> Callable[[], Candidate]:
    def make() -> Candidate:
        layer = pack(choice)
        return Candidate(lambda: copy.deepcopy(layer), layer.weight_bytes(), x)

    return make
