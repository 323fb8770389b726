"""What all packed operators do above their kernels: no gradients, and autocast as torch's own layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from nmlearn.errors import KernelError

BELOW = torch._C._after_ADInplaceOrView_keyset
_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def refuse_gradients(operator: str, arguments: Iterable[Any]) -> None:
    """Say that a packed layer computes no derivative, rather than stop it silently.

    Raises:
        KernelError: a tensor requires a gradient where gradients are recorded, or carries a forward-mode tangent.
    """
    tensors = [t for t in arguments if isinstance(t, Tensor)]
    required = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    forward = forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)
    if required or forward:
        raise KernelError(
            where=f"torch.ops.nmlearn.{operator}",
            given=f"a tensor that {'requires a gradient' if required else 'carries a forward-mode derivative'}",
            wrong="packed weights are for inference and compute none",
            fix="call the model under torch.inference_mode() or torch.no_grad(), or train the dense model",
        )


def without_gradients(library: torch.library.Library, name: str) -> None:
    """Refuse gradients of an operator before its kernels are asked."""

    def kernel(keys: Any, *arguments: Any) -> Any:
        refuse_gradients(name, arguments)
        return below(getattr(torch.ops.nmlearn, name).default, keys, arguments)

    library.impl(name, kernel, "Autograd", with_keyset=True)


def below(operator: Any, keys: Any, arguments: Iterable[Any]) -> Any:
    """Go on with what the dispatcher would do if gradients did not exist."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.redispatch(keys & BELOW, *arguments)


def cast(t: Any, dtype: torch.dtype) -> Any:
    """What autocast does with an argument: floating-point tensors but float64 are converted."""
    floats = isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
    return t.to(dtype) if floats else t


def autocast(library: torch.library.Library, name: str, convert: Callable[[list[Any], torch.dtype], list[Any]]) -> None:
    """Convert an operator's arguments under torch.autocast, on CPUs and CUDA GPUs."""

    def on(device: str, keys: Any) -> Callable[..., Any]:
        def kernel(*arguments: Any) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(keys):
                operator = getattr(torch.ops.nmlearn, name).default
                return operator(*convert(list(arguments), torch.get_autocast_dtype(device)))

        return kernel

    for device, key in _AUTOCAST.items():
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
        library.impl(name, on(device, keys), key)
