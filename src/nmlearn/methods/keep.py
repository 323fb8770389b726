"""Fixed masks: the zeros that are there stay, for fine-tuning a model that is already sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.maths import masks
from nmlearn.maths.groups import Grouping
from nmlearn.methods.method import Method, State


@dataclass(frozen=True)
class Keep(Method):
    """Takes the zeros that a weight has at attach and protects them; they must already fit the pattern."""

    name: ClassVar[str] = "keep"

    def init(self, name: str, weight: Tensor, grouping: Grouping) -> State:
        mask = weight != 0
        why = grouping.violation(mask)
        if why:
            raise ViolationError(
                where=name,
                given=tuple(weight.shape),
                wrong=f"{why}, so there is nothing to keep",
                fix="give it the pattern that it has, or leave it dense with a rule",
            )
        return {"keep": masks.bits(mask)}
