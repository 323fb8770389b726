"""The GPU linear layers as operators, so that torch.compile and torch.export see one node for each.

``torch.ops.nmlearn.decode_linear`` multiplies by a weight that :mod:`nmlearn.packed.kernels.triton_decode` packed. What
its kernels do not support (more than 64 tokens, other devices) is computed by unpacking the weight: correct but slow.

``torch.ops.nmlearn.semi_structured_linear`` multiplies by the parts of one of torch's semi-structured tensors, only on
NVIDIA GPUs. Both are functional, follow torch.autocast and refuse derivatives.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import dispatch, semi_structured, triton_decode


def _decode_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, n: int, m: int, rows: int) -> Tensor:
    pattern, columns = Pattern(n, m), x.shape[-1] if x.dim() else 0
    if not triton_decode.obstacle(x, pattern, rows, columns):
        return triton_decode.linear(x, values, index, bias, n, m, rows)
    if x.dtype != values.dtype or x.device != values.device or not x.dim():
        raise KernelError(
            where="torch.ops.nmlearn.decode_linear",
            given=f"x {x.dtype} {tuple(x.shape)} on {x.device}",
            wrong=f"the weight is {values.dtype} on {values.device}",
            fix="cast, move or reshape x",
        )
    weight = triton_decode.unpack(values, index, pattern, rows, columns)
    return F.linear(x, weight, None if bias is None else bias.to(x.dtype)).contiguous()


def _semi_structured_linear(
    x: Tensor,
    values: Tensor,
    meta: Tensor | None,
    bias: Tensor | None,
    rows: int,
    backend: semi_structured.Backend,
    algorithm: int,
) -> Tensor:
    columns = x.shape[-1] if x.dim() else 0
    weight = semi_structured.joined(values, meta, (rows, columns), backend, algorithm)
    return semi_structured.linear(x, weight, bias).contiguous()


def _to_weight(arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    """Packed values cannot change their dtype, so x is converted to it instead of autocast's."""
    x, values, *others = arguments
    return [dispatch.cast(x, values.dtype), values, *others]


decode_linear = dispatch.register(
    "decode_linear(Tensor x, Tensor values, Tensor index, Tensor? bias, int n, int m, int rows) -> Tensor",
    _decode_linear,
    lambda x, values, index, bias, n, m, rows: x.new_empty((*x.shape[:-1], rows)),
    lambda arguments, dtype: [dispatch.cast(t, dtype) for t in arguments],
)
semi_structured_linear = dispatch.register(
    "semi_structured_linear(Tensor x, Tensor values, Tensor? meta, Tensor? bias, int rows, str backend, int algorithm)"
    " -> Tensor",
    _semi_structured_linear,
    lambda x, values, meta, bias, rows, backend, algorithm: x.new_empty((*x.shape[:-1], rows)),
    _to_weight,
)
