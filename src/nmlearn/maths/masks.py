"""Masks: which weights are kept.

A mask is bool, of the weight's shape. In a state it is stored as *bits*: int8, 0 for a pruned weight and -1 (all
bits set) for a kept one. An integer AND with the sign-extended bits clears a pruned weight whatever it contains (NaN,
infinity, a negative zero) to exactly +0.0 and leaves a kept one as it is, at the speed of a copy; multiplying by a mask
would keep NaN and make negative zeros, and masked_fill is ten times slower on a CPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from nmlearn.native import training

# The key of a mask's bits in the state of a weight.
KEEP = "keep"
# The integer type with the bits of a floating-point one, by bytes.
SAME_SIZE = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Types without a negative zero: a sign alone is their NaN.
_ONE_ZERO = {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}
# Up to this many places are compared with one another, more are sorted.
_COMPARED = 16
# Sorting needs about 20 bytes a value; this bounds the extra memory of one call to about 80 MB.
_VALUES_AT_ONCE = 1 << 22


def top(scores: Tensor, count: int) -> Tensor:
    """Exactly ``count`` true per row: the highest scores; among equal scores the lowest index wins.

    The choice is the same on every rank, device and run, which torch.topk does not promise for ties.

    Args:
        scores: ``[..., K]``, any real dtype. NaN counts as the highest.
        count: how many to choose, 0 <= count <= K.

    Returns:
        bool ``[..., K]``.
    """
    if 1 < scores.shape[-1] <= _COMPARED:
        return _top_of_few(scores, count)
    rows = scores.reshape(-1, scores.shape[-1])
    chosen = torch.zeros(rows.shape, dtype=torch.bool, device=scores.device)
    step = max(1, _VALUES_AT_ONCE // max(1, rows.shape[-1]))
    for some, out in zip(rows.split(step), chosen.split(step), strict=True):
        order = some.argsort(dim=-1, descending=True, stable=True)
        out.scatter_(-1, order[:, :count], True)
    return chosen.view(scores.shape)


def _top_of_few(scores: Tensor, count: int) -> Tensor:
    """The same by comparing every two places: no sort, and three times as fast on a CPU."""
    places = scores.movedim(-1, 0).contiguous()  # [K, ...]: what is compared lies together
    lost, better = places.isnan(), torch.zeros(places.shape, dtype=torch.uint8, device=scores.device)
    for i, j in itertools.combinations(range(len(places)), 2):
        beats = (places[i] >= places[j]).logical_or_(lost[i])
        better[j] += beats
        better[i] += beats.logical_not_()
    return (better < count).movedim(0, -1)


def finite_first(magnitudes: Tensor) -> Tensor:
    """Nonnegative magnitudes with -1 in place of those that are not finite: a lost weight is the first to go."""
    return magnitudes.nan_to_num(-1.0, posinf=-1.0)


def bits(mask_w: Tensor) -> Tensor:
    """A bool mask as int8 bits: -1 kept, 0 removed; the mask's memory layout is kept."""
    return mask_w.to(torch.int8).neg_()


def full_bits(weight: Tensor) -> Tensor:
    """The bits that keep everything, with the shape, device and memory layout of the weight."""
    return torch.full_like(weight, -1, dtype=torch.int8)


def from_bits(keep_w: Tensor) -> Tensor:
    """The bool mask that bits stand for."""
    return keep_w != 0


def density(mask_w: Tensor) -> float:
    """The share of true in a bool mask; 1 for an empty one."""
    return float(mask_w.sum()) / mask_w.numel() if mask_w.numel() else 1.0


def counts(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """How many entries are kept, how many differ from those before, and how many there are, over all masks.

    Args:
        now, before: name -> bool mask. What is not in ``before`` has not changed.

    Returns:
        int64 ``[3]``, on the device of the first mask: several may lie on several. Nobody waits for a device.
    """
    found = torch.zeros(3, dtype=torch.int64, device=next(iter(now.values())).device if now else "cpu")
    for name, mask in now.items():
        changed = (mask ^ before[name]).sum() if name in before else mask.new_zeros((), dtype=torch.int64)
        entries = torch.full_like(changed, mask.numel())
        found += torch.stack([mask.sum(), changed, entries]).to(found.device)
    return found


def clear_(x_w: Tensor, keep_w: Tensor) -> Tensor:
    """Set what is removed to +0.0, in place; kept values keep every bit.

    Args:
        x_w: float tensor of any width.
        keep_w: int8 bits of the same shape.
    """
    if not training.clear_(x_w, keep_w):
        x_w.view(SAME_SIZE[x_w.element_size()]).bitwise_and_(keep_w)
    return x_w


def kept(x_w: Tensor, mask_w: Tensor) -> Tensor:
    """A new tensor with +0.0 in place of what a bool mask removes, whatever stands there."""
    return torch.where(mask_w, x_w, 0.0)


def nonzero_bits(x_w: Tensor) -> Tensor:
    """Whether any bit of a value but its sign is set: bool of the same shape. Zeros of both signs are not.

    It asks bits, because ``x_w != 0`` takes subnormal numbers for zeros under ``torch.set_flush_denormal``.

    Args:
        x_w: floating point of any width; any memory layout.
    """
    bits_w = x_w.view(SAME_SIZE[x_w.element_size()])
    kept_w = bits_w != 0
    return kept_w if x_w.dtype in _ONE_ZERO else kept_w.logical_and_(bits_w != torch.iinfo(bits_w.dtype).min)
