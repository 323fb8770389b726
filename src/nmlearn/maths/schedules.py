"""Schedules: progress in [0, 1] -> value. Progress is the number of optimizer steps done over the total."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nmlearn.errors import ScheduleError


@dataclass(frozen=True)
class Falling:
    """Falls from a first to a last count, fast at first and slowly later.

    ``count(p) = last + ceil((first - last) (1 - (p - start) / (end - start))^power)``, LBC's schedule (NeurIPS 2022)
    with ``last = 1``; before ``start`` it is ``first``, from ``end`` on it is ``last``, for any real p.

    Attributes:
        start: progress at which the count begins to fall, in [0, 1].
        end: progress from which it is at its last value, in [start, 1].
        power: the exponent, > 0.

    Raises:
        ScheduleError: not 0 <= start <= end <= 1, or power not above 0.
    """

    start: float = 0.0
    end: float = 0.5
    power: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.start <= self.end <= 1.0:
            raise ScheduleError(
                where="schedule",
                given=f"start={self.start}, end={self.end}",
                wrong="a schedule needs 0 <= start <= end <= 1, as shares of the training",
                fix="for the paper's first half of the training write start=0, end=0.5",
            )
        if not 0.0 < self.power < math.inf:
            raise ScheduleError(
                where="schedule",
                given=f"power={self.power}",
                wrong="the exponent must be above 0",
                fix="the paper has 3 for the ResNets and 4 for DeiT",
            )

    def count(self, progress: float, first: int, last: int = 1) -> int:
        """The count at this progress; ``first >= last``."""
        # Written so that NaN progress changes nothing.
        if progress >= self.end:
            return last
        if not progress > self.start:
            return first
        left = 1.0 - (progress - self.start) / (self.end - self.start)
        # Float noise must not lift a whole number to the next one: 27 (5/6)^3 ... is meant, not 27.000000000000004.
        return min(first, last + math.ceil((first - last) * float(left**self.power) - 1e-9))


def along(progress: float, start: float, end: float) -> float:
    """The share of the way from start to end that progress has done, in [0, 1]; NaN has done nothing."""
    if progress >= end:
        return 1.0
    return (progress - start) / (end - start) if progress > start else 0.0
