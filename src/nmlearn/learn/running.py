"""Running a model on batches to look at what passes through it, and leaving it as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from nmlearn.errors import ConfigError, NMLearnError
from nmlearn.model import example
from nmlearn.model.names import unwrap


class _Reached(BaseException):
    """What was to be seen has been seen. No Exception: a model that catches those would go on."""


def reached() -> None:
    """Called in a hook: end the :func:`run` or the call :func:`until_reached` that is on."""
    raise _Reached


@contextlib.contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients, uncompiled; afterwards modes and random generators are as before.

    Torch's encoder layers and attention call their layers here, where their fast path would read the weights.
    """
    devices = {p.device for p in model.parameters()} - {torch.device("cpu"), torch.device("meta")}
    fast = torch.backends.mha.get_fastpath_enabled()
    kind = next((device.type for device in devices), "cuda")
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            example.evaluating(model),
            torch.no_grad(),
            torch.random.fork_rng(devices, device_type=kind),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


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
