"""The reference kernel: unpack the weight and let torch multiply. The truth that every other kernel is held against."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from nmlearn.packed.kernels import layouts

_ACTIVATION = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def dense(values: Tensor, index: Tensor, scale: Tensor | None, form: layouts.Form, layout: layouts.Layout) -> Tensor:
    """The dense weight of a packed one, int8 values multiplied by their rows' scale."""
    weight = layouts.unpack(values, index, form, layout)
    return weight if scale is None else weight * scale.view(-1, *[1] * (weight.dim() - 1))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, activation: str) -> Tensor:
    y = F.linear(x, weight.to(x.dtype), bias)
    return finish(y, residual, activation)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
) -> Tensor:
    y = F.conv2d(x, weight.to(x.dtype), bias, stride, padding, dilation, groups)
    return finish(y, residual, activation)


def finish(y: Tensor, residual: Tensor | None, activation: str) -> Tensor:
    y = y if residual is None else y + residual
    return _ACTIVATION[activation](y)  # type: ignore[no-any-return]
