"""Hiding gradients, so that an optimizer passes weights by."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


class HiddenGradients:
    """Weights without a gradient are weights that an optimizer skips."""

    def __init__(self) -> None:
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []

    def hide(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the gradients, until ``show``. Those of a step that failed do not come back."""
        self._hidden = [(p, p.grad) for p in parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def show(self) -> None:
        """Put the gradients back."""
        for parameter, grad in self._hidden:
            parameter.grad = grad
        self._hidden = []
