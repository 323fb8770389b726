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
from nmlearn.packed.kernels import layouts

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


def choice(layer: Dense, pattern: Pattern, candidate: str, name: str, int8: bool) -> Choice:
    """The layer, to be packed in a candidate's layout."""
    return Choice(layer, pattern, "rows" if candidate == "rows" else "tokens", name, int8)


def calls(
    layer: Dense, pattern: Pattern, name: str, int8: bool, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """The layer's call on an input of this shape and dtype, by candidate."""
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
    form = layouts.form(layer.weight, pattern, getattr(layer, "groups", 1))
    if not layouts.refusal("rows", form):
        add("rows", fusing.pack(choice(layer, pattern, "rows", name, int8)), last)
    if not int8:
        tokens = fusing.pack(choice(layer, pattern, "tokens", name, int8))
        add("tokens", tokens, last)
        if isinstance(layer, nn.Conv2d):
            add("tokens of planes", tokens, x)
    return found
