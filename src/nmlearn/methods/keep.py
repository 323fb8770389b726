"""Fixed masks: the zeros that are there stay, for fine-tuning a model that is already sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nmlearn.errors import ViolationError
from nmlearn.maths import masks
from nmlearn.methods.method import Method, State, Weight


@dataclass(frozen=True)
class Keep(Method):
    """Takes the zeros that a weight has at attach and protects them; they must already fit the pattern."""

    name: ClassVar[str] = "keep"

    def init(self, w: Weight) -> State:
        mask = w.tensor != 0
        why = w.grouping.violation(mask)
        if why:
            raise ViolationError(
                where=w.name,
                given=tuple(w.tensor.shape),
                wrong=f"{why}, so there is nothing to keep",
                fix="give it the pattern that it has, or leave it dense with a rule",
            )
        return {masks.KEEP: masks.bits(mask)}
