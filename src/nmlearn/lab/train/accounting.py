"""What sparsity costs and saves in training: FLOPs of the sparse layers relative to dense, and the extra state.

A layer's step is three matrix products of equal dense cost: the forward, the gradient of its input, the gradient of
its weight. With density d the first two cost d; so does the third, unless the method also needs the gradient of pruned
weights. Weighted by dense FLOPs and averaged over the steps: (d + d + (1 or d)) / 3. This counts arithmetic, not
seconds: whether hardware makes it faster is a separate question.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from nmlearn.learn.sparsifier import Sparsifier


class Accounting:
    """Counts over a training run; call ``count`` before every optimizer step.

    Args:
        sparsifier: an attached one.
        dense_flops: of each sparse weight, for one product and one example; see ``dense_flops``.

    Attributes:
        state_bytes: the peak size so far of what the sparsifier holds in addition to the model.
    """

    def __init__(self, sparsifier: Sparsifier, dense_flops: dict[str, float]) -> None:
        self._sparsifier = sparsifier
        self._flops = dense_flops
        self._seen = -1
        self._ratio = 1.0
        self._sum = 0.0
        self._steps = 0
        self.state_bytes = 0

    def count(self) -> None:
        """Count one step. Densities are read only after the schedule moved: reading synchronises a GPU."""
        if self._sparsifier.advances != self._seen:
            self._seen = self._sparsifier.advances
            self._ratio = self._ratio_now()
            self.state_bytes = max(self.state_bytes, self._sparsifier.state_bytes())
        self._sum += self._ratio
        self._steps += 1

    @property
    def training_flops_ratio(self) -> float:
        """FLOPs of the sparse layers so far, relative to dense."""
        return self._sum / self._steps if self._steps else 1.0

    def state_dict(self) -> dict[str, Any]:
        """The counts, for a checkpoint."""
        return {"sum": self._sum, "steps": self._steps, "state_bytes": self.state_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's counts."""
        self._sum, self._steps, self.state_bytes = state["sum"], state["steps"], state["state_bytes"]

    def _ratio_now(self) -> float:
        densities = {status.name: status.density for status in self._sparsifier.status()}
        total = sum(self._flops[name] for name in densities)
        if total == 0:
            return 1.0
        dense_gradient = type(self._sparsifier.method).dense_gradient
        return (
            sum(self._flops[name] * (2 * d + (1 if dense_gradient else d)) / 3 for name, d in densities.items()) / total
        )


def dense_flops(model: nn.Module, example: torch.Tensor, weights: Iterable[str]) -> dict[str, float]:
    """FLOPs of each weight's product in the forward of one example: 2 * elements * positions it is applied at.

    Positions (pixels, tokens) come from the output of the module that owns the weight. If that module is never called,
    they come from the nearest enclosing one (torch's attention reads its output projection's weight directly).

    Args:
        model: run once in evaluation mode; left in the mode it was in.
        example: inputs of one example, [1, ...].
        weights: qualified parameter names.
    """
    weights = list(weights)
    around = {name: _ancestors(name) for name in weights}
    wanted = {module for modules in around.values() for module in modules}
    positions: dict[str, float] = {}
    hooks = [
        module.register_forward_hook(_recorder(name, positions))
        for name, module in model.named_modules()
        if name in wanted
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    elements = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    return {
        name: 2.0 * elements[name] * next((positions[m] for m in around[name] if m in positions), 1.0)
        for name in weights
    }


def _ancestors(weight: str) -> list[str]:
    """Names of the modules enclosing a weight, innermost first; "" is the model."""
    parts = weight.split(".")[:-1]
    return [".".join(parts[:end]) for end in range(len(parts), -1, -1)]


def _recorder(name: str, positions: dict[str, float]) -> Any:
    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, torch.Tensor):
            # Convolutions put channels second, everything else last; a module called twice is applied twice.
            channels = first.shape[1] if first.ndim > 2 and hasattr(module, "kernel_size") else first.shape[-1]
            positions[name] = positions.get(name, 0.0) + first.numel() / channels

    return record
