"""One run of a model on an example, recorded at its linear layers and convolutions."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
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
        blocks: name of a module that contains layers -> the arguments of its first call, each a tensor or a list of
            tensors; None where it was called with something else, by name, or differently from call to call.
        readers: layers whose parent is of a kind that reads their weight, perhaps in other calls than these.
        read: layers whose weight some code did read, in addition to calling them or instead.
        output: what the model returned.
    """

    layers: dict[str, Dense]
    inputs: dict[str, Counter[tuple[tuple[int, ...], torch.dtype]]]
    blocks: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
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
        with contextlib.ExitStack() as watched:
            for name, layer in layers.items():
                watched.enter_context(_reads_noted(seen, name, layer))
            seen.output = call()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextlib.contextmanager
def _reads_noted(seen: Seen, name: str, layer: Dense) -> Iterator[None]:
    """Note reads of the layer's weight outside of its own call."""
    called: list[bool] = []

    class Noted(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            if key == "weight" and not called:
                seen.read.add(name)
            return super().__getitem__(key)

    def enter(*_: Any) -> None:
        called.append(True)

    def leave(*_: Any) -> None:
        called.clear()

    own = layer._parameters
    hooks = [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave, always_call=True)]
    layer._parameters = Noted(own)
    try:
        yield
    finally:
        layer._parameters = own
        for hook in hooks:
            hook.remove()


def _note_layer(seen: Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            seen.inputs[name][tuple(args[0].shape), args[0].dtype] += 1

    return note


def _note_block(seen: Seen, name: str) -> Callable[..., None]:
    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = None
        if not kwargs and "" not in _kinds(args):
            given = tuple(x if isinstance(x, Tensor) else list(x) for x in args)  # a list may grow later
        first = seen.blocks.setdefault(name, given)
        if first is not None and (given is None or _kinds(given) != _kinds(first)):
            seen.blocks[name] = None

    return note


def _kinds(args: tuple[Any, ...]) -> list[str]:
    """For each argument, whether it is a "tensor" or "several"; "" if it is something else."""
    several = [isinstance(x, list | tuple) and all(isinstance(t, Tensor) for t in x) and len(x) > 0 for x in args]
    return [
        "tensor" if isinstance(x, Tensor) else "several" if many else "" for x, many in zip(args, several, strict=True)
    ]


def replaceable(name: str) -> bool:
    """Whether a model would call another module by this name: not the model itself, nor what torch.compile wrapped."""
    return name.rpartition(".")[2] not in ("", "_orig_mod")


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its class says: for what takes its place, that would be lost."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
