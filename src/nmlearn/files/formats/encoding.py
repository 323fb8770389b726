"""How a file encodes one packed weight, and the sizes of its values and index."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nmlearn.files.formats import bitmask, combination, offsets
from nmlearn.maths.groups import Grouping
from nmlearn.maths.pattern import Pattern


@dataclass(frozen=True)
class Code:
    """One encoding of the places that a group keeps; its functions are described in its file."""

    bits: Callable[[Pattern], int]
    encode: Callable[[Tensor, Pattern], Tensor]
    decode: Callable[[Tensor, Pattern, int, str], Tensor]


# In order of preference among codes of equal size: the first is the easiest to read.
CODES = {
    "offsets": Code(offsets.bits, offsets.encode, offsets.decode),
    "bitmask": Code(bitmask.bits, bitmask.encode, bitmask.decode),
    "combination": Code(combination.bits, combination.encode, combination.decode),
}


def smallest(pattern: Pattern) -> str:
    """The name of the code that needs the fewest bits per group."""
    return min(CODES, key=lambda name: CODES[name].bits(pattern))


@dataclass(frozen=True)
class Encoding:
    """A packed weight without its data.

    Attributes:
        grouping: the pattern, and the axis that runs along the inputs.
        shape: of the dense weight.
        dtype: of the dense weight and of the packed values.
        code: the name of the index code.
    """

    grouping: Grouping
    shape: tuple[int, ...]
    dtype: torch.dtype
    code: str

    @property
    def rows(self) -> int:
        """The product of all dimensions except the input axis."""
        return math.prod(self.shape[: self.grouping.axis] + self.shape[self.grouping.axis + 1 :])

    @property
    def groups(self) -> int:
        """How many groups the whole weight has."""
        return self.rows * (self.shape[self.grouping.axis] // self.grouping.pattern.m)

    @property
    def values_shape(self) -> tuple[int, int]:
        """``[rows, groups of a row * N]``."""
        pattern = self.grouping.pattern
        return self.rows, self.shape[self.grouping.axis] // pattern.m * pattern.n

    @property
    def index_bits(self) -> int:
        """How many bits of the index are used."""
        return self.groups * CODES[self.code].bits(self.grouping.pattern)

    @property
    def index_shape(self) -> tuple[int]:
        """``[bytes]``."""
        return (-(-self.index_bits // 8),)

    @property
    def nbytes(self) -> int:
        """Bytes of values and index together."""
        return math.prod(self.values_shape) * self.dtype.itemsize + self.index_shape[0]
