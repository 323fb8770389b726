"""The reference kernel: unpack the weight and let torch multiply. Every other kernel is compared with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.packed.kernels import layouts
from nmlearn.packed.kernels.checks import Operands, Settings

_ACTIVATION = {"none": lambda y: y, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}


def dense(values: Tensor, index: Tensor, scale: Tensor | None, form: layouts.Form, layout: layouts.Layout) -> Tensor:
    """The dense weight of a packed one, int8 values multiplied by their rows' scale."""
    weight = layouts.unpack(values, index, form, layout)
    return weight if scale is None else weight * scale.view(-1, weight.shape[0])[0].view(-1, *[1] * (weight.dim() - 1))


def call(given: Operands, s: Settings, form: layouts.Form) -> Tensor:
    """What the packed operator computes."""
    if s.layout == "bytes":
        return _of_bytes(given, s, form)
    weight = dense(given.values, given.index, given.scale, form, s.layout).to(given.x.dtype)
    if s.images:
        y = F.conv2d(given.x, weight, given.bias, s[7:9], s[9:11], s[11:13], s.groups)
    else:
        y = F.linear(given.x, weight.flatten(1), given.bias)
    y = y if given.residual is None else y + given.residual
    return _ACTIVATION[s.activation](y)  # type: ignore[no-any-return]


def rounded(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations as the layout "bytes" multiplies them, rounded to 7 bits in each token.

    The range from a token's least to its largest value, which includes 0, takes 127 steps: x is nearly
    ``step * (q - zero)``. A range below 2e-30 is taken for that. A token with an infinite or NaN value has a step of
    NaN, so that all its outputs are NaN.

    Args:
        x: float32 or float64 ``[..., channels]``.

    Returns:
        q and zero, whole numbers from 0 to 127, and step; of x's dtype, zero and step ``[..., 1]``.
    """
    finite = x.isfinite().all(-1, keepdim=True)
    x = x.where(finite, 0)
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True).clamp(min=0)
    half = (high * 0.5 - low * 0.5).clamp(min=1e-30)  # the whole range may be larger than float32 has
    inverse = torch.full_like(half, 63.5) / half
    zero = -(low * inverse).round()
    q = ((x * inverse).round() + zero).clamp(max=127)
    return q, zero, (half / torch.full_like(half, 63.5)).where(finite, torch.nan)


def _of_bytes(given: Operands, s: Settings, form: layouts.Form) -> Tensor:
    """The sums are exact: whole numbers below 2**31, in float64."""
    assert given.scale is not None
    x = given.x.to(torch.promote_types(given.x.dtype, torch.float32))
    q, zero, step = rounded(x.movedim(1, -1) if s.images else x)
    weight = layouts.unpack(given.values, given.index, form, s.layout).flatten(1)
    y = F.linear((q - zero).double(), weight.double()).to(x.dtype) * (given.scale[0] * step)
    y = y if given.bias is None else y + given.bias.to(x.dtype)
    y = y.movedim(-1, 1) if s.images else y
    y = y if given.residual is None else y + given.residual.to(x.dtype)
    return _ACTIVATION[s.activation](y).to(given.x.dtype)  # type: ignore[no-any-return]
