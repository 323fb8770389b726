"""Index code "bitmask": one bit for every place of a group, 1 where a value is kept."""

from __future__ import annotations

from torch import Tensor

from nmlearn.files.formats import bitstream
from nmlearn.files.formats.damage import damaged
from nmlearn.maths.pattern import Pattern


def bits(pattern: Pattern) -> int:
    """Bits of one group."""
    return pattern.m


def encode(mask_gm: Tensor, pattern: Pattern) -> Tensor:
    """The stream of groups that keep exactly N each.

    Args:
        mask_gm: bool ``[G, M]``.

    Returns:
        uint8 ``[ceil(G * M / 8)]``.
    """
    return bitstream.write(mask_gm.reshape(-1).long(), 1)


def decode(stream: Tensor, pattern: Pattern, groups: int, name: str) -> Tensor:
    """The inverse of :func:`encode`: bool ``[G, M]``.

    Raises:
        FormatError: a group does not keep exactly N.
    """
    mask_gm = bitstream.read(stream, 1, groups * pattern.m).view(groups, pattern.m).bool()
    counts = mask_gm.sum(1)
    wrong = counts[counts != pattern.n]
    if len(wrong):
        raise damaged(name, f"a bitmask of {int(wrong[0])} kept values", f"a group of {pattern} keeps {pattern.n}")
    return mask_gm
