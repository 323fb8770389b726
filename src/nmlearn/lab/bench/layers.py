"""Linear layers, decode, and the convolutions of ResNet-50."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.acceleration import baselines
from nmlearn.acceleration.observing import observe
from nmlearn.acceleration.timing import Timing, interleaved
from nmlearn.lab import models
from nmlearn.lab.bench.weights import sparse_
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.modules import PackedConv2d, PackedLinear

Row = dict[str, Any]
# (out, in): attention and MLP of DeiT-small; of ViT-B and BERT-base.
LINEAR = ((1152, 384), (384, 384), (1536, 384), (384, 1536), (2304, 768), (768, 768), (3072, 768), (768, 3072))
TOKENS = (128, 197, 512, 1576)
DECODE = ((4096, 4096), (11008, 4096))
NARROWEST = 64  # fewest input channels of ResNet-50's convolutions after the first; others are multiples
OUT_OF_CACHE = 320_000_000  # bytes of weights read before one is used again


def check(suites: Iterable[str], patterns: Iterable[str]) -> None:
    """Refuse patterns that do not fit the weights of a suite, before anything is measured.

    Raises:
        PatternError, KernelError: as raised by packing such a weight.
    """
    widths = {"linear": {inputs for _, inputs in LINEAR}, "decode": {inputs for _, inputs in DECODE}}
    widths["conv"] = {NARROWEST}
    for suite, pattern in itertools.product(suites, patterns):
        layouts = ("rows",) if suite == "decode" else _layouts(pattern)
        for inputs, layout in itertools.product(widths.get(suite, ()), layouts):  # networks keep the rest dense
            PackedLinear(torch.zeros(1, inputs), None, pattern, layout=layout)


def linear(patterns: Sequence[str], dtype: torch.dtype, seconds: float) -> Iterator[Row]:
    """Many tokens."""
    for (out, inputs), tokens in itertools.product(LINEAR, TOKENS):
        x, layer = torch.randn(tokens, inputs).to(dtype), nn.Linear(inputs, out).to(dtype)
        calls = _dense(layer, x)
        for pattern in patterns:
            weight = sparse_(torch.randn(out, inputs), pattern).to(dtype)
            for layout in _layouts(pattern):
                calls[f"{pattern} {layout}"] = _on(PackedLinear(weight, layer.bias, pattern, layout=layout), x)
        case = f"{out}x{inputs}, {tokens} tokens"
        yield from _rows("linear", case, dtype, patterns, _timed(calls, dtype, seconds=seconds))


def decode(patterns: Sequence[str], dtype: torch.dtype, seconds: float) -> Iterator[Row]:
    """One token; the weights rotate so that none is in a cache when it is used."""
    for out, inputs in DECODE:
        x, layer = torch.randn(1, inputs).to(dtype), nn.Linear(inputs, out).to(dtype)
        dense = [copy.deepcopy(layer).requires_grad_(False) for _ in range(_copies(layer.weight.nbytes))]
        calls = {"eager": _in_turn([_on(baselines.eager(one), x) for one in dense])}
        if baselines.prepacked(layer, x):
            calls["prepacked"] = _in_turn([_on(baselines.prepacked(one, x), x) for one in dense])
        for pattern, int8 in itertools.product(patterns, (False, True)):
            packed = PackedLinear(sparse_(torch.randn(out, inputs), pattern).to(dtype), None, pattern, int8=int8)
            turns = [_on(copy.deepcopy(packed), x) for _ in range(_copies(packed.weight_bytes()))]
            calls[f"{pattern} {'int8' if int8 else 'rows'}"] = _in_turn(turns)
        timing = _timed(calls, dtype, seconds=seconds, least=40)
        for suite, other in (("decode", "int8"), ("decode int8", "rows")):
            own = {name: t for name, t in timing.seconds.items() if not name.endswith(other)}
            yield from _rows(suite, f"{out}x{inputs}", dtype, patterns, replace(timing, seconds=own))


def convolutions(patterns: Sequence[str], dtype: torch.dtype, seconds: float) -> Iterator[Row]:
    """All convolutions of ResNet-50 except the first, batch 1; `count` is how often a shape occurs."""
    network = models.build("resnet50", classes=1000, input_shape=(3, 224, 224)).eval()
    with torch.inference_mode():
        seen = observe(network, lambda: network(torch.randn(1, 3, 224, 224)))
    found: Counter[tuple[Any, ...]] = Counter()
    for name, layer in seen.layers.items():
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 3:
            found[
                (
                    layer.in_channels,
                    layer.out_channels,
                    layer.kernel_size,
                    layer.stride,
                    layer.padding,
                    seen.shapes(name),
                )
            ] += 1
    for (inputs, out, kernel, stride, padding, size), count in found.items():
        layer = nn.Conv2d(inputs, out, kernel, stride, padding).to(dtype).requires_grad_(False)
        x = torch.randn(size).to(dtype)
        last = x.contiguous(memory_format=torch.channels_last)
        calls = _dense(layer, last) | {
            "eager": _on(baselines.eager(layer), x),
            "eager channels_last": _on(baselines.eager(layer, torch.channels_last), last),
        }
        for pattern in patterns:
            weight = sparse_(torch.randn_like(layer.weight, dtype=torch.float32), pattern).to(dtype)
            for layout, given, variant in (("rows", last, "rows"), ("tokens", last, "tokens"), ("tokens", x, "planes")):
                if variant != "rows" or 16 % Pattern(pattern).m == 0:
                    packed = PackedConv2d(weight, layer.bias, pattern, stride=stride, padding=padding, layout=layout)  # type: ignore[arg-type]
                    calls[f"{pattern} {variant}"] = _on(packed, given)
        case = f"{out}x{inputs}x{kernel[0]}x{kernel[1]} stride {stride[0]}, {size[2]}x{size[3]}"
        for row in _rows("conv", case, dtype, patterns, _timed(calls, dtype, seconds=seconds)):
            yield row | {"count": count}


def _dense(layer: Any, x: Tensor) -> dict[str, Callable[[], object]]:
    layer.requires_grad_(False)
    calls = {"eager": _on(baselines.eager(layer), x)}
    best = baselines.prepacked(layer, x)
    return calls if best is None else calls | {"prepacked": _on(best, x)}


def _timed(calls: dict[str, Callable[[], object]], dtype: torch.dtype, **how: Any) -> Timing:
    """Packed calls are named PATTERN VARIANT; none can be more than M/N times faster, times 4 or 2 with int8 values."""
    packed = [name.split() for name in calls if ":" in name]
    limits = {
        f"{pattern} {variant}": Pattern(pattern).m / Pattern(pattern).n * (dtype.itemsize if variant == "int8" else 1)
        for pattern, variant in packed
    }
    # Without oneDNN's kernels for the dtype, dense may be slow for another reason than its zeros.
    return interleaved(calls, limits=limits if "prepacked" in calls else dict.fromkeys(limits, math.inf), **how)


def _rows(suite: str, case: str, dtype: torch.dtype, patterns: Sequence[str], timing: Timing) -> Iterator[Row]:
    times = timing.seconds
    eager = min(t for name, t in times.items() if name.startswith("eager"))
    best = min(t for name, t in times.items() if name.startswith(("eager", "prepacked")))
    for pattern in patterns:
        variants = {name.split()[1]: t for name, t in times.items() if name.startswith(f"{pattern} ")}
        kernel = min(variants, key=variants.__getitem__)
        yield {
            "suite": suite,
            "case": case,
            "pattern": pattern,
            "dtype": str(dtype).removeprefix("torch."),
            "eager_ms": 1e3 * eager,
            "best_ms": 1e3 * best,
            "sparse_ms": 1e3 * variants[kernel],
            "kernel": kernel,
            "ways_ms": {name: 1e3 * t for name, t in variants.items()},
            "spread": timing.spread,
            "noise": timing.noise,
        }


def _layouts(pattern: str) -> tuple[Any, ...]:
    return ("rows", "tokens") if 16 % Pattern(pattern).m == 0 else ("tokens",)


def _on(call: Any, x: Tensor) -> Callable[[], object]:
    return lambda: call(x)


def _copies(size: int) -> int:
    return max(2, -(-OUT_OF_CACHE // size))


def _in_turn(calls: list[Callable[[], object]]) -> Callable[[], object]:
    turns = itertools.cycle(calls)
    return lambda: next(turns)()
