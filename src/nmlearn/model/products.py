"""How often weights are multiplied with: the multiply-adds of linear layers and convolutions on an example."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.model.example import evaluating
from nmlearn.model.found import Found, find
from nmlearn.model.names import plain_name, unwrap

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


def multiply_adds(model: nn.Module, call: Callable[[], object], weights: Collection[str]) -> dict[str, int]:
    """Multiply-adds of each weight's products in one call: its elements times the positions that it is applied at.

    Positions (pixels, tokens) are those of the outputs of the modules that multiply with the weight, of transposed
    convolutions those of the inputs. Where no such module is called, they come from the nearest enclosing one: torch's
    attention reads its output projection's weight directly. A module that is called twice counts twice.

    Args:
        model: in evaluation mode during the call; left in the mode it was in.
        call: runs the model on an example.
        weights: qualified names, as in a plan.
    """
    items = {item.names[0]: item for item in find(model) if item.names[0] in weights}
    modules = {plain_name(path): module for path, module in unwrap(model).named_modules()}
    sources = {name: _sources(item, modules) for name, item in items.items()}
    positions: Counter[int] = Counter()
    hooked = {id(module): module for some in sources.values() for each in some for module in each}
    hooks = [module.register_forward_hook(_counts(positions)) for module in hooked.values()]
    try:
        with torch.no_grad(), evaluating(model):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: item.parameter.numel() * next(filter(None, (_sum(positions, some) for some in sources[name])), 0)
        for name, item in items.items()
    }


def _sources(item: Found, modules: dict[str, nn.Module]) -> list[list[nn.Module]]:
    """The modules that multiply with a weight, and then each one around them, innermost first."""
    own = [owner for owner, axis in zip(item.owners, item.axes, strict=True) if isinstance(axis, int)]
    parts = item.names[0].split(".")[:-1]
    around = (modules.get(".".join(parts[:end])) for end in range(len(parts), -1, -1))
    return [list({id(owner): owner for owner in own}.values()), *([module] for module in around if module is not None)]


def _sum(positions: Counter[int], modules: Iterable[nn.Module]) -> int:
    return sum(positions[id(module)] for module in modules)


def _counts(positions: Counter[int]) -> Callable[..., None]:
    def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        side = inputs if isinstance(module, _TRANSPOSED) else output
        first = side[0] if isinstance(side, tuple) and side else side
        if isinstance(first, Tensor) and first.numel():
            # Convolutions have channels before their spatial axes, everything else last.
            spatial = len(module.kernel_size) if isinstance(module, _CONVOLUTIONS) else 0
            positions[id(module)] += first.numel() // (first.shape[-1 - spatial] if first.ndim > spatial else 1)

    return count
