"""The reference kernel: unpack the weight and let torch multiply. Every other kernel is compared with it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nmlearn.packed.kernels import layouts
from nmlearn.packed.kernels.checks import Operands, Settings

_ACTIVATION = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def dense(values: Tensor, index: Tensor, scale: Tensor | None, form: layouts.Form, layout: layouts.Layout) -> Tensor:
    """The dense weight of a packed one, int8 values multiplied by their rows' scale."""
    weight = layouts.unpack(values, index, form, layout)
    return weight if scale is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))


def call(given: Operands, s: Settings, form: layouts.Form) -> Tensor:
    """What the packed operator computes."""
    weight = dense(given.values, given.index, given.scale, form, s.layout).to(given.x.dtype)
    if s.images:
        y = F.conv2d(given.x, weight, given.bias, s[7:9], s[9:11], s[11:13], s.groups)
    else:
        y = F.linear(given.x, weight.flatten(1), given.bias)
    y = y if given.residual is None else y + given.residual
    return _ACTIVATION[s.activation](y)  # type: ignore[no-any-return]
