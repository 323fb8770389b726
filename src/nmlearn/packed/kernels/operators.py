"""Schemas, fakes and dispatch of the packed operators; their documentation is the package's."""

from __future__ import annotations

import functools
from ctypes import CDLL, byref

import torch
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.pattern import Pattern
from nmlearn.native import library as native
from nmlearn.packed.kernels import layouts, reference
from nmlearn.packed.kernels.layouts import Form

ACTIVATIONS = ("none", "relu", "gelu", "silu")
_DTYPE = {(torch.float32, False): 0, (torch.bfloat16, False): 1, (torch.float32, True): 2, (torch.bfloat16, True): 3}
_MOST_TAPS = 64  # csrc/row_lanes.h

_OPERATORS = torch.library.Library("nmlearn", "FRAGMENT")
_PACKED = "Tensor values, Tensor index, Tensor? scale, Tensor? bias, Tensor? residual, int n, int m, int rows"
_OPERATORS.define(
    f"packed_linear(Tensor x, {_PACKED}, str layout, str activation) -> Tensor", tags=[torch.Tag.pt2_compliant_tag]
)
_OPERATORS.define(
    f"packed_conv2d(Tensor x, {_PACKED}, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "str layout, str activation) -> Tensor",
    tags=[torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order],
)


def _linear(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    n: int,
    m: int,
    rows: int,
    layout: layouts.Layout,
    activation: str,
) -> Tensor:
    key = (_known(x, values, index, scale, bias, residual), n, m, rows, layout, activation)
    known = _CALLS.get(key)  # in one step: another thread may be emptying it
    if known is not None:
        return known(x, values, index, scale, bias, residual)
    size = x.shape[:-1]
    _check("packed_linear", x, values, index, scale, bias, residual, (*size, rows), rows, layout, activation)
    channels = x.shape[-1]
    form = _form(n, m, 1, rows, channels, ())
    _check_sizes("packed_linear", values, index, form, layout)
    compiled = _compiled(x, scale, layout)
    if compiled is None:
        weight = reference.dense(values, index, scale, form, layout)
        return reference.linear(x, weight, bias, residual, activation).contiguous()
    y = x.new_empty((*size, rows))
    if not x.numel() or not rows:
        return y
    lib, dtype = compiled
    shape = _linear_shape(x.numel() // channels, form, ACTIVATIONS.index(activation), dtype)
    call = _remember(key, _Call(lib, layout, shape, y, torch.contiguous_format, None))
    return call(x, values, index, scale, bias, residual)


def _conv2d(
    x: Tensor,
    values: Tensor,
    index: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    n: int,
    m: int,
    rows: int,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    layout: layouts.Layout,
    activation: str,
) -> Tensor:
    geometry = (tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups)
    key = (_known(x, values, index, scale, bias, residual), n, m, rows, *geometry, layout, activation)
    known = _CALLS.get(key)  # in one step: another thread may be emptying it
    if known is not None:
        return known(x, values, index, scale, bias, residual)
    size = _output_size(x, rows, kernel, stride, padding, dilation, groups)
    _check("packed_conv2d", x, values, index, scale, bias, residual, size, rows, layout, activation)
    form = _form(n, m, groups, rows // groups, x.shape[1] // groups, tuple(kernel))
    _check_sizes("packed_conv2d", values, index, form, layout)
    compiled = _compiled(x, scale, layout)
    images = _memory_format(x, layout)
    if compiled is None or form.taps > _MOST_TAPS:
        weight = reference.dense(values, index, scale, form, layout)
        y = reference.conv2d(x, weight, bias, residual, stride, padding, dilation, groups, activation)
        return y.contiguous(memory_format=images)
    y = torch.empty(size, dtype=x.dtype, memory_format=images)
    if not y.numel() or not x.numel():
        return y
    lib, dtype = compiled
    places = (tuple(x.shape[2:]), tuple(size[2:]), tuple(stride), tuple(padding), tuple(dilation))
    first = images == torch.contiguous_format
    shape = _conv_shape(x.shape[0], form, places, ACTIVATIONS.index(activation), dtype, first)
    zeros = _zeros(form.channels, x.dtype) if any(padding) else None
    call = _remember(key, _Call(lib, layout, shape, y, images, zeros))
    return call(x, values, index, scale, bias, residual)


def _compiled(x: Tensor, scale: Tensor | None, layout: str) -> tuple[CDLL, int] | None:
    """The library, and its code for these dtypes; None where the reference kernel has to do it."""
    lib = native.library() if x.device.type == "cpu" else None
    dtype = _DTYPE.get((x.dtype, scale is not None))
    if lib is None or dtype is None or (layout == "tokens" and scale is not None):
        return None
    return lib, dtype


def _known(*operands: Tensor | None) -> tuple[object, ...]:
    """All that the checks below ask of operands, so that what has passed them once passes without them."""
    return tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.is_cpu) for t in operands)


