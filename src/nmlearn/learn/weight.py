"""A weight under a method: its state, where it stands, and the hook on its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from nmlearn.learn.quiet import Quiet
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern
from nmlearn.methods.method import State
from nmlearn.model.shards import local


@dataclass
class Taken:
    """A weight under a method, with its state and what the schedule has come to."""

    name: str
    parameter: nn.Parameter
    grouping: Grouping
    lr_group: int
    state: State
    quiet: Quiet
    shapes: dict[str, tuple[int, ...]]
    value: int | None = None
    density: float = 1.0
    writes: int = 0


@dataclass(frozen=True)
class WeightStatus:
    """Where one weight stands: its density now, and how many combinations its groups still choose from."""

    name: str
    pattern: Pattern
    shape: tuple[int, ...]
    survivors: int | None
    combinations: int | None
    density: float


def gradient_hook(taken: Taken) -> Callable[[Tensor], None]:
    """Clears the gradient of removed weights as soon as it is there, before clipping, logging or the optimizer."""

    def clear(parameter: Tensor) -> None:
        if taken.density < 1.0 and parameter.grad is not None:
            masks.clear_(local(parameter.grad), taken.state["keep"])
            taken.quiet.gradient_cleared()

    return clear
