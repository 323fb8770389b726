"""Running a model on batches to look at what passes through it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.model import example
from nmlearn.model.names import unwrap


class _Reached(BaseException):
    """What was to be seen has been seen. No Exception: a model that catches those would go on."""


def reached() -> None:
    """Called in a hook: end the :func:`run` or the call :func:`until_reached` that is on."""
    raise _Reached


def run(model: nn.Module, batch: Any) -> Any:
    """Run a model on a batch, to the end or until a hook has :func:`reached` what it wanted.

    Args:
        batch: a tensor, a tuple of arguments or a dict of keyword arguments.

    Returns:
        what its forward returns; None where a hook ended it.

    Raises:
        ConfigError: its forward refuses the batch.
    """
    try:
        return until_reached(_caller(unwrap(model), batch))
    except NMLearnError:
        raise
    except Exception as error:
        raise _refused(model, batch, f"the model's forward said: {type(error).__name__}: {error}") from error


def until_reached(call: Callable[[], Any]) -> Any:
    """What a call gives; None where a hook has :func:`reached` what it wanted."""
    try:
        return call()
    except _Reached:
        return None


def _caller(model: nn.Module, batch: Any) -> Callable[[], Any]:
    if call := example.caller(model, batch):
        return call
    raise _refused(model, batch, f"it is a {type(batch).__name__}")


def _refused(model: nn.Module, batch: Any, wrong: str) -> ConfigError:
    fix = example.wanted(model, "batches that are tensors, tuples of arguments or dicts of keyword arguments")
    loader = "; of a loader of (x, y) give (x for x, y in loader)"
    return ConfigError(where="a batch", given=example.said(batch), wrong=wrong, fix=fix + loader)