class _Call:
    """A checked call of a compiled kernel for operands of these shapes, strides and dtypes."""

    def __init__(
        self, lib: CDLL, layout: str, shape: native.Shape, y: Tensor, images: torch.memory_format, zeros: Tensor | None
    ) -> None:
        self.run, self.kernel = lib.nm_run, native.KERNELS[layout]
        self.size, self.stride, self.dtype, self.images = y.shape, y.stride(), y.dtype, images
        self.reference = byref(shape)
        self.zeros = zeros
        self.zero_place = None if zeros is None else zeros.data_ptr()

    def __call__(
        self,
        x: Tensor,
        values: Tensor,
        index: Tensor,
        scale: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
    ) -> Tensor:
        x = x.contiguous(memory_format=self.images)
        residual = None if residual is None else residual.contiguous(memory_format=self.images)
        y = torch.empty_strided(self.size, self.stride, dtype=self.dtype)
        torch.get_num_threads()  # sets OpenMP up in a thread of the user's in which torch has not computed before
        status = self.run(
            self.kernel,
            self.reference,
            x.data_ptr(),
            values.data_ptr(),
            index.data_ptr(),
            None if scale is None else scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
            None if residual is None else residual.data_ptr(),
            y.data_ptr(),
            self.zero_place,
        )
        if status:
            raise MemoryError("nmlearn: a packed operator found no memory for its tile")
        return y


_CALLS: dict[object, _Call] = {}
_MOST_CALLS = 4096  # a server that sees every length of text begins anew now and then


def _remember(key: object, call: _Call) -> _Call:
    if len(_CALLS) >= _MOST_CALLS:
        _CALLS.clear()
    _CALLS[key] = call
    return call


def known(*arguments: object) -> _Call | None:
    """The call that an operator remembered for these arguments, all of them in its schema's order."""
    return _CALLS.get((_known(*arguments[:6]), *arguments[6:]))  # type: ignore[arg-type]


def _form(n: int, m: int, groups: int, rows: int, channels: int, kernel: tuple[int, ...]) -> Form:
    return Form(Pattern(n, m), groups, rows, channels, kernel)


def _linear_shape(tokens: int, form: Form, activation: int, dtype: int) -> native.Shape:
    sizes = dict.fromkeys(native.SIZES, 1) | {"pad_h": 0, "pad_w": 0, "batch": tokens} | _weight(form)
    return native.Shape(**sizes, activation=activation, dtype=dtype)


def _conv_shape(
    batch: int, form: Form, places: tuple[tuple[int, ...], ...], activation: int, dtype: int, first: bool
) -> native.Shape:
    size, out, stride, padding, dilation = places
    pairs = {"kernel": form.kernel, "stride": stride, "pad": padding, "dilation": dilation}
    pixels = {f"{name}_{side}": pair[i] for name, pair in pairs.items() for i, side in enumerate("hw")}
    images = {"height": size[0], "width": size[1], "out_height": out[0], "out_width": out[1], "images": int(first)}
    return native.Shape(
        batch=batch, groups=form.groups, **images, **pixels, **_weight(form), activation=activation, dtype=dtype
    )


def _weight(form: Form) -> dict[str, int]:
    n, m = form.pattern.n, form.pattern.m
    return {"channels": form.channels, "rows": form.rows, "n": n, "m": m, "tile": layouts.tile_of(form)}


