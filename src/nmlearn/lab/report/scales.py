"""Maps values to positions: linear and logarithmic scales whose ticks are round numbers and cover the data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from nmlearn.lab.report.numbers import finite, fixed, significant

LIMIT = 1e300  # beyond it, and below its inverse, arithmetic on ticks overflows


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        ticks: increasing values, at least two.
        log: whether distances are ratios; all ticks are then positive.
        ends: where it starts and stops (default: at the first and last tick).
    """

    ticks: tuple[float, ...]
    log: bool = False
    ends: tuple[float, float] | None = None

    def at(self, value: float) -> float:
        """The position of `value`, 0 at the start and 1 at the end, clamped to the frame."""
        low, high = self.ends or (self.ticks[0], self.ticks[-1])
        place = value
        if self.log:
            low, high, place = math.log(low), math.log(high), math.log(max(value, low))
        return min(1.0, max(0.0, (place - low) / (high - low)))

    def shows(self, value: object) -> bool:
        """Whether `value` can be drawn: a finite number, positive on a logarithmic scale."""
        number = finite(value)
        return number is not None and (number > 0 or not self.log)

    def text(self, tick: float) -> str:
        """The label of a tick, with enough decimals to tell ticks apart."""
        if self.log:
            return fixed(tick, 0) if 1 <= tick < 1e6 else significant(tick, 1)
        step = self.ticks[1] - self.ticks[0]
        if step < 1e-6 or max(map(abs, self.ticks)) >= 1e7:
            return significant(tick, 2)
        return fixed(tick, max(0, -math.floor(math.log10(step) + 1e-9)))


def linear(values: Iterable[object], count: int = 4) -> Scale:
    """A scale with about `count` steps of 1, 2 or 5 times a power of ten over all finite values."""
    numbers = [max(-LIMIT, min(LIMIT, number)) for number in map(finite, values) if number is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    # Differences near the resolution of floats give no distinct ticks: treat the values as constant.
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1 / LIMIT):
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    step = _round_up((high - low) / count)
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [k * step for k in range(first, last + 1)]
    if ticks[0] > low:  # because k * step is rounded
        ticks.insert(0, (first - 1) * step)
    if ticks[-1] < high:
        ticks.append((last + 1) * step)
    return Scale(tuple(ticks))


def _round_up(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= step), 10 * power)


def tight(values: Iterable[object], count: int = 5, margin: float = 0.04) -> Scale:
    """A linear scale that extends slightly beyond the data, with its round ticks inside."""
    numbers = [number for number in map(finite, values) if number is not None]
    whole = linear(numbers, count)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    room = margin * (high - low)
    inside = tuple(tick for tick in whole.ticks if low - room <= tick <= high + room)
    return Scale(inside, ends=(low - room, high + room)) if len(inside) > 1 else whole


def course(values: Iterable[object]) -> Scale:
    """A linear scale for time: from the first value to the last, both labelled.

    The ticks divide it equally if that gives round numbers; otherwise they are the round numbers between the ends.
    """
    numbers = [number for number in map(finite, values) if number is not None]
    whole = linear(numbers)
    low, high = min(numbers, default=0.0), max(numbers, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return whole
    for parts in (4, 5, 3):
        step = high / parts
        if low == 0 and 1e-9 < step < LIMIT and float(f"{step:.1g}") == step:
            return Scale((*(step * k for k in range(parts)), high))
    gap = (high - low) / 9  # a tick nearer to an end than this would overlap the end's label
    inside = [tick for tick in whole.ticks if tick - low >= gap and high - tick >= gap]
    return _Course((low, *inside, high), step=whole.ticks[1] - whole.ticks[0])


@dataclass(frozen=True)
class _Course(Scale):
    step: float = 1.0

    def text(self, tick: float) -> str:
        """Ends get at most one decimal, inner ticks as many as their step needs."""
        if tick in (self.ticks[0], self.ticks[-1]) and 0.1 <= abs(tick) < 1000:
            return f"{round(tick, 1):g}"
        return "0" if tick == 0 else Scale((0.0, self.step)).text(tick)


@dataclass(frozen=True)
class Rows:
    """The y scale of named rows, the first on top; a row's value is its number."""

    names: tuple[str, ...]

    @property
    def ticks(self) -> range:
        """Every row."""
        return range(len(self.names))

    def at(self, row: float) -> float:
        """The middle of a row, 0 at the bottom and 1 at the top."""
        return 1 - (row + 0.5) / len(self.names)

    def text(self, row: float) -> str:
        """The name of a row."""
        return self.names[int(row)]


def logarithmic(values: Iterable[object]) -> Scale:
    """A logarithmic scale over all positive finite values: 1, 2, 5 steps below two decades, else powers of ten."""
    numbers = [
        max(1 / LIMIT, min(LIMIT, number)) for number in map(finite, values) if number is not None and number > 0
    ]
    low, high = (min(numbers), max(numbers)) if numbers else (1.0, 10.0)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    if last - first <= 2:
        return Scale(_cover([f * 10.0**k for k in range(first - 1, last + 2) for f in (1, 2, 5)], low, high), log=True)
    stride = math.ceil((last - first) / 6)
    return Scale(
        _cover([10.0 ** min(k, 308) for k in range(first - stride, last + 2 * stride, stride)], low, high), log=True
    )


def _cover(candidates: list[float], low: float, high: float) -> tuple[float, ...]:
    start = max(i for i, tick in enumerate(candidates) if tick <= low)
    stop = min(i for i, tick in enumerate(candidates) if tick >= high)
    return tuple(candidates[start : max(stop, start + 1) + 1])
