"""Packed weights: N values of every group, and an index that says where they stood (docs/format.md).

    values  [rows, groups of a row * N]   the original type; a group's values in the order of their places
    index   uint8 [bytes]                 one of three codes, bit-packed (offsets.py, bitmask.py, combination.py)

Pure functions: tensors in, tensors out. Only the bits of +0.0 count as removed, so unpacking restores every bit,
negative zeros and the payloads of NaN included. A group with fewer than N non-zeros keeps its first zeros as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nmlearn.errors import ViolationError
from nmlearn.files.formats.damage import damaged
from nmlearn.files.formats.layout import CODES as CODES
from nmlearn.files.formats.layout import Layout as Layout
from nmlearn.files.formats.layout import smallest
from nmlearn.maths.groups import Grouping
from nmlearn.maths.masks import SAME_SIZE, nonzero_bits

# The index is made in parts of about this many weights; it bounds the extra memory of one call to some tens of MB.
_WEIGHTS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Packed:
    """A packed weight; the shapes of its two tensors follow from its layout."""

    values: Tensor
    index: Tensor
    layout: Layout


def pack(weight: Tensor, grouping: Grouping, code: str | None = None, name: str = "weight") -> Packed:
    """Keep N values of every group.

    Args:
        weight: floating point on the CPU, two or more dimensions.
        grouping: a pattern that the weight fulfils, and the axis of its inputs.
        code: a name of :data:`CODES`; the smallest unless given.
        name: what errors call the weight.

    Raises:
        PatternError: M does not divide the length of the axis.
        ViolationError: a group has more than N values that are not +0.0.
    """
    kept_w = nonzero_bits(weight.detach())
    why = grouping.violation(kept_w)
    if why:
        raise ViolationError(
            where=name,
            given=tuple(weight.shape),
            wrong=why,
            fix="a negative zero counts as a value; choose a pattern that holds, or leave this weight dense",
        )
    layout = Layout(grouping, tuple(weight.shape), weight.dtype, code or smallest(grouping.pattern))
    mask_gm = _fill(grouping.rows(kept_w), grouping.pattern.n)
    bits_gm = grouping.rows(weight.detach().view(SAME_SIZE[weight.element_size()]))
    values = bits_gm.masked_select(mask_gm).view(layout.values_shape).view(weight.dtype)
    parts = [CODES[layout.code].encode(part, grouping.pattern) for part in mask_gm.split(_groups_at_once(layout))]
    return Packed(values, torch.cat(parts), layout)


def unpack(packed: Packed, name: str = "weight") -> Tensor:
    """The dense weight, bit for bit, contiguous.

    Args:
        packed: values and index of the shapes and types that its layout asks for.
        name: what errors call the weight.

    Raises:
        FormatError: a tensor of another shape or type, or an index that its code does not allow.
    """
    layout, pattern = packed.layout, packed.layout.grouping.pattern
    _check(packed, name)
    whole = SAME_SIZE[layout.dtype.itemsize]
    bits_gm = torch.zeros(layout.groups, pattern.m, dtype=whole, device=packed.values.device)
    values_gn = packed.values.view(whole).view(layout.groups, pattern.n)
    step, width = _groups_at_once(layout), CODES[layout.code].bits(pattern)
    for start in range(0, layout.groups, step):
        some = bits_gm[start : start + step]
        stream = packed.index[start * width // 8 : -(-(start + len(some)) * width // 8)]
        mask_gm = CODES[layout.code].decode(stream, pattern, len(some), name)
        some.masked_scatter_(mask_gm, values_gn[start : start + step])
    return layout.grouping.from_rows(bits_gm, layout.shape).view(layout.dtype)


def _fill(mask_gm: Tensor, n: int) -> Tensor:
    """Groups that keep fewer than N keep their first removed places as well."""
    missing = n - mask_gm.sum(1)
    short = missing.nonzero()[:, 0]
    if len(short):
        free = ~mask_gm[short]
        mask_gm[short] = ~free | (free & (free.cumsum(1) <= missing[short, None]))
    return mask_gm


def _groups_at_once(layout: Layout) -> int:
    """A multiple of 8, so that every part of an index but the last ends with a byte."""
    return _WEIGHTS_AT_ONCE // layout.grouping.pattern.m // 8 * 8


def _check(packed: Packed, name: str) -> None:
    layout = packed.layout
    for what, tensor, shape, dtype in (
        ("values", packed.values, layout.values_shape, layout.dtype),
        ("index", packed.index, layout.index_shape, torch.uint8),
    ):
        if tuple(tensor.shape) != shape or tensor.dtype != dtype:
            given = f"{what} {tensor.dtype} {list(tensor.shape)}"
            raise damaged(name, given, f"a packed {layout.grouping.pattern} weight has {what} {dtype} {list(shape)}")
    used = layout.index_bits % 8
    if used and int(packed.index[-1]) >> used:
        raise damaged(name, f"last byte {int(packed.index[-1])}", "the bits after the last group must be zero")
