"""One run of a model on an example, recorded at its linear layers and convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Dense = nn.Linear | nn.Conv2d
# Modules whose own code reads the weights of their children instead of calling them.
READ_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


@dataclass
class Seen:
    """What a run recorded.

    Attributes:
        layers: every Linear and Conv2d by name; other modules with such weights are ignored.
        inputs: layer -> (shape, dtype) of its inputs -> how often.
        blocks: name of a module that contains layers -> the arguments of its first call.
        readers: layers whose parent reads their weight directly.
        output: what the model returned.
    """

    layers: dict[str, Dense]
    inputs: dict[str, Counter[tuple[tuple[int, ...], torch.dtype]]]
    blocks: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    output: Any = None

    def shapes(self, name: str) -> tuple[int, ...]:
        """The shape that a layer saw most often; empty if it was never called."""
        most = self.inputs[name].most_common(1)
        return most[0][0][0] if most else ()


def observe(model: nn.Module, call: Callable[[], Any]) -> Seen:
    """Run the model once."""
    layers = {name: m for name, m in model.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}
    seen = Seen(layers, {name: Counter() for name in layers})
    for name in layers:
        parents = [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
        if any(isinstance(model.get_submodule(parent), READ_WEIGHTS) for parent in ["", *parents]):
            seen.readers.add(name)
    hooks = [layer.register_forward_pre_hook(_note_layer(seen, name)) for name, layer in layers.items()]
    for parent in {name.rpartition(".")[0] for name in layers}:
        hooks.append(model.get_submodule(parent).register_forward_pre_hook(_note_block(seen, parent), with_kwargs=True))
    try:
        seen.output = call()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _note_layer(seen: Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            seen.inputs[name][tuple(args[0].shape), args[0].dtype] += 1

    return note


def _note_block(seen: Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not kwargs:
            seen.blocks.setdefault(name, args)

    return note
