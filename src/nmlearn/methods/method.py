"""The contract of a method: what a sparsifier asks of a published algorithm.

A method is a frozen dataclass of its settings; what it learns lives in one state per weight, a dict of tensors. The
sparsifier drives it around the user's optimizer:

    attach            state = init(name, weight, grouping)
    after backward    the gradient of a removed weight is cleared (unless the method keeps the dense weight)
    before the step   learn(batch, lr)                               every step, many weights at once
    after the step    advance(name, weight, state, grouping, value)  only when value(pattern, progress) has changed
                      use(batch)                                     every step

A method that ``keeps_dense`` has the weight that the optimizer moves in ``state["dense"]``; the model's weight holds
what the network computes with, and the sparsifier exchanges the two around the step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.native.training import WeightStep

State = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """Weights handled in one go: lists of equal length, one entry a weight, on one device.

    Attributes:
        weights: what the network computes with; written in place.
        grads: their gradients, of the same shapes; empty where there are none to see (``Method.use``).
        states, groupings: what :meth:`Method.init` made, and how the weight is cut into groups.
        weight_step: what the optimizer is about to do, where ``Method.learn`` may do it in its own pass; it adds the
            indices of weights for which it did to ``stepped``.
    """

    weights: list[Tensor]
    grads: list[Tensor]
    states: list[State]
    groupings: list[Grouping]
    weight_step: WeightStep | None = None
    stepped: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Method:
    """Base of all methods.

    Attributes:
        pattern: the pattern N:M of every weight that no rule gives another one; text is read by :class:`Pattern`.
    """

    pattern: Pattern | str

    name: ClassVar[str]
    """The registered name, as the command line spells it."""
    keeps_dense: ClassVar[bool] = False
    """Whether the state holds a dense weight that the optimizer moves in place of the sparse one."""
    dense_gradient: ClassVar[bool] = False
    """Whether removed weights need their gradient, so that training never gets cheaper than the weight gradient."""
    masks_weights: ClassVar[bool] = True
    """False only for dense training, which a plan accompanies but never touches."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", Pattern(self.pattern))

    def eliminates(self, pattern: Pattern) -> str:
        """How a weight of this pattern loses its candidates, for the plan; empty when there is nothing to say."""
        return ""

    def value(self, pattern: Pattern, progress: float) -> int:
        """The schedule's value for a pattern at this progress in [0, 1]; ``advance`` is called when it changes."""
        return 0

    def ended(self, pattern: Pattern, value: int | None) -> bool:
        """Whether the schedule has come to its end at this value, so that the state is the mask alone from here on."""
        return False

    def init(self, name: str, weight: Tensor, grouping: Grouping) -> State:
        """The state of one weight at the start; tensors on its device, per-weight ones in its memory layout."""
        return {"keep": masks.full_bits(weight)}

    def learn(self, batch: Batch, lr: float) -> None:
        """Between backward and step: update scores, rewrite gradients in place; ``lr`` is the weights' own."""

    def advance(self, name: str, weight: Tensor, state: State, grouping: Grouping, value: int) -> bool:
        """Follow the schedule to this value after the step. Returns whether the mask may have changed."""
        return False

    def use(self, batch: Batch) -> None:
        """After the step: write into the weights, in place, what the network computes with."""
        for weight, state in zip(batch.weights, batch.states, strict=True):
            masks.clear_(weight, state["keep"])

    def mask(self, weight: Tensor, state: State) -> Tensor:
        """What is kept now: bool, of the weight's shape."""
        return masks.from_bits(state["keep"])

    def survivors(self, state: State, grouping: Grouping) -> int | None:
        """How many combinations a group still chooses from, or None where that means nothing."""
        return None

    def describe(self) -> dict[str, Any]:
        """The settings as text and numbers: what a state must agree with to be loaded."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {key: v if isinstance(v, int | float | str | None) else _text(v) for key, v in fields.items()}


def _text(value: object) -> str:
    return str(value) if isinstance(value, Pattern) else "given"


def keep_top_(state: State, scores_w: Tensor, grouping: Grouping, count: int) -> None:
    """Keep the ``count`` best-scored weights of every group among those kept so far; what is removed stays removed.

    Args:
        scores_w: nonnegative scores, of the weight's shape. What is not finite ranks last.
        count: how many a group keeps.
    """
    scores = masks.finite_first(scores_w).masked_fill(state["keep"] == 0, -2.0)
    chosen = masks.top(grouping.view(scores), count) & (grouping.view(state["keep"]) != 0)
    grouping.view(state["keep"]).copy_(masks.bits(chosen))
