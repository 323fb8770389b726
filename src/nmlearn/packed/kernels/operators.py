"""Schema, fake and dispatch of the packed operator; the package documents it."""

from __future__ import annotations

import functools
from ctypes import CDLL
from typing import Any

import torch
from torch import Tensor

from nmlearn.native import library as native
from nmlearn.packed.kernels import calls, checks, dispatch, reference
from nmlearn.packed.kernels.checks import ACTIVATIONS, Operands, Settings
from nmlearn.packed.kernels.layouts import Form, tile_of

_DTYPE = {(torch.float32, False): 0, (torch.bfloat16, False): 1, (torch.float32, True): 2, (torch.bfloat16, True): 3}
_MOST_TAPS = 64  # csrc/row_lanes.h

_SCHEMA = (
    "packed(Tensor x, Tensor values, Tensor index, Tensor? scale, Tensor? bias, Tensor? residual, int n, int m, "
    "int rows, int groups, bool images, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int dilation_h, int dilation_w, str layout, str activation) -> Tensor"
)


def packed(operands: tuple[Any, ...], settings: tuple[Any, ...]) -> Tensor:
    """The operator, for layers.

    A repeated call skips torch's dispatcher, part of the cost of a small call, unless the profiler or a torch function
    mode is active; everything else that observes calls is part of the dispatcher's state.
    """
    if not torch.compiler.is_compiling():
        call = calls.find(operands, settings)
        observed = torch._C._autograd._profiler_enabled() or torch._C._is_torch_function_mode_enabled()
        if call is not None and not observed:
            return call(*operands)
    checks.check_tensors(operands)
    y: Tensor = operator(*operands, *settings)
    return y


def _above(keys: Any, *arguments: Any) -> Tensor:
    """Where gradients would be recorded: refuse them, or continue to the kernel."""
    operands, settings = arguments[:6], arguments[6:]
    call = calls.find(operands, settings)
    if call is not None:
        return call(*operands)
    y: Tensor = dispatch.below(operator, keys, arguments)
    if (keys & dispatch.BELOW).highestPriorityTypeId() == torch._C.DispatchKey.CPU:  # with nothing in between
        calls.trust(operands, settings)
    return y


def _real(*arguments: Any) -> Tensor:
    operands, settings = arguments[:6], arguments[6:]
    call = calls.find(operands, settings)
    if call is not None:
        return call(*operands)
    given, s = Operands(*operands), Settings(*settings)
    size, form = checks.check(given, s)
    checks.check_memory(given._asdict())
    compiled = _compiled(given, s, form)
    images = _memory_format(given.x, s)
    if compiled is None:
        return reference.call(given, s, form).contiguous(memory_format=images)
    y = torch.empty(size, dtype=given.x.dtype, device=given.x.device, memory_format=images)
    if not y.numel() or not given.x.numel():
        return y
    lib, dtype = compiled
    zeros = _zeros(form.channels, given.x.dtype) if s.padding_h or s.padding_w else None
    call = calls.Call(lib, s.layout, _shape(given.x, size, form, s, dtype), y, images, zeros)
    calls.remember(operands, settings, call)
    return call(*operands)


def _fake(*arguments: Any) -> Tensor:
    given, s = Operands(*arguments[:6]), Settings(*arguments[6:])
    size, _ = checks.check(given, s)
    return torch.empty(size, dtype=given.x.dtype, device=given.x.device, memory_format=_memory_format(given.x, s))


def _compiled(given: Operands, s: Settings, form: Form) -> tuple[CDLL, int] | None:
    """The library, and its code for these dtypes; None if only the reference kernel supports them."""
    lib = native.library() if given.x.is_cpu else None
    dtype = _DTYPE.get((given.x.dtype, given.scale is not None))
    if lib is None or dtype is None or (s.layout == "tokens" and given.scale is not None) or form.taps > _MOST_TAPS:
        return None
    return lib, dtype


def _shape(x: Tensor, size: tuple[int, ...], form: Form, s: Settings, dtype: int) -> native.Shape:
    """csrc/job.h, Shape; a linear layer is a 1x1 convolution of images of one pixel, its tokens."""
    images = (x.shape[0], *x.shape[2:], *size[2:]) if s.images else (x.numel() // form.channels, 1, 1, 1, 1)
    weight = (form.channels, form.rows, s.groups, *s.places, s.n, s.m)
    first = s.images and _memory_format(x, s) == torch.contiguous_format
    return native.Shape(*images, *weight, tile_of(form), ACTIVATIONS.index(s.activation), dtype, first)


@functools.lru_cache(maxsize=64)
def _zeros(channels: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(channels, dtype=dtype, device="cpu")


def _memory_format(x: Tensor, s: Settings) -> torch.memory_format:
    last = s.images and (s.layout != "tokens" or not x.is_contiguous())
    return torch.channels_last if last else torch.contiguous_format


def _converted(arguments: tuple[Any, ...], dtype: torch.dtype) -> list[Any]:
    """All but the scales of int8 values, which stay float32."""
    return [t if i == 3 else dispatch.cast(t, dtype) for i, t in enumerate(arguments)]


operator = dispatch.register(_SCHEMA, _real, _fake, _converted, _above, [torch.Tag.needs_fixed_stride_order])
