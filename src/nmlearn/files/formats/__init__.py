"""Packed weights: N values of every group, and an index that says where they were (docs/format.md).

    values  [rows, groups of a row * N]   the original type; a group's values in the order of their places
    index   uint8 [bytes]                 one of three codes, bit-packed (offsets.py, bitmask.py, combination.py)

Pure functions: tensors in, tensors out. Unpacking restores every bit, including NaN payloads, except the sign of zeros:
all come back as +0.0. A group with fewer than N non-zeros keeps its first zeros as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.encoding import CODES as CODES
from nmlearn.files.formats.encoding import Encoding as Encoding
from nmlearn.files.formats.encoding import smallest
from nmlearn.maths.groups import Grouping
from nmlearn.maths.masks import SAME_SIZE, nonzero_bits

# The index is built in parts of about this many weights; that bounds the extra memory of one call to some tens of MB.
_WEIGHTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """A packed weight as a file stores it; the shapes of its two tensors follow from its encoding."""

    values: Tensor
    index: Tensor
    encoding: Encoding


def pack(weight: Tensor, grouping: Grouping, code: str | None = None, name: str = "weight") -> Encoded:
    """Keep N values of every group.

    Args:
        weight: floating point on the CPU, two or more dimensions.
        grouping: a pattern that the weight satisfies, and the axis of its inputs.
        code: a name in :data:`CODES`; by default the smallest.
        name: what errors call the weight.

    Raises:
        PatternError: M does not divide the length of the axis.
        ViolationError: a group has more than N values that are not zero.
    """
    kept_w = nonzero_bits(weight.detach())
    why = grouping.violation(kept_w)
    if why:
        fix = "choose a pattern that the weight satisfies, or leave it dense"
        raise ViolationError(where=name, given=tuple(weight.shape), wrong=why, fix=fix)
    encoding = Encoding(grouping, tuple(weight.shape), weight.dtype, code or smallest(grouping.pattern))
    mask_gm = _fill(grouping.rows(kept_w), grouping.pattern.n)
    bits_gm = grouping.rows(weight.detach().view(SAME_SIZE[weight.element_size()]))
    bits = bits_gm.masked_select(mask_gm).view(encoding.values_shape)
    bits.masked_fill_(~nonzero_bits(bits.view(weight.dtype)), 0)  # drops the sign of zeros
    parts = [CODES[encoding.code].encode(part, grouping.pattern) for part in mask_gm.split(_groups_at_once(encoding))]
    return Encoded(bits.view(weight.dtype), torch.cat(parts), encoding)


def unpack(packed: Encoded, name: str = "weight") -> Tensor:
    """The dense weight, contiguous: every bit of its values, and +0.0 elsewhere.

    Args:
        packed: values and index of the shapes and types that its encoding requires.
        name: what errors call the weight.

    Raises:
        FormatError: a tensor of another shape or type, or an index that its code does not allow.
    """
    encoding, pattern = packed.encoding, packed.encoding.grouping.pattern
    _check(packed, name)
    whole = SAME_SIZE[encoding.dtype.itemsize]
    bits_gm = torch.zeros(encoding.groups, pattern.m, dtype=whole, device=packed.values.device)
    values_gn = packed.values.view(whole).view(encoding.groups, pattern.n)
    step, width = _groups_at_once(encoding), CODES[encoding.code].bits(pattern)
    for start in range(0, encoding.groups, step):
        some = bits_gm[start : start + step]
        stream = packed.index[start * width // 8 : -(-(start + len(some)) * width // 8)]
        mask_gm = CODES[encoding.code].decode(stream, pattern, len(some), name)
        some.masked_scatter_(mask_gm, values_gn[start : start + step])
    return encoding.grouping.from_rows(bits_gm, encoding.shape).view(encoding.dtype)


def _fill(mask_gm: Tensor, n: int) -> Tensor:
    """Groups that keep fewer than N keep their first pruned places as well."""
    missing = n - mask_gm.sum(1)
    short = missing.nonzero()[:, 0]
    if len(short):
        free = ~mask_gm[short]
        mask_gm[short] = ~free | (free & (free.cumsum(1) <= missing[short, None]))
    return mask_gm


def _groups_at_once(encoding: Encoding) -> int:
    """A multiple of 8, so that every part of an index except the last ends with a whole byte."""
    return _WEIGHTS_AT_ONCE // encoding.grouping.pattern.m // 8 * 8


def _check(packed: Encoded, name: str) -> None:
    encoding = packed.encoding
    for what, tensor, shape, dtype in (
        ("values", packed.values, encoding.values_shape, encoding.dtype),
        ("index", packed.index, encoding.index_shape, torch.uint8),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            given = f"{what} {tensor.dtype} {list(tensor.shape)}"
            raise damaged(name, given, f"a packed {encoding.grouping.pattern} weight has {what} {dtype} {list(shape)}")
    used = encoding.index_bits % 8
    if used and int(packed.index[-1]) >> used:
        raise damaged(name, f"last byte {int(packed.index[-1])}", "the bits after the last group must be zero")
