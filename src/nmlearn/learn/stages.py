"""The order in which a model calls its sparse layers, and its cut into stages that are calibrated one after the other.

No list of architectures: order is recorded in a run, and a block is a module that has a sibling of its own kind, both
with sparse layers inside, as in a list of repeated blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from nmlearn.learn.collecting import Layer


@dataclass(frozen=True)
class Stage:
    """Layers that are calibrated in the same runs.

    Attributes:
        layers: in order of their first call.
        calls: how often a batch calls them all together; None where batches differ.
    """

    layers: tuple[Layer, ...]
    calls: int | None


def merged(orders: Iterable[Sequence[str]]) -> list[str]:
    """The names of several runs in one order of first call: what one run does not call goes behind what came before it.

    A batch need not reach all experts of a layer; the layers behind them come later all the same.
    """
    order: list[str] = []
    for names in orders:
        place = -1
        for name in dict.fromkeys(names):
            if name not in order:
                order.insert(place + 1, name)
            place = order.index(name)
    return order


def cut(
    layers: Mapping[str, Layer], runs: Sequence[Sequence[str]], model: nn.Module, gram: bool, most: int
) -> list[Stage]:
    """Stages in order of call: each within one block, its sums within ``most`` bytes unless one weight takes more.

    Args:
        layers: by the names of their weights.
        runs: the names in the order of calls, of each batch.
        gram: whether Gram matrices are collected.
    """
    blocks, stages, held = blocks_of(model, layers.values()), list[list[Layer]](), 0
    for layer in [layers[name] for name in merged(runs)]:
        held += layer.bytes(gram)
        if not stages or held > most or blocks[layer.name] != blocks[stages[-1][-1].name]:
            stages.append([])
            held = layer.bytes(gram)
        stages[-1].append(layer)
    alike = all(list(names) == list(runs[0]) for names in runs)
    return [Stage(tuple(some), _calls(some, runs[0]) if alike else None) for some in stages]


def _calls(layers: list[Layer], names: Sequence[str]) -> int:
    return sum(names.count(layer.name) for layer in layers)


def blocks_of(model: nn.Module, layers: Iterable[Layer]) -> dict[str, str]:
    """The name of the block of each weight: the innermost module that repeats, or the layer itself."""
    paths = {id(module): path for path, module in model.named_modules()}
    inside = {layer.name: paths[id(layer.owners[0])] for layer in layers}
    parents = {parent for path in inside.values() for parent in _around(path)}
    repeats = {path for path in parents if path and _repeats(model, path, parents)}
    return {name: next((path for path in _around(own) if path in repeats), own) for name, own in inside.items()}


def _around(path: str) -> list[str]:
    """The modules that a module is in, from the inside; "" is the model."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, -1, -1)]


def _repeats(model: nn.Module, path: str, parents: set[str]) -> bool:
    """Whether another child of its parent is of the same kind, and holds sparse layers too."""
    above, _, own = path.rpartition(".")
    siblings = dict(model.get_submodule(above).named_children())
    names = [name for name, module in siblings.items() if _kind(module) == _kind(siblings[own])]
    return any(name != own and (f"{above}.{name}" if above else name) in parents for name in names)


def _kind(module: nn.Module) -> object:
    """The class; of a plain Sequential, which may hold anything, those of its layers too."""
    inside = [type(child) for child in module.children()] if type(module) is nn.Sequential else []
    return type(module), inside
