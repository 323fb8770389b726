"""Index code "offsets": the place in the group of every kept value, ascending, ceil(log2 M) bits each."""

from __future__ import annotations

import torch
from torch import Tensor

from nmlearn.files.formats import bitstream
from nmlearn.files.formats.damage import damaged
from nmlearn.maths.pattern import Pattern


def bits(pattern: Pattern) -> int:
    """Bits of one group."""
    return pattern.n * _width(pattern)


def encode(mask_gm: Tensor, pattern: Pattern) -> Tensor:
    """The stream of groups that keep exactly N each.

    Args:
        mask_gm: bool ``[G, M]``.

    Returns:
        uint8 ``[ceil(G * bits / 8)]``.
    """
    return bitstream.write(mask_gm.nonzero()[:, 1], _width(pattern))


def decode(stream: Tensor, pattern: Pattern, groups: int, name: str) -> Tensor:
    """The inverse of :func:`encode`: bool ``[G, M]``.

    Raises:
        FormatError: a place is out of range, or the places of a group are not ascending.
    """
    places_gn = bitstream.read(stream, _width(pattern), groups * pattern.n).view(groups, pattern.n)
    if groups and int(places_gn.max()) >= pattern.m:
        raise damaged(
            name, f"offset {int(places_gn.max())}", f"a group of {pattern} has the places 0 to {pattern.m - 1}"
        )
    unordered = (places_gn.diff(dim=1) <= 0).any(1)
    if bool(unordered.any()):
        first = int(unordered.nonzero()[0])
        raise damaged(name, f"offsets {places_gn[first].tolist()}", "the offsets of a group must ascend")
    mask_gm = torch.zeros(groups, pattern.m, dtype=torch.bool, device=places_gn.device)
    return mask_gm.scatter_(1, places_gn, True)


def _width(pattern: Pattern) -> int:
    return (pattern.m - 1).bit_length()
