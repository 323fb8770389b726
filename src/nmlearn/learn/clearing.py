"""Keeping pruned weights at +0.0 through an optimizer: their gradients, and what optimizers remember of them."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.model.shards import local

_PART = 1 << 10  # values that are looked at where a pass over all would cost time
# The cosine to a weight from which on a tensor is a copy or an average of it. Moments and preconditioners are about
# orthogonal to the weight: with 256 values the standard deviation is 0.06.
_LIKE_THE_WEIGHT = 0.25
_FIRST_LOOK = 3  # steps after which optimizers have a state


def gradient(w: SparseWeight) -> None:
    """Clear the gradient of what is pruned; one that was cleared and is still as it was costs nothing."""
    grad = w.parameter.grad
    if w.density == 1.0 or grad is None:
        return
    if w.cleared is None or w.cleared[0]() is not grad or w.cleared[1] != grad._version:
        masks.clear_(local(grad), w.state[masks.KEEP])
        w.cleared = weakref.ref(grad), grad._version


def hooks(weights: Iterable[SparseWeight]) -> list[Any]:
    """Hooks that clear every gradient as soon as it is there, before clipping, logging or the optimizer see it."""

    def clears(w: SparseWeight) -> Any:
        return w.parameter.register_post_accumulate_grad_hook(torch.compiler.disable(lambda _: gradient(w)))

    return [clears(w) for w in weights]


class Memory:
    """What an optimizer, and wrappers around it, remember of weights.

    Args:
        layers: of the optimizer, outermost first; held weakly.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        self._layers = [weakref.ref(layer) for layer in layers]
        self._copies: set[str] = set()
        self._steps = 0

    def forget(self, w: SparseWeight) -> None:
        """Clear what is remembered of pruned values, when a mask has changed.

        Without it the weight is cleared after every step all the same. But moments that nothing feeds any more fade
        through denormal numbers, which processors multiply slowly, and copies of the weight would be written back.
        """
        for name, tensor, elementwise in self._alike(w):
            if elementwise or self._is_copy(name, tensor, w):
                masks.clear_(local(tensor), w.state[masks.KEEP])

    def after_step(self, weights: Sequence[SparseWeight]) -> None:
        """Clear copies and averages of weights that the optimizer moved where they are pruned, with weights that have
        a pruned value: SPlus rotates its steps, so that a gradient of zero moves weights and their average too."""
        self._steps += 1
        if self._steps == _FIRST_LOOK:
            for w in weights:
                self.forget(w)
        if not self._copies or not weights:
            return
        first = [tensor for name, tensor, _ in self._alike(weights[0]) if name in self._copies]
        if any(local(tensor).device.type != "cpu" or stands(local(tensor), weights[0]) for tensor in first):
            for w in weights:
                for tensor in [tensor for name, tensor, _ in self._alike(w) if name in self._copies]:
                    masks.clear_(local(tensor), w.state[masks.KEEP])

    def _is_copy(self, name: str, tensor: Tensor, w: SparseWeight) -> bool:
        """Whether a tensor remembers the weight itself: schedule-free optimizers, SPlus and Lookahead have such ones,
        and write them back. Told by the values, once for all weights."""
        if name not in self._copies:
            a, b = local(tensor).flatten().float(), local(w.parameter).flatten().float()
            if bool(a.dot(b) > _LIKE_THE_WEIGHT * a.norm() * b.norm()):
                self._copies.add(name)
        return name in self._copies

    def _alike(self, w: SparseWeight) -> Iterator[tuple[str, Tensor, bool]]:
        """The tensors of the weight's shape, by name, and whether each is known to hold a number a value.

        In torch's own optimizers it does. Elsewhere it may be the matrix of a preconditioner, which is square as the
        weight happens to be.
        """
        seen: list[Any] = []
        for layer in [each for ref in reversed(self._layers) if (each := ref()) is not None]:
            state = getattr(layer, "state", None)
            if not isinstance(state, Mapping) or any(state is other for other in seen):
                continue
            seen.append(state)
            of = state.get(w.parameter, {})
            for name, tensor in of.items() if isinstance(of, Mapping) else ():
                if isinstance(tensor, Tensor) and tensor.shape == w.parameter.shape and _plain(local(tensor)):
                    yield name, tensor, type(layer).__module__.startswith("torch.optim.")


def _plain(tensor: Tensor) -> bool:
    """Whether its bits are its values: quantized states have classes, or codes, of their own."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point()


def stands(tensor: Tensor, w: SparseWeight) -> bool:
    """Whether the first values of a tensor of a weight's (local) shape are not zero where the weight is pruned."""
    keep = w.state[masks.KEEP]
    rows = max(1, _PART * len(keep) // max(1, keep.numel()))
    return bool((tensor[:rows].detach() != 0).logical_and_(keep[:rows] == 0).any())
