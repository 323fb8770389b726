"""Checked calls of the compiled kernels: what passed the checks once is not checked again.

A call is looked up by shapes and settings. One of torch.compile's own guards compares the rest in a quarter of a
microsecond: sizes, strides, types and devices of every operand, and what torch's dispatcher would do on the way to the
kernel (modes, transforms, autocast, gradients). Where torch has no such guard, every call is checked.
"""

from __future__ import annotations

from ctypes import CDLL, byref
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from nmlearn.native import library as native
from nmlearn.packed.kernels import checks
from nmlearn.packed.kernels.checks import Operands

Maybe = Tensor | None
_CPU = torch.device("cpu")  # explicit, as another device may be the default
_Guard = getattr(torch._C._dynamo.guards, "TensorGuards", None)
_MOST_CALLS = 4096  # then all are forgotten: a server may see texts of every length
_MOST_GUARDS = 4  # per call: with and without gradients, images of other strides


class Call:
    """A call of a compiled kernel for operands of these shapes and types."""

    guards: tuple[Any, ...] = ()

    def __init__(
        self, lib: CDLL, kernel: str, shape: native.Shape, y: Tensor, images: torch.memory_format, zeros: Maybe
    ) -> None:
        self.run, self.kernel, self.shape = lib.nm_run, native.KERNELS[kernel], byref(shape)
        self.size, self.stride, self.dtype, self.images = y.shape, y.stride(), y.dtype, images
        self.zeros = zeros
        self.zero_place = None if zeros is None else zeros.data_ptr()

    def __call__(self, x: Tensor, values: Tensor, index: Tensor, scale: Maybe, bias: Maybe, residual: Maybe) -> Tensor:
        weights = (
            values.data_ptr(),
            index.data_ptr(),
            None if scale is None else scale.data_ptr(),
            None if bias is None else bias.data_ptr(),
        )
        added = None if residual is None else residual.data_ptr()
        if 0 in weights or x.data_ptr() == 0 or added == 0:  # a storage was resized to nothing
            checks.check_memory(Operands(x, values, index, scale, bias, residual)._asdict())
        x = x.contiguous(memory_format=self.images)
        if residual is not None:
            residual = residual.contiguous(memory_format=self.images)
            added = residual.data_ptr()
        y = torch.empty_strided(self.size, self.stride, dtype=self.dtype, device=_CPU)
        torch.get_num_threads()  # sets up OpenMP in user threads in which torch has not computed yet
        if self.run(self.kernel, self.shape, x.data_ptr(), *weights, added, y.data_ptr(), self.zero_place):
            raise MemoryError("nmlearn: out of memory for the tile of a packed operator")
        return y


_CALLS: dict[object, Call] = {}


def find(operands: tuple[Maybe, ...], settings: tuple[object, ...]) -> Call | None:
    """The call checked earlier for such operands in this state of torch's dispatcher; None if there is none."""
    # The guards miss some of torch's modes, and tangents.
    if type(operands[0]) is not Tensor or forward_ad._current_level >= 0 or torch._C._len_torch_dispatch_stack():
        return None
    try:
        call = _CALLS.get(_key(operands, settings))  # a single lookup: another thread may be clearing it
        if call is not None:
            given = [t for t in operands if t is not None]
            for guard in call.guards:
                if guard.check(*given):
                    return call
    except (RuntimeError, TypeError):  # a layout without strides, None for a weight: the checks name it
        return None
    return None


def remember(operands: tuple[Maybe, ...], settings: tuple[object, ...], call: Call) -> None:
    """Keep a call whose operands have passed the checks."""
    if len(_CALLS) >= _MOST_CALLS:
        _CALLS.clear()
    _CALLS.setdefault(_key(operands, settings), call)
    trust(operands, settings)


def trust(operands: tuple[Maybe, ...], settings: tuple[object, ...]) -> None:
    """Let :func:`find` return the existing call for these operands in this thread's dispatcher state."""
    given = [t for t in operands if t is not None]
    call = _CALLS.get(_key(operands, settings)) if type(operands[0]) is Tensor else None
    plain = all(type(t) in (Tensor, nn.Parameter) and not t.requires_grad for t in given)
    if call is not None and plain and _Guard is not None:
        guard = _Guard(*given, dynamic_dims_sizes=None, dynamic_dims_strides=None)
        call.guards = (guard, *call.guards[: _MOST_GUARDS - 1])


def _key(operands: tuple[Maybe, ...], settings: tuple[object, ...]) -> object:
    """What identifies a call: nothing else about the operands changes it."""
    x, _, _, scale, bias, residual = operands
    assert x is not None
    return x.shape, x.dtype, x.is_contiguous(), scale is None, bias is None, residual is None, settings
