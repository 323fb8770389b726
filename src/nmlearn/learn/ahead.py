"""Stepping weights ahead of the optimizer, in the pass that steps their scores or clears what is pruned.

Scores read every weight and gradient just before the optimizer does, and memory is what both cost: the optimizer's own
passes cost more than the scores. So the kernels do its arithmetic too, with the same bits (tested), and while
``optimizer.step`` runs such a weight has no gradient, which is how optimizers skip it. What the optimizer remembers
stays in its state. Where other hooks on the optimizer could tell, nothing is done ahead.
"""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn, optim

from nmlearn.learn.hidden import HiddenGradients
from nmlearn.learn.weight import SparseWeight
from nmlearn.maths import masks
from nmlearn.methods.method import Weight
from nmlearn.native.training import ScorePass, WeightStep, score_and_weight_step_, score_step_, weight_step_


class Ahead:
    """Steps the weights of one optimizer, and hides their gradients while it steps; a subclass a kind of optimizer.

    Args:
        optimizer: the one that steps.
        before, after: the caller's own step hooks on it.
    """

    def __init__(self, optimizer: optim.Optimizer, before: Any, after: Any) -> None:
        self._optimizer, self._around = weakref.ref(optimizer), (weakref.ref(before), weakref.ref(after))
        self._hidden = HiddenGradients()
        self.stepped: list[SparseWeight] = []

    # What a kind of optimizer says

    def _applies(self, group: dict[str, Any]) -> bool:
        """Whether the kernels know the arithmetic of a parameter group, and nobody could tell who did it."""
        raise NotImplementedError

    def _step(self, group: dict[str, Any], own: list[SparseWeight]) -> WeightStep:
        """The step of these weights of a group; without a moment, the optimizer steps a weight itself."""
        raise NotImplementedError

    def _count(self, stepped: list[SparseWeight]) -> None:
        """Note in the optimizer's state that these weights have been stepped."""

    # The same for all

    @property
    def optimizer(self) -> optim.Optimizer:
        optimizer = self._optimizer()
        assert optimizer is not None  # it steps
        return optimizer

    def score_pass(self, group: dict[str, Any], some: list[SparseWeight], seen: list[Weight]) -> ScorePass:
        """The pass over scores for weights of one parameter group: it steps the weights too, where it may."""
        if not self._applies(group):
            return score_step_
        known = {id(each.tensor): w for each, w in zip(seen, some, strict=True)}

        def both(s: Any, v: Any, g: Any, tensors: list[Tensor], **settings: float) -> list[int]:
            own = [known[id(tensor)] for tensor in tensors]
            left, stepped = score_and_weight_step_(s, v, g, tensors, self._step(group, own), **settings)
            self._done([own[i] for i in stepped])
            return left

        return both

    def step_rest(self, weights: list[SparseWeight]) -> None:
        """Step the weights that have no scores: it saves the pass that clears what is pruned, and some of SGD's."""
        done = {id(w) for w in self.stepped}
        for index, group in enumerate(self.optimizer.param_groups):
            some = [w for w in weights if w.lr_group == index and w.density < 1.0 and id(w) not in done]
            seen = [(w, each) for w in some if (each := w.seen()).grad is not None]
            if seen and self._applies(group):
                own, grads = [w for w, _ in seen], [each.grad for _, each in seen if each.grad is not None]
                tensors = [each.tensor for _, each in seen]
                stepped = weight_step_(grads, tensors, self._step(group, own), lr=float(group["lr"]))
                self._done([own[i] for i in stepped])

    def _done(self, stepped: list[SparseWeight]) -> None:
        self._count(stepped)
        self.stepped += stepped

    def _known(self, parameter: nn.Parameter) -> dict[str, Any]:
        """What the optimizer remembers of a plain parameter."""
        plain = type(parameter) is nn.Parameter and parameter in self.optimizer.state
        return self.optimizer.state[parameter] if plain else {}

    def _alone(self) -> bool:
        """Whether no other hook comes between learning and the optimizer, or between the optimizer and ``show``."""
        others_before = list(self.optimizer._optimizer_step_pre_hooks.values())[-1:] != [self._around[0]()]
        others_after = list(self.optimizer._optimizer_step_post_hooks.values())[:1] != [self._around[1]()]
        return not others_before and not others_after

    def hide(self) -> None:
        """Hide the gradients of the weights that have been stepped."""
        self._hidden.hide([w.parameter for w in self.stepped])

    def show(self) -> None:
        """Put the gradients back."""
        self._hidden.show()


def keeps(own: list[SparseWeight]) -> list[Tensor | None]:
    """The bits that clear weights in the pass that steps them."""
    return [w.state[masks.KEEP] if w.density < 1.0 else None for w in own]
