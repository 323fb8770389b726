"""The ways of a layer on a GPU: dense, decode (Triton), and 2:4 by either of torch's backends.

Layers are exchanged as they are: nothing around them is folded in, and there is no int8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nmlearn.acceleration import baselines, gpu_timing
from nmlearn.acceleration.gpu import Gpu
from nmlearn.acceleration.gpu_timing import Way
from nmlearn.acceleration.observing import Dense
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.gpu_modules import DecodeLinear, SemiStructuredConv2d, SemiStructuredLinear
from nmlearn.packed.kernels import semi_structured, triton_decode

WAYS = ("decode", *semi_structured.MULTIPLES)


@dataclass(frozen=True)
class GpuChoice:
    """A dense layer that is to be packed for a GPU by one of :data:`WAYS`."""

    layer: Dense
    pattern: Pattern
    way: str


def pack(choice: GpuChoice) -> DecodeLinear | SemiStructuredLinear | SemiStructuredConv2d:
    """The packed layer."""
    layer = choice.layer
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if choice.way == "decode":
        return DecodeLinear(weight, bias, choice.pattern).eval()
    backend: semi_structured.Backend = "cutlass" if choice.way == "cutlass" else "cusparselt"
    if isinstance(layer, nn.Linear):
        return SemiStructuredLinear(weight, bias, backend=backend).eval()
    down, across = layer.stride
    return SemiStructuredConv2d(weight, bias, stride=(down, across), backend=backend).eval()


def refusal(layer: Dense, pattern: Pattern, inputs: Iterable[tuple[tuple[int, ...], torch.dtype]], int8: bool) -> str:
    """Why no way takes all the inputs that the layer saw, way by way; empty if there is something to measure."""
    if int8:
        return "there are no int8 kernels for GPUs"
    reasons: dict[str, str] = dict.fromkeys(WAYS, "")
    for shape, dtype in inputs:
        for way, why in refusals(layer, pattern, shape, dtype).items():
            reasons[way] = reasons[way] or why
    if not all(reasons.values()):
        return ""
    ways: dict[str, list[str]] = {}
    for way, why in reasons.items():
        ways.setdefault(why, []).append(way)
    return "; ".join(f"{', '.join(same)}: {why}" for why, same in ways.items())


def refusals(layer: Dense, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, str]:
    """For each way why it does not take such inputs, or "" where it does as far as can be told without a call."""
    if dtype != layer.weight.dtype:
        return dict.fromkeys(WAYS, f"its inputs are {str(dtype)[6:]}, its weight {str(layer.weight.dtype)[6:]}")
    x, (outputs, inputs) = torch.empty(shape, dtype=dtype, device=layer.weight.device), layer.weight.shape[:2]
    if isinstance(layer, nn.Conv2d):
        if (
            layer.kernel_size != (1, 1)
            or layer.groups != 1
            or not (layer.padding == (0, 0) or layer.padding == "valid")
        ):
            return dict.fromkeys(WAYS, "of convolutions only 1x1 without padding and groups")
        x = semi_structured.pixels(x)
    found = {"decode": triton_decode.supports(x, pattern, outputs, inputs)}
    if isinstance(layer, nn.Conv2d):
        found["decode"] = "not for convolutions"
    return found | {b: semi_structured.supports(x, pattern, outputs, inputs, b) for b in semi_structured.MULTIPLES}


def measure(
    layer: Dense, pattern: Pattern, shape: tuple[int, ...], dtype: torch.dtype, gpu: Gpu
) -> tuple[dict[str, float], dict[str, str]]:
    """The seconds of each way on such an input, and why others failed."""
    x = torch.randn(shape, dtype=dtype, device=layer.weight.device)
    ways = _dense(layer, x)
    if isinstance(layer, nn.Conv2d):
        x = x.contiguous(memory_format=torch.channels_last)
    for way, why in refusals(layer, pattern, shape, dtype).items():
        if not why:
            ways[way] = _packed(GpuChoice(layer, pattern, way), x)
    return gpu_timing.of_ways(ways, gpu)


def _dense(layer: Dense, x: Tensor) -> dict[str, Callable[[], Way]]:
    def made(images: torch.memory_format, x: Tensor) -> Way:
        def copied() -> baselines.Call:
            return baselines.eager(layer, images, layer.weight.detach().clone(memory_format=torch.preserve_format))

        return Way(copied, layer.weight.nbytes, x)

    ways: dict[str, Callable[[], Way]] = {"eager": lambda: made(torch.contiguous_format, x)}
    if isinstance(layer, nn.Conv2d):
        last = x.contiguous(memory_format=torch.channels_last)
        ways["eager channels_last"] = lambda: made(torch.channels_last, last)
    return ways


def _packed(choice: GpuChoice, x: Tensor) -> Callable[[], Way]:
    def make() -> Way:
        layer = pack(choice)
        return Way(lambda: copy.deepcopy(layer), layer.weight_bytes(), x)

    return make
