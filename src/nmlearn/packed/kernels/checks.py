"""What the packed operator requires of its arguments; every error names the argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from nmlearn.errors import KernelError
from nmlearn.maths.pattern import Pattern
from nmlearn.native import library as native
from nmlearn.packed.kernels import layouts
from nmlearn.packed.kernels.layouts import Form, Layout

ACTIVATIONS = ("none", "relu", "gelu", "silu")
LINEAR = (1, 1, 1, 1, 0, 0, 1, 1)  # kernel, stride, padding and dilation of a linear layer
LARGEST = 2**31 - 1  # of a kernel, stride, padding, dilation; sums of their products fit into 64 bits
_MOST_PIXELS = 2**46  # of all channels of an output image: more than there are addresses


class Operands(NamedTuple):
    """The tensors of a call, in the schema's order."""

    x: Tensor
    values: Tensor
    index: Tensor  # type: ignore[assignment]  # (hides tuple.index, which is not needed)
    scale: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


class Settings(NamedTuple):
    """The other arguments of a call, in the schema's order."""

    n: int
    m: int
    rows: int
    groups: int
    images: bool
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int
    layout: Layout
    activation: str

    @property
    def places(self) -> tuple[int, ...]:
        """Kernel, stride, padding and dilation."""
        return self[5:13]

    @property
    def kernel(self) -> tuple[int, int]:
        return self[5:7]


def check(given: Operands, s: Settings) -> tuple[tuple[int, ...], Form]:
    """The shape of the output, and the form of the dense weight; operands may be fake tensors.

    Raises:
        KernelError: an argument has a wrong type, device, shape or value; PatternError: n and m are not a pattern.
    """
    x = given.x
    for name, word, known in (("activation", s.activation, ACTIVATIONS), ("layout", s.layout, tuple(native.KERNELS))):
        if word not in known:
            _refuse(name, repr(word), f"there is no such {name}; choose from {', '.join(known)}")
    _check_types(given, s.layout)
    size = _output_size(x, s)
    channels = x.shape[1] // s.groups if s.images else x.shape[-1]
    form = Form(Pattern(s.n, s.m), s.groups, s.rows // s.groups, channels, s.kernel)
    why = layouts.refusal(s.layout, form)
    if why:
        _refuse("x", f"{form.channels} channels", why)
    values, index = layouts.sizes(form, s.layout)
    if s.layout == "bytes" and s.places != LINEAR:
        _refuse("stride", s.places, "byte lanes are for linear layers and 1x1 convolutions without stride and padding")
    scale = (2, s.rows) if s.layout == "bytes" else (s.rows,)
    whole = f"a {form.pattern} weight of shape {form.shape} has contiguous"
    each = f"it must be contiguous with one number for each of {s.rows} rows"
    for name, expected, wrong in (
        ("values", values, f"{whole} values of shape {values}"),
        ("index", index, f"{whole} index of shape {index}"),
        ("bias", (s.rows,), each),
        ("scale", scale, f"it must be contiguous, of shape {scale}"),
        ("residual", size, f"the output has the shape {size}"),
    ):
        t = getattr(given, name)
        if t is not None and (tuple(t.shape) != expected or not (t.is_contiguous() or name == "residual")):
            _refuse(name, f"shape {tuple(t.shape)}", wrong)
    return size, form


def _check_types(given: Operands, layout: Layout) -> None:
    x = given.x
    if x.dtype not in layouts.WEIGHTS:
        _refuse("x", x.dtype, "activations are a floating-point tensor of 16 bits or more")
    if layout == "bytes" and given.scale is None:
        _refuse("scale", None, "byte lanes have int8 values with a scale for each row")
    values, index = torch.int8 if given.scale is not None else x.dtype, torch.int32 if layout == "rows" else torch.uint8
    for name, t, dtype in zip(
        given._fields, given, (x.dtype, values, index, torch.float32, x.dtype, x.dtype), strict=True
    ):
        if t is not None and (t.dtype != dtype or t.device != x.device or t.layout != torch.strided):
            wrong = f"for {x.dtype} x on {x.device} in layout {layout} it must be {dtype}, dense, on the same device"
            _refuse(name, f"{t.dtype}, {t.layout}, on {t.device}", wrong)


def _output_size(x: Tensor, s: Settings) -> tuple[int, ...]:
    for name, given in zip(s._fields[5:13], s.places, strict=True):
        least = 0 if name.startswith("padding") else 1
        if not least <= given <= LARGEST:
            _refuse(name, given, f"it must be from {least} to {LARGEST}")
    if s.groups < 1 or s.rows < 0 or s.rows % s.groups:
        _refuse("groups", f"{s.groups} groups of {s.rows} rows", "rows come in equal convolution groups, at least one")
    if not s.images:
        if x.dim() < 1 or (s.groups, *s.places) != (1, *LINEAR):
            _refuse("x", f"{tuple(x.shape)}, not images", "a linear layer is a 1x1 convolution of [..., channels]")
        return (*x.shape[:-1], s.rows)
    if x.dim() != 4 or x.shape[1] % s.groups:
        _refuse("x", tuple(x.shape), f"not [batch, channels, height, width] in {s.groups} groups")
    sides = [
        (length + 2 * pad - dilation * (taps - 1) - 1) // step + 1
        for length, taps, step, pad, dilation in zip(x.shape[2:], s[5:7], s[7:9], s[9:11], s[11:13], strict=True)
    ]
    if min(sides) < 1:
        _refuse("x", tuple(x.shape), f"images smaller than the kernel {s.kernel}")
    if s.rows * sides[0] * sides[1] > _MOST_PIXELS:
        _refuse("padding", f"{s.padding_h} x {s.padding_w}", f"images of {sides[0]} x {sides[1]} fit into no memory")
    return (x.shape[0], s.rows, *sides)


def check_tensors(given: tuple[Any, ...]) -> None:
    """Refuse what is no tensor where the schema has one, which torch would do without a name.

    Raises:
        KernelError: by the operand's name.
    """
    for name, t in zip(Operands._fields, given, strict=True):
        if not isinstance(t, Tensor) and (t is not None or name in ("x", "values", "index")):
            _refuse(name, type(t).__name__, "it must be a tensor")


def check_memory(given: Mapping[str, Tensor | None], operator: str = "packed") -> None:
    """Refuse a tensor whose storage has become smaller than the tensor, which torch itself does not check.

    Raises:
        KernelError: by the tensor's name.
    """
    for name, t in given.items():
        if t is None or not t.is_cpu or not t.numel():
            continue
        last = t.storage_offset() + sum((length - 1) * step for length, step in zip(t.shape, t.stride(), strict=True))
        available, needed = t.untyped_storage().nbytes(), (last + 1) * t.element_size()
        if available < needed:
            _refuse(name, f"a tensor of {needed} bytes", f"its storage was resized to {available}", operator)


def _refuse(name: str, given: object, wrong: str, operator: str = "packed") -> NoReturn:
    fix = "make the call through a packed layer, which keeps these consistent"
    raise KernelError(where=f"torch.ops.nmlearn.{operator}, {name}", given=given, wrong=wrong, fix=fix)
