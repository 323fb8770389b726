"""Examples of a model's inputs: a tensor, a tuple of arguments or a dict of keyword arguments."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Mapping
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
