"""Gradual magnitude pruning, per group.

Zhu and Gupta, *To prune, or not to prune*, arXiv 1710.01878, equation 1: the density falls along a cubic. Here each
group's number of kept weights falls from M to N, the smallest magnitudes first, and what is removed stays removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nmlearn.maths.pattern import Pattern
from nmlearn.maths.schedules import Falling
from nmlearn.methods.method import Method, Setting, Weight, keep_top_, wrong_counts


@dataclass(frozen=True)
class Gradual(Method):
    """Gradual magnitude pruning from M to N weights a group.

    Attributes:
        start, end, power: the schedule, see :class:`nmlearn.maths.schedules.Falling`.
    """

    start: float = 0.0
    end: float = 0.5
    power: float = 3.0

    name: ClassVar[str] = "gradual"

    def __post_init__(self) -> None:
        super().__post_init__()
        Falling(self.start, self.end, self.power)

    def setting(self, pattern: Pattern, progress: float) -> int:
        return Falling(self.start, self.end, self.power).count(progress, first=pattern.m, last=pattern.n)

    def impossible(self, w: Weight) -> str:
        return wrong_counts(w, w.pattern.m if w.setting is None else int(w.setting))  # type: ignore[arg-type]

    def advance(self, w: Weight, setting: Setting) -> bool:
        assert isinstance(setting, int)
        if setting == w.pattern.m:
            return False
        keep_top_(w, w.tensor.abs(), setting)
        return True
