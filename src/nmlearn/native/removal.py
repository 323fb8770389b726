"""Removing combinations in compiled code."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from nmlearn.native import library as native


@functools.cache
def _library() -> ctypes.CDLL | None:
    lib = native.library()
    if lib is not None:
        pointer, count = ctypes.c_void_p, ctypes.c_int64
        lib.nm_remove.argtypes = [pointer, pointer, pointer, *[count] * 5, pointer, pointer]
    return lib


def combinations_(alive_gc: Tensor, s_gm: Tensor, table_cm: Tensor, survivors: int, kept_gm: Tensor) -> bool:
    """:func:`nmlearn.maths.elimination.combinations_` for float32 scores of weights in CPU memory; same survivors.

    They are the same where sums of scores are exact in float64: always, unless scores in one group differ by more than
    nine orders of magnitude.

    Args:
        table_cm: the combinations, zeros and ones.
        kept_gm: bool, contiguous; set to the weights that a surviving combination contains.

    Returns:
        Whether it was done; if not, nothing has changed.
    """
    lib, (count, m) = _library(), table_cm.shape
    tensors = (alive_gc, s_gm, kept_gm)
    plain = all(type(t) is Tensor and t.is_cpu and t.layout == torch.strided for t in tensors)
    if (
        lib is None
        or not plain
        or (alive_gc.dtype, s_gm.dtype, kept_gm.dtype) != (torch.bool, torch.float32, torch.bool)
    ):
        return False
    alike = s_gm.shape == kept_gm.shape == (*alive_gc.shape[:-1], m) and alive_gc.shape[-1] == count
    if not alike or survivors < 0 or not (alive_gc.is_contiguous() and kept_gm.is_contiguous()):
        return False
    scores = s_gm.contiguous()
    members = table_cm.nonzero()[:, 1].to(torch.uint8)
    sets = (table_cm.long() << torch.arange(m, device="cpu")).sum(-1)
    sizes = (kept_gm.numel() // m, survivors, count, len(members) // count, m)
    places = (alive_gc.data_ptr(), kept_gm.data_ptr(), scores.data_ptr())
    done: int = lib.nm_remove(*places, *sizes, members.data_ptr(), sets.data_ptr())
    return done == 0
