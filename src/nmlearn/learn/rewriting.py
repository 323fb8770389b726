"""Noticing who else writes weights: wrappers that write after the inner step, optimizers with steps of their own.

Pruned weights are cleared behind each step that is seen. What writes them later, Lookahead with slow weights that
nobody finds or a loop of its own, makes the network dense in every forward; what steps without ``step()``, SAM by
``first_step`` and ``second_step``, is never seen. Both are told by what happens to the weights, not by names.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nmlearn.errors import AttachError
from nmlearn.learn import clearing, optimizers
from nmlearn.learn.weight import SparseWeight
from nmlearn.model.shards import local

IN_A_ROW = 3  # one write is a load, and three are a habit
_PASSES = 20  # backward passes with other weights each time and no step; micro-batches have the same weights
_APART = 16  # steps between two looks on devices, which have to be waited for
_FIX = "use the optimizer inside of it, or one whose weights are its own after step()"


class Watch:
    """On the weights of one attachment, from attach to its end.

    Args:
        layers: of the optimizer, outermost first; held weakly.
        weights: the sparse ones.

    Attributes:
        called: what the optimizer and its wrappers are called.
        trusted: whether they are torch's own, or known to write no weights.
        own_steps: the methods by which it steps in other ways than ``step``.
        switches: whether its ``eval()`` puts averages in place of the weights.
        came_back: steps before which pruned weights were found with values.
    """

    def __init__(self, layers: Sequence[Any], weights: Sequence[SparseWeight]) -> None:
        self._layers, self._weights = [weakref.ref(layer) for layer in layers], weights
        self.called = optimizers.called(layers)
        self.trusted = all(optimizers.passes_on(layer) for layer in layers)
        self._wrapped = len(layers) > 1 and not self.trusted
        self.own_steps = [] if self.trusted else [name for layer in layers for name in _own_steps(layer)]
        self.switches = bool(optimizers.switching(layers))
        self.came_back = 0
        self._groups = optimizers.Groups(layers[-1])
        self._steps = self._in_a_row = 0
        self._changes, self._version = -1, -1
        self._until_stepped: list[Any] = []

    def hooks(self, behind: Callable[[], None]) -> list[Any]:
        """Hooks on weights and wrappers, as long as they are not removed.

        Args:
            behind: what to do behind the step of a wrapper that has hooks, as optimizers have.
        """
        after = torch.compiler.disable(lambda *_: behind())
        wrappers = [layer for ref in self._layers[:-1] if (layer := ref()) is not None and _has_hooks(layer)]
        self._until_stepped = [self._unseen_hook(w) for w in self._weights[:1]]
        return [*self._until_stepped, *(layer.register_step_post_hook(after) for layer in wrappers)]

    def before(self) -> None:
        """A step is about to be done.

        Raises:
            AttachError: the optimizer no longer holds a weight.
        """
        self._steps += 1
        while self._until_stepped:
            self._until_stepped.pop().remove()
        if (optimizer := self._layers[-1]()) is not None:
            self._groups.follow(optimizer, self._weights)

    def look(self) -> None:
        """See whether weights that were cleared behind the last step are still zero. It looks at a part of one.

        Raises:
            AttachError: they were not before :data:`IN_A_ROW` steps in a row, and the optimizer is not torch's own.
        """
        pruned = next((w for w in self._weights if w.density < 1.0), None)
        if pruned is not None and self._due(pruned):
            self._count(pruned, clearing.stands(local(pruned.parameter), pruned))

    def compare(self, used: Callable[[SparseWeight], Tensor]) -> None:
        """The same for weights that have dense ones behind them. Only wrappers are watched: it takes a pass.

        Args:
            used: what the network shall compute with, of a weight's local shape.

        Raises:
            AttachError: as :meth:`look`.
        """
        if self._wrapped and self._due(self._weights[0]):
            w = self._weights[0]
            back = (local(w.parameter).detach() != 0).logical_and_(used(w) == 0)
            self._count(w, bool(back.any()))

    def _count(self, pruned: SparseWeight, back: bool) -> None:
        self.came_back += back
        self._in_a_row = self._in_a_row + 1 if back else 0
        if self._in_a_row == IN_A_ROW and not self.trusted:
            self._refuse(pruned.name)
        if back and self.came_back == IN_A_ROW:
            where = f"weights such as {pruned.name} had values where they are pruned, before {IN_A_ROW} steps so far"
            message = f"{where}: {self._who()}. The next step takes them out again, but the network computes with them"
            warnings.warn(message, stacklevel=13)  # the line that calls optimizer.step

    def refuse_if_written(self, written: Callable[[], str | None]) -> None:
        """For weights that have dense ones behind them: refuse a wrapper that has written them behind its step.

        Raises:
            AttachError: it has.
        """
        if (name := written()) is not None:
            self._refuse(name)

    def _due(self, pruned: SparseWeight) -> bool:
        on_cpu = local(pruned.parameter).device.type == "cpu"
        return on_cpu or self._in_a_row > 0 or self._steps <= 2 * IN_A_ROW or self._steps % _APART == 0

    def _who(self) -> str:
        if self.trusted:
            return f"{self.called} writes none after its step, so a wrapper around it, a callback or the loop does"
        return f"{self.called} writes weights after the step, or the loop does"

    def _refuse(self, name: str) -> None:
        wrong = "it writes weights after the step that nmlearn learns around, so that pruned ones come back each time"
        raise AttachError(where=name, given=self.called, wrong=wrong, fix=_FIX)

    def _unseen_hook(self, w: SparseWeight) -> Any:
        return w.parameter.register_post_accumulate_grad_hook(torch.compiler.disable(self._unseen))

    def _unseen(self, parameter: Tensor) -> None:
        """A backward pass before any step; the weight's version tells whether somebody else has stepped it."""
        if parameter._version != self._version:
            self._changes, self._version = self._changes + 1, parameter._version
        if self._changes == _PASSES:
            self._changes += 1
            message = f"weights change and no step of {self.called} is seen{unseen(self.called, self.own_steps)}"
            warnings.warn(message, stacklevel=6)  # the line that calls backward


def unseen(called: str, own_steps: Sequence[str]) -> str:
    """What may be the cause where no step was seen."""
    if not own_steps:
        return "; was attach called on this optimizer? it must be, before training"
    return (
        f": {called} also steps by {', '.join(own_steps)}, and only step() is seen; attach to the optimizer that they "
        "step, or call step(closure). If another optimizer trains, attach to that one"
    )


def _own_steps(layer: Any) -> list[str]:
    names = (name for name in dir(type(layer)) if name.endswith("_step") and not name.startswith(("_", "get")))
    return [name for name in names if callable(getattr(type(layer), name)) and not hasattr(torch.optim.Optimizer, name)]


def _has_hooks(layer: Any) -> bool:
    """Whether torch calls hooks around its step; wrappers that only pass steps on have none."""
    return getattr(type(layer).step, "hooked", False) and "_optimizer_step_post_hooks" in vars(layer)
