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
from nmlearn.maths.groups import misfit
from nmlearn.maths.pattern import Pattern
from nmlearn.packed.kernels import checks, dispatch, layouts, semi_structured, triton_decode

Maybe = Tensor | None


def _decode_linear(x: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, n: int, m: int, rows: int) -> Tensor:
    pattern, columns = _check_decode(x, values, index, bias, n, m, rows), x.shape[-1]
    operands = {"x": x, "values": values, "index": index, "bias": bias}
    checks.check_memory(operands, "decode_linear")
    if not triton_decode.obstacle(x, pattern, rows, columns):
        return triton_decode.linear(x, values, index, bias, n, m, rows)
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
    _check_semi_structured(x, values, meta, bias, rows, backend)
    checks.check_memory({"x": x, "values": values, "meta": meta, "bias": bias}, "semi_structured_linear")
    weight = semi_structured.joined(values, meta, (rows, x.shape[-1]), backend, algorithm)
    return semi_structured.linear(x, weight, bias).contiguous()


def _fake_decode_linear(x: Tensor, values: Tensor, index: Tensor, bias: Maybe, n: int, m: int, rows: int) -> Tensor:
    _check_decode(x, values, index, bias, n, m, rows)
    return x.new_empty((*x.shape[:-1], rows))


def _fake_semi_structured_linear(
    x: Tensor, values: Tensor, meta: Maybe, bias: Maybe, rows: int, backend: semi_structured.Backend, algorithm: int
) -> Tensor:
    _check_semi_structured(x, values, meta, bias, rows, backend)
    return x.new_empty((*x.shape[:-1], rows))


def _check_decode(x: Tensor, values: Tensor, index: Tensor, bias: Maybe, n: int, m: int, rows: int) -> Pattern:
    """The pattern, of operands that fit each other; they may be fake.

    Raises:
        KernelError: they do not; PatternError: n and m are not a pattern.
    """
    pattern = Pattern(n, m)
    problem = _mismatch(x, values, bias, rows, layouts.WEIGHTS, index)
    if not problem and m not in triton_decode.GROUP_SIZES:
        problem = f"group size {m}, not 4, 8 or 16"
    problem = problem or misfit(tuple(x.shape[-1:]), 0, pattern)
    if not problem and not triton_decode.is_packed(values, index, pattern, rows, x.shape[-1]):
        problem = f"values and index are not a {pattern} weight of shape ({rows}, {x.shape[-1]})"
    _refuse("decode_linear", x, problem)
    return pattern


def _check_semi_structured(
    x: Tensor, values: Tensor, meta: Maybe, bias: Maybe, rows: int, backend: semi_structured.Backend
) -> None:
    problem = _mismatch(x, values, bias, rows, semi_structured.DTYPES, meta)
    if backend not in semi_structured.MULTIPLES:
        problem = f"there is no backend {backend!r}; choose from {', '.join(semi_structured.MULTIPLES)}"
    if not problem and rows > checks.LARGEST:
        problem = f"{rows} outputs, more than {checks.LARGEST}"
    shapes = (tuple(values.shape), None if meta is None else tuple(meta.shape))
    if not problem and backend == "cutlass" and shapes != ((rows, x.shape[-1] // 2), (rows, x.shape[-1] // 16)):
        problem = f"values and metadata of shapes {shapes} are not a weight of shape ({rows}, {x.shape[-1]})"
    if not problem and backend == "cusparselt" and (meta is not None or values.numel() * 2 < rows * x.shape[-1]):
        problem = f"values of shape {shapes[0]} are not a whole weight of shape ({rows}, {x.shape[-1]})"
    if not problem and not x.is_meta:  # which may stand for another device
        problem = semi_structured.obstacle(x, Pattern(2, 4), rows, x.shape[-1], backend)
    _refuse("semi_structured_linear", x, problem)


def _mismatch(x: Tensor, values: Tensor, bias: Maybe, rows: int, dtypes: tuple[torch.dtype, ...], other: Maybe) -> str:
    """Why tensors do not belong to one linear layer; empty if they do."""
    given = [t for t in (x, values, bias, other) if t is not None]
    if any(t.layout != torch.strided or t.device != x.device for t in given):
        return "the operands are not dense tensors on one device"
    if x.dtype != values.dtype or x.dtype not in dtypes:
        return f"the weight is {values.dtype} on {values.device}"
    if not x.dim() or rows < 0:
        return f"x has {x.dim()} dimensions, the weight {rows} outputs"
    if bias is not None and (tuple(bias.shape) != (rows,) or bias.dtype not in layouts.WEIGHTS):
        return f"the bias is {bias.dtype} {tuple(bias.shape)}, not floating-point ({rows},)"
    return ""


def _refuse(operator: str, x: Tensor, problem: str) -> None:
    if problem:
        given, where = f"x {x.dtype} {tuple(x.shape)} on {x.device}", f"torch.ops.nmlearn.{operator}"
        raise KernelError(
            where=where, given=given, wrong=problem, fix="cast, move or reshape x, or pack the weight again"
        )


def _to_weight(arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    """Packed values cannot change their dtype, so x is converted to it instead of autocast's."""
    x, values, *others = arguments
    return [dispatch.cast(x, values.dtype), values, *others]


decode_linear = dispatch.register(
    "decode_linear(Tensor x, Tensor values, Tensor index, Tensor? bias, int n, int m, int rows) -> Tensor",
    _decode_linear,
    _fake_decode_linear,
    lambda arguments, dtype: [dispatch.cast(t, dtype) for t in arguments],
)
semi_structured_linear = dispatch.register(
    "semi_structured_linear(Tensor x, Tensor values, Tensor? meta, Tensor? bias, int rows, str backend, int algorithm)"
    " -> Tensor",
    _semi_structured_linear,
    _fake_semi_structured_linear,
    _to_weight,
)
