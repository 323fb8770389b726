"""What calibration saw of the inputs that a weight is multiplied with, and the rows that multiply them.

Every output of a linear layer or a convolution is a row of K weights times K inputs: ``y_to = x_tk w_ok``. Convolution
groups are G such products that share nothing. Of a convolution, K runs over kernel positions and, fastest, the input
channels, so that the M weights of a group stand next to each other here as well.

Shape suffixes: ``_gok`` rows by convolution group, ``_gk`` per input, ``_gkk`` pairs of inputs, ``_t`` tokens (a row of
x: a token, or one position of an image).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nmlearn.maths.groups import Grouping


@dataclass(frozen=True)
class Inputs:
    """Sums over the inputs of one weight: float32 or float64, on its device.

    Attributes:
        tokens: how many rows of x were added up.
        sum_gk: ``sum_t x_tk``.
        square_gk: ``sum_t x_tk^2``.
        gram_gkk: ``x^T x``; None where nobody asked for it.
    """

    tokens: int
    sum_gk: Tensor
    square_gk: Tensor
    gram_gkk: Tensor | None = None

    @classmethod
    def of(cls, x_gtk: Tensor, gram: bool) -> Inputs:
        """The sums over given inputs ``[G, T, K]``."""
        pairs = x_gtk.mT @ x_gtk if gram else None
        return cls(x_gtk.shape[1], x_gtk.sum(1), x_gtk.square().sum(1), pairs)

    def double(self) -> Inputs:
        """The same in float64."""
        gram = None if self.gram_gkk is None else self.gram_gkk.double()
        return replace(self, sum_gk=self.sum_gk.double(), square_gk=self.square_gk.double(), gram_gkk=gram)

    @property
    def norm_gk(self) -> Tensor:
        """The 2-norm of each input over all tokens."""
        return self.square_gk.sqrt()

    @property
    def mean_gk(self) -> Tensor:
        """The mean of each input."""
        return self.sum_gk / self.tokens

    @property
    def variance_gk(self) -> Tensor:
        """The variance of each input, over tokens and not tokens - 1."""
        return (self.square_gk / self.tokens - self.mean_gk.square()).clamp_min(0)


def to_rows(weight_w: Tensor, grouping: Grouping, count: int) -> Tensor:
    """The rows ``[G, O, K]`` of a weight whose inputs run along ``grouping.axis``, 0 or 1; the other is its outputs.

    Args:
        weight_w: ``[out, in / G, ...]`` or, with axis 0, ``[in, out]``; further axes are kernel positions.
        count: G, the convolution groups.
    """
    x = weight_w.movedim(grouping.axis, -1)  # [out, positions ..., in / G]
    return x.reshape(count, x.shape[0] // count, math.prod(x.shape[1:]))


def from_rows(rows_gok: Tensor, grouping: Grouping, shape: tuple[int, ...]) -> Tensor:
    """The weight of a shape from its rows: the inverse of :func:`to_rows`."""
    others = shape[: grouping.axis] + shape[grouping.axis + 1 :]
    return rows_gok.reshape(*others, shape[grouping.axis]).movedim(-1, grouping.axis).contiguous()


def finite(inputs: Inputs) -> bool:
    """Whether no sum overflowed or met a NaN."""
    return bool(torch.isfinite(inputs.square_gk).all())
