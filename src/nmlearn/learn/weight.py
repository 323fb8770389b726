"""One weight under a method: its state, and how far its schedule has come."""

from __future__ import annotations

import functools
import weakref
from dataclasses import dataclass, field

from torch import Tensor, nn

from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import DENSE, Method, Setting, State, Weight
from nmlearn.model.shards import local, shard


@dataclass
class SparseWeight:
    """A weight under a method.

    Attributes:
        lr_group: the index of the optimizer's parameter group that holds it.
        shapes: of the whole tensors that its state may have.
        setting: what the schedule has come to; None before the first step.
        density: the share that its mask keeps.
        cleared: the gradient that was cleared last, and how often it had been written by then.
    """

    name: str
    parameter: nn.Parameter
    grouping: Grouping
    state: State
    lr_group: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    setting: Setting | None = None
    density: float = 1.0
    cleared: tuple[weakref.ref[Tensor], int] | None = None

    def seen(self) -> Weight:
        """The weight as its method sees it now."""
        in_use, grad = local(self.parameter), self.parameter.grad
        return Weight(
            name=self.name,
            grouping=self.grouping,
            tensor=self.state.get(DENSE, in_use),
            state=self.state,
            setting=self.setting,
            grad=None if grad is None else local(grad),
            in_use=in_use,
            shape=tuple(self.parameter.shape),
            shard=functools.partial(shard, weight=self.parameter),
        )

    def status(self, method: Method) -> WeightStatus:
        """Where it stands; reads the mask of a method that moves it on every step."""
        seen = self.seen()
        return WeightStatus(
            name=self.name,
            pattern=self.grouping.pattern,
            shape=tuple(self.parameter.shape),
            survivors=method.survivors(seen),
            combinations=self.grouping.pattern.combinations,
            density=self.density if method.holds == "weight" else masks.density(method.mask(seen)),
        )


@dataclass(frozen=True)
class WeightStatus:
    """Where one weight stands: its density now, and how many combinations its groups still choose from."""

    name: str
    pattern: Pattern
    shape: tuple[int, ...]
    survivors: int | None
    combinations: int | None
    density: float