@functools.lru_cache(maxsize=64)
def _zeros(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(channels, dtype=dtype)


def _memory_format(x: Tensor, layout: str) -> torch.memory_format:
    if layout == "rows" or not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _output_size(
    x: Tensor, rows: int, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> tuple[int, ...]:
    if x.dim() != 4 or groups < 1 or x.shape[1] % groups or rows % groups:
        _refuse("packed_conv2d", "x", tuple(x.shape), f"not [batch, channels, height, width] in {groups} groups")
    sides = []
    for i in range(2):
        reach = dilation[i] * (kernel[i] - 1) + 1
        sides.append((x.shape[2 + i] + 2 * padding[i] - reach) // stride[i] + 1)
    if min(sides) < 1:
        _refuse("packed_conv2d", "x", tuple(x.shape), f"images smaller than the kernel {tuple(kernel)}")
    return (x.shape[0], rows, *sides)


def _check(  # type: ignore[no-untyped-def]
    operator, x, values, index, scale, bias, residual, size, rows, layout, activation
) -> None:
    if activation not in ACTIVATIONS:
        _refuse(
            operator, "activation", activation, f"there is no such activation; choose from {', '.join(ACTIVATIONS)}"
        )
    if layout not in native.KERNELS:
        _refuse(operator, "layout", layout, f"there is no such layout; choose from {', '.join(native.KERNELS)}")
    if not x.is_floating_point() or x.dim() < 1:
        _refuse(operator, "x", f"{x.dtype}, {x.dim()}-D", "activations are a floating-point tensor")
    expected = torch.int8 if scale is not None else x.dtype
    for name, tensor, dtype in (("values", values, expected), ("bias", bias, x.dtype), ("residual", residual, x.dtype)):
        if tensor is not None and (tensor.dtype != dtype or tensor.device != x.device):
            given = f"{tensor.dtype} on {tensor.device}"
            _refuse(operator, name, given, f"with x of {x.dtype} on {x.device} it has to be {dtype} there")
    if index.device != x.device or index.dtype != (torch.int32 if layout == "rows" else torch.uint8):
        _refuse(
            operator, "index", f"{index.dtype} on {index.device}", f"not the index of the layout {layout} on {x.device}"
        )
    for name, tensor in (("bias", bias), ("scale", scale)):
        if tensor is not None and (tuple(tensor.shape) != (rows,) or not tensor.is_contiguous()):
            _refuse(
                operator, name, tuple(tensor.shape), f"it has to be contiguous with one number for each of {rows} rows"
            )
    if scale is not None and (scale.dtype != torch.float32 or scale.device != x.device):
        _refuse(operator, "scale", f"{scale.dtype} on {scale.device}", f"it has to be float32 on {x.device}")
    if residual is not None and tuple(residual.shape) != tuple(size):
        _refuse(operator, "residual", tuple(residual.shape), f"the output has the shape {tuple(size)}")


def _check_sizes(operator: str, values: Tensor, index: Tensor, form: Form, layout: layouts.Layout) -> None:
    why = layouts.refusal(layout, form)
    if why:
        _refuse(operator, "x", f"{form.channels} channels", why)
    sizes = layouts.sizes(form, layout)
    for name, tensor, size in (("values", values, sizes[0]), ("index", index, sizes[1])):
        if tuple(tensor.shape) != size or not tensor.is_contiguous():
            wrong = f"a weight {form.pattern} of shape {form.shape} has contiguous {name} of shape {size}"
            _refuse(operator, name, f"shape {tuple(tensor.shape)}", wrong)


def _refuse(operator: str, name: str, given: object, wrong: str) -> None:
    fix = "make the call through PackedLinear or PackedConv2d, which keep these in step"
    raise KernelError(where=f"torch.ops.nmlearn.{operator}, {name}", given=given, wrong=wrong, fix=fix)


def _fake_linear(x, values, index, scale, bias, residual, n, m, rows, layout, activation):  # type: ignore[no-untyped-def]
    size = (*x.shape[:-1], rows)
    _check("packed_linear", x, values, index, scale, bias, residual, size, rows, layout, activation)
    return x.new_empty(size)


def _fake_conv2d(  # type: ignore[no-untyped-def]
    x, values, index, scale, bias, residual, n, m, rows, kernel, stride, padding, dilation, groups, layout, activation
):
    size = _output_size(x, rows, kernel, stride, padding, dilation, groups)
    _check("packed_conv2d", x, values, index, scale, bias, residual, size, rows, layout, activation)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=_memory_format(x, layout))


for _name, _real, _fake in (("packed_linear", _linear, _fake_linear), ("packed_conv2d", _conv2d, _fake_conv2d)):
    _OPERATORS.impl(_name, _real, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nmlearn::{_name}", _fake, lib=_OPERATORS)

packed_linear = torch.ops.nmlearn.packed_linear.default
packed_conv2d = torch.ops.nmlearn.packed_conv2d.default
