"""The two dense baselines of every comparison: eager, and oneDNN with a pre-packed weight.

The second is what torch.compile with freezing produces; without oneDNN only the first exists.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmlearn.model.layers import padding_of

Call = Callable[[Tensor], Tensor]


def even(conv: nn.Conv2d) -> bool:
    """Whether it puts as many zeros before each dimension as behind: "same" does not where a kernel is even."""
    return conv.padding_mode == "zeros" and all(before == behind for before, behind in padding_of(conv))


def padding(conv: nn.Conv2d) -> tuple[int, int]:
    """The zeros on each side of height and width, where they are :func:`even`."""
    (height, _), (width, _) = padding_of(conv)
    return height, width


def eager(
    layer: nn.Linear | nn.Conv2d, images: torch.memory_format = torch.contiguous_format, weight: Tensor | None = None
) -> Call:
    """The layer with its own or another weight; a convolution's weight is in the given memory format."""
    given = (layer.weight if weight is None else weight).detach()
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        return lambda x: F.linear(x, given, bias)
    given = given.contiguous(memory_format=images)
    geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return lambda x: F.conv2d(x, given, bias, *geometry)  # type: ignore[arg-type]


def prepacked(layer: nn.Linear | nn.Conv2d, x: Tensor) -> Call | None:
    """The layer with its weight in oneDNN's own order for inputs like x; None if it has none."""
    if not torch.backends.mkldnn.is_available() or x.device.type != "cpu":
        return None
    if x.dtype not in (torch.float32, torch.bfloat16) or (
        x.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    ):
        return None
    bias = None if layer.bias is None else layer.bias.detach()
    if isinstance(layer, nn.Linear):
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), x.numel() // x.shape[-1])
        return lambda y: torch.ops.mkldnn._linear_pointwise(y, packed, bias, "none", [], "")
    if not even(layer):
        return None
    geometry = [list(padding(layer)), list(layer.stride), list(layer.dilation), layer.groups]
    packed = torch.ops.mkldnn._reorder_convolution_weight(layer.weight.detach(), *geometry, list(x.shape))
    return lambda y: torch.ops.mkldnn._convolution_pointwise(y, packed, bias, *geometry, "none", [], "")
