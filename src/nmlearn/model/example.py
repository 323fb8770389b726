"""Examples of a model's inputs: a tensor, a tuple of arguments or a dict of keyword arguments; and what it returns."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the context; afterwards each module has the mode that it had."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
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
