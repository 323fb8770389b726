"""Tries layers that have a forward of their own: do they multiply with zero where their weight is zero?"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from nmlearn.maths import noise

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def has_own_forward(layer: nn.Module) -> bool:
    """Whether a linear layer or convolution computes in another way than the class of torch that it derives from."""
    if not isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
        return False
    base = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.modules."))
    methods = ("forward", "_conv_forward")
    return any(getattr(type(layer), name, None) is not getattr(base, name, None) for name in methods)


def keeps_zeros(layer: nn.Module) -> bool | None:
    """Whether the output does not depend on an input channel for which the weight is zero.

    A copy of the layer is called twice, in eval mode, on the layer's device and in its dtype. The layer, its hooks and
    buffers and the states of random generators stay as they are.

    Args:
        layer: one that :func:`has_own_forward`.

    Returns:
        None where it could not be tried: meta tensors, sharded weights, a forward that fails or takes something else.
    """
    tensors = [*layer.parameters(), *layer.buffers()]
    if not all(type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta for tensor in tensors):
        return None
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(_without_hooks(layer)).eval()
            # Whole numbers of one size: their sums are exact in any order, and the zero stands out.
            weight: Tensor = twin.weight  # type: ignore[assignment]
            weight.fill_(1).select(0 if isinstance(twin, _TRANSPOSED) else 1, 0).zero_()
            if _is_silent(twin):  # by a gain that starts at zero, as in the last layer of a branch
                for parameter in twin.parameters():
                    parameter.copy_(torch.where(parameter.any(), parameter, 1))
            one, other = (_call(twin, _input(twin, first)) for first in (0.25, -0.25))
            return torch.equal(one, other) if bool(one.isfinite().all()) else None
    except Exception:  # it is the forward of somebody else
        return None


def computes_as_its_class(layer: nn.Module) -> bool:
    """Whether its own forward gives what the class of torch that it derives from gives, for an input of noise.

    Hooks see the input of a forward; this says that it is what the weight is multiplied with. The layer stays as it is.

    Args:
        layer: one that :func:`has_own_forward`; False where it cannot be tried.
    """
    base = next(kind for kind in type(layer).__mro__ if kind.__module__.startswith("torch.nn.modules."))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            twin = copy.deepcopy(_without_hooks(layer)).eval()
            x = _input(twin, 1.0)
            x = torch.cat([x, x], dim=-1) if isinstance(twin, _CONVOLUTIONS) else x  # dynamic padding shows there
            for tensor in (x, twin.weight):
                _fill_with_noise(tensor)  # type: ignore[arg-type]
            own, theirs = _call(twin, x), base.forward(twin, x)  # type: ignore[attr-defined]
            return own.shape == theirs.shape and bool((own - theirs).abs().max() <= 0.02 * theirs.abs().max())
    except Exception:  # it is the forward of somebody else, and another shape is an answer too
        return False


def _is_silent(layer: nn.Module) -> bool:
    """Whether the output is the same for an input of noise and for its opposite."""
    x = _input(layer, 1.0)
    _fill_with_noise(x)
    return torch.equal(_call(layer, x), _call(layer, -x))


def _fill_with_noise(tensor: Tensor) -> None:
    tensor.copy_(noise.normal(tuple(tensor.shape), 0, 0, "trial"))


def _without_hooks(layer: nn.Module) -> nn.Module:
    """A shallow copy without hooks, which may hold on to the whole model."""
    bare = copy.copy(layer)
    vars(bare).update({name: value for name, value in vars(nn.Module()).items() if "hook" in name})
    bare._modules = {name: child and _without_hooks(child) for name, child in layer._modules.items()}
    return bare


def _input(layer: nn.Module, first: float) -> Tensor:
    """The tried value in the first input channel, and larger ones of both signs in others: quantizers scale by them."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if isinstance(layer, nn.Linear):
        x = weight.new_zeros(2, layer.in_features)
    else:
        assert isinstance(layer, _CONVOLUTIONS)
        sizes = (apart * (taps - 1) + 1 for taps, apart in zip(layer.kernel_size, layer.dilation, strict=True))
        x = weight.new_zeros(1, layer.in_channels, *sizes)
    x[:, 0], x[:, 1:2], x[:, 2:3] = first, 1, -1
    return x


def _call(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of the class's forward; one that was put onto the instance may be bound to another layer."""
    devices = [] if x.device.type == "cpu" else [x.device]
    with torch.random.fork_rng(devices, device_type=x.device.type if devices else "cuda"):
        out = type(layer).forward(layer, x)
    first: Tensor = out[0] if isinstance(out, tuple) else out
    return first
