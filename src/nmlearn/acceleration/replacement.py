"""Replacing layers of a model by packed ones, in place and reversibly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nmlearn.acceleration import fusing, gpu_candidates
from nmlearn.acceleration.candidates import FORMATS
from nmlearn.acceleration.fusing import Choice
from nmlearn.acceleration.gpu import gpu_of
from nmlearn.acceleration.gpu_candidates import GpuChoice
from nmlearn.acceleration.observing import Seen, replaceable


@dataclass
class Change:
    """What was replaced: (parent, child's name, old module), and weights moved to another memory format."""

    children: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    weights: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def put(self, model: nn.Module, name: str, new: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        holder = model.get_submodule(parent)
        self.children.append((holder, child, getattr(holder, child)))
        setattr(holder, child, new)

    def undo(self) -> None:
        for holder, child, old in reversed(self.children):
            setattr(holder, child, old)
        for parameter, data in self.weights:
            parameter.data = data


def replace_layers(model: nn.Module, choices: Mapping[str, Choice | GpuChoice], seen: Seen, images: str) -> Change:
    """Pack the chosen layers; where a block's code can be traced, with what can be folded into them.

    On a GPU nothing is folded.

    Args:
        choices: by qualified name.
        images: the memory format for the convolutions that stay dense.
    """
    change = Change()
    with torch.inference_mode(False), torch.no_grad():  # tensors made in inference mode could not be written to later
        _replace_all(model, choices, seen, images, change)
    return change


def _replace_all(
    model: nn.Module, choices: Mapping[str, Choice | GpuChoice], seen: Seen, images: str, change: Change
) -> None:
    try:
        blocks: dict[str, dict[str, Choice]] = {}
        for name, choice in choices.items():
            if isinstance(choice, GpuChoice):
                change.put(model, name, gpu_candidates.pack(choice))
                continue
            block, _, child = name.rpartition(".")
            blocks.setdefault(block, {})[child] = choice
        for name in sorted(blocks, key=lambda name: -name.count(".")):  # innermost first
            _replace_block(model, name, blocks[name], seen, change)
        if images:
            _to_format(model, FORMATS[images], change)
    except BaseException:
        change.undo()
        raise


def _replace_block(model: nn.Module, name: str, choices: Mapping[str, Choice], seen: Seen, change: Change) -> None:
    block = model.get_submodule(name)
    inputs = seen.blocks.get(name) if replaceable(name) else None  # a container has no code of its own
    new = None if inputs is None else fusing.rewritten(block, choices, inputs)
    if new is not None:
        change.put(model, name, new)
        return
    for child, choice in choices.items():
        change.put(model, f"{name}.{child}" if name else child, fusing.pack(choice))


def still_read(model: nn.Module, seen: Seen) -> set[str]:
    """The layers whose weight would be read also by the rewritten code of their block, as some casts are not."""
    still = set()
    for name in seen.read:
        block, _, child = name.rpartition(".")
        inputs = seen.blocks.get(block) if replaceable(block) and not gpu_of(seen.layers[name].weight.device) else None
        if inputs is None or not fusing.drops_reads(model.get_submodule(block), child, inputs):
            still.add(name)
    return still


def _to_format(model: nn.Module, images: torch.memory_format, change: Change) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            change.weights.append((module.weight, module.weight.data))
            module.weight.data = module.weight.data.contiguous(memory_format=images)


@contextmanager
def formatted(model: nn.Module, images: torch.memory_format) -> Iterator[bool]:
    """Keep the convolutions' weights in a memory format inside the context; yields whether there are any."""
    change = Change()
    _to_format(model, images, change)
    try:
        yield bool(change.weights)
    finally:
        change.undo()
