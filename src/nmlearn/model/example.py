"""Examples of a model's inputs: a tensor, a tuple of arguments or a dict of keyword arguments; and trying them."""

from __future__ import annotations

import contextlib
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


def caller(model: nn.Module, inputs: Any) -> Callable[[], Any] | None:
    """A call of the model with these inputs; None where they have none of the three forms."""
    if isinstance(inputs, Tensor):
        return lambda: model(inputs)
    if isinstance(inputs, Mapping):
        return lambda: model(**inputs)
    if isinstance(inputs, tuple | list):
        return lambda: model(*inputs)
    return None


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards each module has the mode that it had."""
    with modes_kept(model):
        model.eval()
        yield


@contextlib.contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Each module has the mode afterwards, training or evaluation, that it had before the context."""
    training = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


def wanted(model: nn.Module, forms: str) -> str:
    """What to give, for an error: these forms, for what the model's forward takes."""
    return f"give {forms} for {type(model).__name__}.forward{inspect.signature(model.forward)}"


def said(inputs: Any) -> str:
    """Inputs for an error: shapes and dtypes in place of values."""
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype)[6:]} {list(inputs.shape)}"
    if isinstance(inputs, Mapping):
        return f"{{{', '.join(f'{name}: {said(value)}' for name, value in inputs.items())}}}"
    if isinstance(inputs, tuple | list):
        return f"({', '.join(map(said, inputs))})"
    return reprlib.repr(inputs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, uncompiled; afterwards modes, buffers and random generators are as before.

    Torch's encoder layers and attention call their layers here, where their fast path would read the weights.
    """
    devices = {p.device for p in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    fast = torch.backends.mha.get_fastpath_enabled()
    kind = next((device.type for device in devices), "cuda")
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            evaluating(model),
            torch.no_grad(),
            torch.random.fork_rng(devices, device_type=kind),
            _uncompiled(),
            _lent(model),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _uncompiled() -> contextlib.AbstractContextManager[Any]:
    """What torch compiled runs as it was written; its compiler is not imported for this, which takes seconds."""
    compiles = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()


@contextlib.contextmanager
def _lent(model: nn.Module) -> Iterator[None]:
    """Copies in place of the buffers: not all operators that write to one say so."""
    own = [
        (module, dict(module._buffers)) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)
    ]
    copies = {id(buffer): buffer.clone() for _, buffers in own for buffer in buffers.values() if buffer is not None}
    try:
        for module, buffers in own:
            module._buffers |= {name: copies.get(id(buffer)) for name, buffer in buffers.items()}
        yield
    finally:
        for module, buffers in own:
            module._buffers.clear()
            module._buffers.update(buffers)
