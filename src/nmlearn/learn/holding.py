"""The ways to hold a weight: where the optimizer learns, and how the network gets what it computes with.

Each has the same calls around ``optimizer.step``: ``before`` (which calls ``learn`` when the tensors are as a method
sees them), ``after``, and ``write``. ``skip`` is a step without an optimizer, ``moved`` tells of masks that changed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW

from nmlearn.learn import clearing
from nmlearn.learn.ahead import Ahead
from nmlearn.learn.fused_adamw import FusedAdamW
from nmlearn.learn.fused_sgd import FusedSGD
from nmlearn.learn.hidden import HiddenGradients
from nmlearn.learn.rewriting import Watch
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.methods.method import DENSE, At, Method, Weight
from nmlearn.model.shards import local
from nmlearn.native.training import ScorePass, score_step_


class InPlace:
    """The optimizer learns in the weight that the network computes with, and what is pruned is cleared there."""

    def __init__(self, method: Method, weights: Sequence[SparseWeight], layers: Sequence[Any], around: Any) -> None:
        self.method, self.weights = method, list(weights)
        self.watch, self._memory = Watch(layers, self.weights), clearing.Memory(layers)
        kind = FusedAdamW if isinstance(layers[-1], AdamW) else FusedSGD
        self._fused: Ahead = kind(layers[-1], *around)

    def hooks(self) -> list[Any]:
        """What has to be hung on weights while this holds them."""
        return [*clearing.hooks(self.weights), *self.watch.hooks(self._clear_all)]

    def before(self, learn: Callable[[], None]) -> None:
        self.watch.before()
        self.watch.look()
        for w in self.weights:
            clearing.gradient(w)  # others may have put a gradient there since the hook
        self._fused.stepped = []
        learn()
        self._fused.step_rest(self.weights)
        self._fused.hide()

    def score_pass(self, group: dict[str, Any], some: list[SparseWeight], seen: list[Weight]) -> ScorePass:
        return self._fused.score_pass(group, some, seen)

    def after(self) -> None:
        self._fused.show()

    def skip(self) -> None:
        self._fused.stepped = []

    def moved(self, some: Sequence[SparseWeight]) -> None:
        self._fused.stepped = [w for w in self._fused.stepped if all(w is not other for other in some)]
        for w in some:
            w.cleared = None
            if w.density < 1.0:
                self._memory.forget(w)

    def write(self, at: At) -> None:
        self._memory.after_step([w for w in self.weights if w.density < 1.0])
        cleared = {id(w) for w in self._fused.stepped}  # in the pass that stepped them
        for w in self.weights:
            if w.density < 1.0 and id(w) not in cleared:  # nothing to clear under a mask that keeps everything
                masks.clear_(local(w.parameter), w.state[masks.KEEP])

    def _clear_all(self) -> None:
        """Behind the step of a wrapper: it may have written weights after the step inside of it."""
        for w in self.weights:
            if w.density < 1.0:
                masks.clear_(local(w.parameter), w.state[masks.KEEP])


class Shadow:
    """A dense weight stands behind the one in use; the two are exchanged around the step."""

    def __init__(self, method: Method, weights: Sequence[SparseWeight], layers: Sequence[Any]) -> None:
        self.method, self.weights, self.watch = method, list(weights), Watch(layers, weights)
        self._written: dict[str, tuple[int, At]] = {}

    def hooks(self) -> list[Any]:
        return self.watch.hooks(lambda: self.watch.refuse_if_written(self._rewritten))

    def before(self, learn: Callable[[], None]) -> None:
        self._learn(learn)
        for w in self.weights:
            local(w.parameter).copy_(w.state[DENSE])

    def score_pass(self, group: dict[str, Any], some: list[SparseWeight], seen: list[Weight]) -> ScorePass:
        return score_step_

    def after(self) -> None:
        for w in self.weights:
            w.state[DENSE].copy_(local(w.parameter))

    def skip(self) -> None:
        self._adopt()

    def moved(self, some: Sequence[SparseWeight]) -> None:
        """A mask follows from the dense weight each time; nothing is kept of the old one."""

    def write(self, at: At) -> None:
        for w in self.weights:
            weight = local(w.parameter)
            weight.copy_(self.method.used(w.seen(), at))
            self._written[w.name] = (weight._version, at)

    def _learn(self, learn: Callable[[], None]) -> None:
        """Learn by what others have done to the weights since the last ``write``."""
        self.watch.before()
        self.watch.compare(lambda w: self.method.used(w.seen(), self._written[w.name][1]))
        self._adopt()
        learn()

    def _rewritten(self) -> str | None:
        """The name of a weight that was written since ``write``."""
        return next((w.name for w in self.weights if local(w.parameter)._version != self._written[w.name][0]), None)

    def _adopt(self) -> None:
        """Take over what others wrote into weights since the last ``write``.

        A loaded or clamped weight is meant for the dense one. Only what differs from what the method wrote is theirs.
        """
        for w in self.weights:
            weight = local(w.parameter)
            version, at = self._written[w.name]
            if weight._version == version:
                continue
            own = self.method.used(w.seen(), at).to(weight.dtype)
            # Not to the last bit: sums over other numbers of threads may differ there.
            theirs = ~torch.isclose(weight, own, rtol=1e-6, atol=0.0)
            w.state[DENSE].copy_(torch.where(theirs, weight, w.state[DENSE]))


class Frozen(Shadow):
    """The dense weight stays as it is, or its method steps it: the optimizer sees no gradient of it."""

    def __init__(self, method: Method, weights: Sequence[SparseWeight], layers: Sequence[Any]) -> None:
        super().__init__(method, weights, layers)
        self._hidden = HiddenGradients()

    def before(self, learn: Callable[[], None]) -> None:
        self._learn(learn)
        self._hidden.hide([w.parameter for w in self.weights])

    def after(self) -> None:
        self._hidden.show()


Holding = InPlace | Shadow


def hold(method: Method, weights: Sequence[SparseWeight], layers: Sequence[Any], around: Any) -> Holding:
    """The way that a method holds its weights; dense training holds none.

    Args:
        layers: of the optimizer, outermost first; the last one steps.
        around: the sparsifier's own step hooks on the optimizer, before and after.
    """
    if method.holds in ("shadow", "frozen"):
        passed_by = method.holds == "frozen" or method.own_step
        return (Frozen if passed_by else Shadow)(method, weights, layers)
    return InPlace(method, weights if method.holds == "weight" else [], layers, around)
