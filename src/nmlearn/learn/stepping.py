"""Hooks around ``optimizer.step`` that act once a step.

torch wraps the ``step`` of a class when the first optimizer of just that class is made, and the wrapper calls the
optimizer's hooks. A ``step()`` that calls ``super().step()`` runs through two wrappers once the base class has been
made anywhere in the process, and its hooks are called twice: a schedule would end after half of the training run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.optim import optimizer as torchs

_WRAPPER = torchs.__file__


def once(before: Callable[..., Any], after: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Step hooks that pass on the outermost of nested calls only; torch.compile leaves them out.

    Args:
        before, after: step hooks as torch calls them, with the optimizer, the arguments and the keyword arguments.

    Returns:
        The two hooks to register.
    """
    running: list[FrameType | None] = []  # the wrappers that are under way; a step that failed leaves its own

    def pre(*args: Any) -> Any:
        if running and not _on_stack(running[0]):
            running.clear()
        running.append(_wrapper())
        return before(*args) if len(running) == 1 else None

    def post(*args: Any) -> None:
        if running:
            running.pop()
        if not running:
            after(*args)

    return torch.compiler.disable(pre), torch.compiler.disable(post)


def _wrapper() -> FrameType | None:
    """The frame of torch's wrapper that calls a hook; None where others call it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != _WRAPPER:
        frame = frame.f_back
    return frame


def _on_stack(wanted: FrameType | None) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is not None
