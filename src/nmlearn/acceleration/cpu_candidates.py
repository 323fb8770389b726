"""The candidates of a layer on a CPU: the two dense ones, and the packed kernels in their layouts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from nmlearn.acceleration import baselines, fusing
from nmlearn.acceleration.fusing import Choice
from nmlearn.acceleration.observing import Dense
from nmlearn.maths.pattern import Pattern
from nmlearn.native import library as native
from nmlearn.packed.kernels import checks, layouts
from nmlearn.packed.kernels.layouts import Layout

# The layout of each packed candidate, and whether its values are int8.
PACKED: dict[str, tuple[Layout, bool]] = {
    "rows": ("rows", False),
    "tokens": ("tokens", False),
    "tokens of planes": ("tokens", False),
    "rows int8": ("rows", True),
    "bytes": ("bytes", True),
}
ROUNDED = ("rows int8", "bytes")  # they compute something else than the layer: offered where they are asked for
DTYPES = (torch.float32, torch.bfloat16)


def refusal(layer: Dense, pattern: Pattern) -> str:
    """Why no kernel supports the layer; empty if there is something to measure."""
    weight = layer.weight
    if weight.device.type != "cpu" or weight.dtype not in DTYPES:
        return f"no kernel for {str(weight.dtype)[6:]} on {weight.device.type}"
    if not native.isa():
        return "the CPU kernels are not built (nmlearn doctor says why)"
    if isinstance(layer, nn.Conv2d) and not baselines.even(layer):
        return f"padding {layer.padding_mode if layer.padding_mode != 'zeros' else layer.padding}"
    form = layouts.form(weight, pattern, getattr(layer, "groups", 1))
    return layouts.refusal("tokens", form)


def choice(layer: Dense, pattern: Pattern, candidate: str, name: str) -> Choice:
    """The layer, to be packed as a candidate."""
    layout, int8 = PACKED[candidate]
    return Choice(layer, pattern, layout, name, int8)


def calls(
    layer: Dense, pattern: Pattern, name: str, rounded: tuple[str, ...], shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """The layer's call on an input of this shape and dtype, by candidate; `rounded` are those of :data:`ROUNDED`."""
    x = torch.randn(shape, device="cpu").to(dtype)
    found: dict[str, Callable[[], object]] = {}

    def add(candidate: str, function: Any, given: torch.Tensor) -> None:
        if function is not None:
            found[candidate] = lambda: function(given)

    last = x.contiguous(memory_format=torch.channels_last) if isinstance(layer, nn.Conv2d) else x
    add("eager", baselines.eager(layer), x)
    if isinstance(layer, nn.Conv2d):
        add("eager channels_last", baselines.eager(layer, torch.channels_last), last)
    add("prepacked", baselines.prepacked(layer, last), last)
    for candidate in ("rows", "tokens", *rounded):
        if _fits(layer, pattern, PACKED[candidate][0]):
            packed = fusing.pack(choice(layer, pattern, candidate, name))
            add(candidate, packed, last)
            if candidate == "tokens" and isinstance(layer, nn.Conv2d):
                add("tokens of planes", packed, x)
    return found


def _fits(layer: Dense, pattern: Pattern, layout: Layout) -> bool:
    """Whether the layer can have the layout."""
    form = layouts.form(layer.weight, pattern, getattr(layer, "groups", 1))
    if layout == "bytes" and isinstance(layer, nn.Conv2d):
        places = (*layer.kernel_size, *layer.stride, *layer.padding, *layer.dilation)
        return places == checks.LINEAR and not layouts.refusal(layout, form)
    return not layouts.refusal(layout, form)
