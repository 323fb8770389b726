"""Following the inputs of weights while a model trains: their running Gram matrices.

Each call of a layer in training adds what it multiplies to ``state["gram"]``, ``G <- (1 - a) G + a x^T x / T``. A few
hundred of its tokens are enough, and more would cost as much as the layer itself. The matrix is part of a weight's
state: a resumed training goes on with it, and it goes when the method drops it at the end of its schedule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nmlearn.errors import AttachError
from nmlearn.learn.calibration import seeable
from nmlearn.learn.collecting import Collector, Convolution, Layer, Sums
from nmlearn.learn.weight import SparseWeight
from nmlearn.methods.method import GRAM, State
from nmlearn.model.names import unwrap
from nmlearn.model.plan import PlanRow
from nmlearn.model.shards import is_sharded

_SHARE = 0.1  # of the newest call
_TOKENS = 256  # of a call, about
_PIECE = 2**26  # bytes of inputs that are copied at once


class _Running(Sums):
    """The running Gram matrix of one weight, in its state."""

    def __init__(self, of: Layer, state: State) -> None:
        super().__init__(of, gram=False, piece=_PIECE)
        self._state = state
        state[GRAM] = self.zeros(of.groups, of.inputs, of.inputs)

    def add(self, owner: nn.Module, x: Tensor, mask: Tensor | None) -> None:
        if GRAM in self._state and owner.training and torch.is_grad_enabled():
            with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
                super().add(owner, _some(owner, x), mask)

    def _add(self, x_gtk: Tensor) -> None:
        gram_gkk = self._state[GRAM]
        some = x_gtk[:, :: math.ceil(x_gtk.shape[1] / _TOKENS)] if x_gtk.shape[1] else x_gtk
        if some.shape[1] and bool(some.isfinite().all()):  # as a gradient that is not finite, it teaches nothing
            some = some.contiguous()
            gram_gkk.baddbmm_(some.mT, some, beta=1 - _SHARE, alpha=_SHARE / some.shape[1])


def _some(owner: nn.Module, x: Tensor) -> Tensor:
    """Some examples of a convolution's input, whose every position is a token."""
    if not isinstance(owner, Convolution) or x.dim() == len(owner.kernel_size) + 1:
        return x
    return x[:: max(1, x[:, 0].numel() // math.prod(owner.stride) // _TOKENS)]


def hooks(model: nn.Module, rows: Sequence[PlanRow], weights: Sequence[SparseWeight]) -> list[Any]:
    """Follow the inputs of weights from now on.

    Args:
        rows: of the plan, in the order of ``weights``; M:M leaves nothing to choose, and is left alone.

    Returns:
        the hooks.

    Raises:
        AttachError: weights whose inputs hooks cannot see, that are sharded, or several processes.
    """
    layers, unseen = seeable(model, rows)
    _check(rows, unseen)
    states = {w.name: w.state for w in weights if w.grouping.pattern.combinations > 1}
    followed = {name: layer for name, layer in layers.items() if name in states}
    running: dict[str, Sums] = {name: _Running(layer, states[name]) for name, layer in followed.items()}
    collector = Collector(running, lambda _: None)

    def mask_of(_: nn.Module, __: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = kwargs.get("attention_mask")
        collector.mask = given if isinstance(given, Tensor) else None

    whole = unwrap(model).register_forward_pre_hook(torch.compiler.disable(mask_of), with_kwargs=True)
    return [whole, *collector.hang(list(followed.values()))]


def _check(rows: Sequence[PlanRow], unseen: Mapping[str, str]) -> None:
    distributed = torch.distributed
    several = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    reasons = [
        (next(iter(unseen.items()), None), "leave it dense with a rule: None"),
        (_first(rows, "it is sharded") if any(is_sharded(row.parameter) for row in rows) else None, "train unsharded"),
        (_first(rows, "each process would see its own inputs") if several else None, "train in one process"),
    ]
    for found, fix in reasons:
        if found:
            raise AttachError(
                where=found[0],
                given="a method that follows the inputs of weights",
                wrong=found[1],
                fix=f'{fix}, or take a method that does not, such as LBC with compensation="none"',
            )


def _first(rows: Sequence[PlanRow], why: str) -> tuple[str, str]:
    return rows[0].name, why
