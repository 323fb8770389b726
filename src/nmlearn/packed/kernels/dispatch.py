"""Registering packed operators with torch: what all of them do before their kernels run.

Derivatives are refused rather than dropped silently, and torch.autocast works as for torch's own layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nmlearn.errors import KernelError

BELOW = torch._C._after_ADInplaceOrView_keyset
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}
_OPERATORS = torch.library.Library("nmlearn", "FRAGMENT")
Kernel = Callable[..., Any]


def register(
    schema: str, kernel: Kernel, fake: Kernel, convert: Kernel, above: Kernel | None = None, tags: Any = ()
) -> Any:
    """Define an operator.

    Args:
        schema: with the operator's name.
        kernel, fake: called with the arguments, with and without their data.
        convert: maps arguments and autocast's dtype to the converted arguments.
        above: called with dispatch keys and arguments where gradients would be recorded; by default refuses those.
        tags: in addition to the one that all have.
    """
    name = schema.partition("(")[0]
    _OPERATORS.define(schema, tags=[torch.Tag.pt2_compliant_tag, *tags])
    operator = getattr(torch.ops.nmlearn, name).default
    _OPERATORS.impl(name, kernel, "CompositeExplicitAutograd")
    _OPERATORS.impl(name, above or partial(_above, operator), "Autograd", with_keyset=True)
    for device, key in _AUTOCAST.items():
        _OPERATORS.impl(name, partial(_autocast, operator, convert, device, getattr(torch._C.DispatchKey, key)), key)
    torch.library.register_fake(f"nmlearn::{name}", fake, lib=_OPERATORS)
    return operator


def below(operator: Any, keys: Any, arguments: Iterable[Any]) -> Any:
    """Refuse derivatives, then dispatch below autograd.

    Raises:
        KernelError: a tensor requires a gradient where gradients are recorded, or carries a forward-mode tangent.
    """
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    required = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    forward = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if required or forward:
        raise KernelError(
            where=f"torch.ops.{str(operator).removesuffix('.default')}",
            given=f"a tensor that {'requires a gradient' if required else 'carries a forward-mode derivative'}",
            wrong="packed weights are for inference and have no derivatives",
            fix="call the model under torch.inference_mode() or torch.no_grad(), or train the dense model",
        )
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keys & BELOW, *arguments)


def cast(t: Any, dtype: torch.dtype) -> Any:
    """Convert an argument as autocast does: floating-point tensors except float64."""
    floats = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
    return t.to(dtype) if floats else t


def _above(operator: Any, keys: Any, *arguments: Any) -> Any:
    return below(operator, keys, arguments)


def _autocast(operator: Any, convert: Kernel, device: str, key: Any, *arguments: Any) -> Any:
    with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key)):
        return operator(*convert(arguments, torch.get_autocast_dtype(device)))
