"""Weight <-> group view: the only reshape in the library.

A group is M consecutive weights along the input dimension of one output row, one kernel position and one convolution
group. The view puts the place in the group last and copies nothing:

    Linear        [out, in]            axis 1   ->  [out, in/M, M]
    Conv2d        [out, in, kh, kw]    axis 1   ->  [out, in/M, kh, kw, M]
    experts       [e, out, in]         axis 2   ->  [e, out, in/M, M]

Shape suffixes used in this library: ``_w`` the weight's shape, ``_gm`` groups by place, ``_gc`` groups by combination
(the leading dimensions of the view stand for g).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from nmlearn.errors import PatternError
from nmlearn.maths.pattern import Pattern


@dataclass(frozen=True)
class Grouping:
    """How one weight is cut into groups: a pattern, and the axis that runs along the inputs, counted from 0.

    Raises:
        PatternError: not a pattern, or a negative axis.
    """

    pattern: Pattern
    axis: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", Pattern(self.pattern))
        if self.axis < 0:
            raise PatternError(
                where="grouping",
                given=f"axis={self.axis}",
                wrong="the input axis is counted from the front, so that a weight of any rank is read alike",
                fix="write 1 for [out, in, ...], 2 for [experts, out, in]",
            )

    def view(self, x_w: Tensor) -> Tensor:
        """The group view ``[..., M]`` of a tensor of the weight's shape, sharing its memory.

        Raises:
            PatternError: M does not divide the length of the axis.
        """
        why = misfit(tuple(x_w.shape), self.axis, self.pattern)
        if why:
            raise PatternError(where="weight", given=tuple(x_w.shape), wrong=why, fix="leave this weight dense")
        x_gm: Tensor = x_w.unflatten(self.axis, (-1, self.pattern.m)).movedim(self.axis + 1, -1)
        return x_gm

    def unview(self, x_gm: Tensor) -> Tensor:
        """A tensor of the weight's shape from its group view ``[..., M]``; the inverse of :meth:`view`."""
        return x_gm.movedim(-1, self.axis + 1).flatten(self.axis, self.axis + 1)

    def violation(self, kept_w: Tensor) -> str:
        """How many groups keep more than N, and the first of them as a Python index; empty when none does.

        Args:
            kept_w: bool of the weight's shape: ``weight != 0``, or ``masks.nonzero_bits(weight)``.

        Raises:
            PatternError: M does not divide the length of the axis.
        """
        counts = self.view(kept_w).sum(-1)
        bad = counts > self.pattern.n
        if not bool(bad.any()):
            return ""
        place = bad.nonzero()[0].tolist()
        index, start = [str(i) for i in place], place[self.axis] * self.pattern.m
        index[self.axis] = f"{start}:{start + self.pattern.m}"
        return (
            f"{int(bad.sum()):,} of {bad.numel():,} groups break {self.pattern}; "
            f"the first is [{', '.join(index)}] with {int(counts[tuple(place)])} non-zeros"
        )

    def output_axes(self) -> tuple[int, ...]:
        """The axes that count outputs: of experts ``[e, out, in]`` two, of transposed convolutions the second."""
        return tuple(range(self.axis)) or (1,)

    def groups_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The leading dimensions of the view of a weight of this shape."""
        return (*shape[: self.axis], shape[self.axis] // self.pattern.m, *shape[self.axis + 1 :])

    def rows(self, x_w: Tensor) -> Tensor:
        """``[G, M]``, one group a row in the order of files: the input axis last, the others in their order.

        Shares memory where the axis is the last one, copies where not.

        Raises:
            PatternError: M does not divide the length of the axis.
        """
        x_gm = self.view(x_w).movedim(self.axis, -2)
        return x_gm.reshape(math.prod(x_gm.shape[:-1]), self.pattern.m)

    def from_rows(self, x_gm: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The weight of a shape from its groups ``[G, M]``, contiguous: the inverse of :meth:`rows`."""
        others = shape[: self.axis] + shape[self.axis + 1 :]
        return x_gm.view(*others, shape[self.axis]).movedim(-1, self.axis).contiguous()


def misfit(shape: tuple[int, ...], axis: int, pattern: Pattern) -> str:
    """Why a weight of this shape cannot be cut into groups of M along the axis; empty when it can."""
    if axis >= len(shape):
        return f"no axis {axis} in a {len(shape)}-D weight"
    length = shape[axis]
    if length % pattern.m:
        return f"{length} input channels, not a multiple of {pattern.m}"
    return ""
