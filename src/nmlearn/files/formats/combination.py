"""Index code "combination": the number of a group's combination in lexicographic order, ceil(log2 C(M, N)) bits."""

from __future__ import annotations

from torch import Tensor

from nmlearn.files.formats import bitstream
from nmlearn.files.formats.damage import damaged
from nmlearn.maths.combinations import rank, table, unrank
from nmlearn.maths.pattern import Pattern

# Up to this many combinations, including 8:16's, looking masks up is ten times as fast as computing them.
_LISTED = 1 << 14


def bits(pattern: Pattern) -> int:
    """Bits of one group."""
    return (pattern.combinations - 1).bit_length()


def encode(mask_gm: Tensor, pattern: Pattern) -> Tensor:
    """The stream of groups that keep exactly N each.

    Args:
        mask_gm: bool ``[G, M]``.

    Returns:
        uint8 ``[ceil(G * bits / 8)]``.
    """
    return bitstream.write(rank(mask_gm, pattern), bits(pattern))


def decode(stream: Tensor, pattern: Pattern, groups: int, name: str) -> Tensor:
    """The inverse of :func:`encode`: bool ``[G, M]``.

    Raises:
        FormatError: a number is not below C(M, N).
    """
    numbers = bitstream.read(stream, bits(pattern), groups)
    if groups and int(numbers.max()) >= pattern.combinations:
        raise damaged(name, f"combination {int(numbers.max())}", f"{pattern} has only {pattern.combinations}")
    if pattern.combinations <= _LISTED:
        return table(pattern).index_select(0, numbers)
    return unrank(numbers, pattern)
