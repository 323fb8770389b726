"""A shortcut past torch's dispatcher for a packed layer called as before: half of what a small call costs.

The dispatcher is what tracing, transforms, fake tensors and the profiler listen to; where one of them does, the
operator is called as any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Operands = tuple[Tensor | None, ...]
Call = Callable[..., Tensor]


class Shortcut:
    """The checked calls of one packed layer, by what its inputs are like. A copy of a layer begins with none."""

    def __init__(self) -> None:
        self._operands: Operands = ()
        self._calls: dict[object, Call] = {}

    def find(self, x: Tensor, residual: Tensor | None, operands: Operands) -> Call | None:
        """The call for such plain inputs and these very operands; None where the operator has to be called."""
        call = self._calls.get(_like(x, residual))
        known = self._operands  # read once: other threads call this layer, too
        if call is None or len(operands) != len(known) or _listened():
            return None
        return call if all(mine is theirs for mine, theirs in zip(known, operands, strict=True)) else None

    def keep(self, x: Tensor, residual: Tensor | None, operands: Operands, call: Call | None) -> None:
        """Remember the call that the operator made for such plain inputs."""
        if call is None or not x.is_cpu:
            return
        if any(mine is not theirs for mine, theirs in zip(self._operands, operands, strict=False)):
            self.clear()
        if len(self._calls) >= 256:  # a server that sees every length of text begins anew now and then
            self._calls.clear()
        self._operands = operands
        self._calls[_like(x, residual)] = call

    def clear(self) -> None:
        self._operands, self._calls = (), {}

    def __deepcopy__(self, memory: object) -> Shortcut:
        return Shortcut()

    def __reduce__(self) -> tuple[Any, ...]:
        return Shortcut, ()


def is_plain(x: Tensor | None) -> bool:
    """Whether what a tensor's memory holds is the tensor: no subclass, and no negation still to be done."""
    return x is None or (type(x) is Tensor and not x.is_neg())


def _like(x: Tensor, residual: Tensor | None) -> object:
    like = (x.shape, x.stride(), x.dtype, x.is_cpu)
    return like if residual is None else (like, residual.shape, residual.stride(), residual.dtype, residual.is_cpu)


def _listened() -> bool:
    """Whether a mode, a transform or the profiler has to see the operators that are called now."""
    return _modes() not in _NO_MODES or bool(torch._C._autograd._profiler_enabled())


def _modes() -> int:
    """The dispatch keys that this thread adds to those of the tensors."""
    return int(torch._C._dispatch_tls_local_include_set().raw_repr())


def _without_modes() -> frozenset[int]:
    with torch.inference_mode(True):
        inference = _modes()
    with torch.inference_mode(False):
        return frozenset({inference, _modes()})


_NO_MODES = _without_modes()
