"""The elementwise passes of a training step in compiled code: scores, and clearing pruned weights.

Each function does what it can and returns what it left; the callers, ``scores`` and ``masks``, use the PyTorch path for
the rest. Results are bit-identical (tested), so it does not matter which tensors take which path.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from nmlearn.native import library as native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # csrc/job.h, Dtype


@dataclass(frozen=True)
class WeightStep:
    """The step of torch.optim.SGD with momentum on the weights, done in the same pass as the step of their scores.

    Attributes:
        moments: SGD's momentum buffers, None for a weight that is not stepped.
        keeps: the bits of the masks by which weights are cleared in the same pass; None where nothing is pruned.
        momentum, weight_decay: SGD's; the learning rate is that of the scores.
    """

    moments: list[Tensor | None]
    keeps: list[Tensor | None]
    momentum: float
    weight_decay: float


# Steps scores as far as it can and returns the indices of the rest: see ``score_step_``.
ScorePass = Callable[..., list[int]]
_PLAIN = (Tensor, nn.Parameter)
_LAYOUTS = {
    2: (torch.contiguous_format,),
    4: (torch.channels_last, torch.contiguous_format),
    5: (torch.channels_last_3d, torch.contiguous_format),
}


class _ScoreStep(ctypes.Structure):
    """csrc/job.h, ScoreStep."""

    _fields_: ClassVar = [
        *((name, ctypes.c_float) for name in ("momentum", "weight_decay", "minus_lr")),
        *((name, ctypes.c_float) for name in ("weight_momentum", "weight_weight_decay")),
        ("dtype", ctypes.c_int32),
    ]


class _ScoreTensor(ctypes.Structure):
    """csrc/job.h, ScoreTensor."""

    _fields_: ClassVar = [("size", ctypes.c_int64)] + [
        (name, ctypes.c_void_p) for name in ("score", "momentum", "grad", "weight", "weight_moment", "keep")
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    lib = native.library()
    if lib is not None:
        lib.nm_score_step.argtypes = [ctypes.POINTER(_ScoreStep), ctypes.c_void_p, ctypes.c_int64]
        lib.nm_clear.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    return lib


def score_step_(
    scores: list[Tensor],
    momenta: list[Tensor],
    grads: list[Tensor],
    weights: list[Tensor],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> list[int]:
    """:func:`nmlearn.maths.scores.sgd_` for float32 scores of float32 or bfloat16 weights in dense CPU memory.

    Returns:
        The indices of the weights whose scores were not stepped, for the PyTorch path.
    """
    nothing: list[Tensor | None] = [None] * len(scores)
    own = WeightStep(nothing, nothing, 0.0, 0.0)
    lists = (scores, momenta, grads, weights)
    return score_and_weight_step_(*lists, own, lr=lr, momentum=momentum, weight_decay=weight_decay)[0]


def score_and_weight_step_(
    scores: list[Tensor],
    momenta: list[Tensor],
    grads: list[Tensor],
    weights: list[Tensor],
    own: WeightStep,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> tuple[list[int], list[int]]:
    """:func:`score_step_`, and the optimizer's step on the weights in the same pass.

    Returns:
        The indices of the weights whose scores were not stepped, and of the weights that were stepped themselves.
    """
    lib = _library()
    if lib is None:
        return list(range(len(scores))), []
    rows = list(zip(scores, momenta, grads, weights, own.moments, own.keeps, strict=True))
    done = [i for i, row in enumerate(rows) if _fits(*row[:4])]
    stepped = [i for i in done if _steps_too(*rows[i][2:])]
    for dtype, code in _DTYPES.items():
        some = [_score_tensor(*(rows[i] if i in stepped else rows[i][:4])) for i in done if weights[i].dtype == dtype]
        if some:
            step = _ScoreStep(momentum, weight_decay, -lr, own.momentum, own.weight_decay, code)
            lib.nm_score_step(ctypes.byref(step), (_ScoreTensor * len(some))(*some), len(some))
    increment_version([x[i] for x in (scores, momenta) for i in done])
    increment_version([x for i in stepped for x in rows[i][3:5] if x is not None])
    return [i for i in range(len(rows)) if i not in done], stepped


def weight_step_(grads: list[Tensor], weights: list[Tensor], own: WeightStep, *, lr: float) -> list[int]:
    """The optimizer's step on weights without scores, and clearing what is pruned, in one pass; as bits equal to torch.

    Returns:
        The indices of the weights that were stepped.
    """
    lib = _library()
    rows = list(zip(grads, weights, own.moments, own.keeps, strict=True))
    stepped = [i for i, row in enumerate(rows) if _steps_too(*row)] if lib is not None else []
    if lib is not None and stepped:
        some = [_score_tensor(None, None, *rows[i]) for i in stepped]
        step = _ScoreStep(0.0, 0.0, -lr, own.momentum, own.weight_decay, _DTYPES[torch.float32])
        lib.nm_score_step(ctypes.byref(step), (_ScoreTensor * len(some))(*some), len(some))
    increment_version([x for i in stepped for x in rows[i][1:3] if x is not None])
    return stepped


def _fits(score: Tensor, momentum: Tensor, grad: Tensor, weight: Tensor) -> bool:
    known = score.dtype == momentum.dtype == torch.float32 and grad.dtype == weight.dtype and weight.dtype in _DTYPES
    return known and _alike(score, momentum, grad, weight)


def _steps_too(grad: Tensor, weight: Tensor, moment: Tensor | None, keep: Tensor | None) -> bool:
    if moment is None or not grad.dtype == weight.dtype == moment.dtype == torch.float32:
        return False
    return _alike(weight, grad, moment, *([] if keep is None else [keep]))


def _score_tensor(
    score: Tensor | None,
    momentum: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    moment: Tensor | None = None,
    keep: Tensor | None = None,
) -> _ScoreTensor:
    places = [x.data_ptr() if x is not None else None for x in (score, momentum, grad, weight, moment, keep)]
    return _ScoreTensor(weight.numel(), *places)


def clear_(x_w: Tensor, keep_w: Tensor) -> bool:
    """:func:`nmlearn.maths.masks.clear_` if values and bits share a layout in dense CPU memory. Returns if it ran."""
    lib = _library()
    if lib is None or keep_w.dtype != torch.int8 or not _alike(x_w, keep_w):
        return False
    lib.nm_clear(x_w.data_ptr(), keep_w.data_ptr(), x_w.element_size(), x_w.numel())
    increment_version(x_w)
    return True


def _alike(*tensors: Tensor) -> bool:
    """Whether plain CPU tensors have their elements in the same order, in memory without holes."""
    first = tensors[0]
    for t in tensors:
        if type(t) not in _PLAIN or not t.is_cpu or t.shape != first.shape:
            return False
        if t.layout != torch.strided or t.is_neg() or t.is_inference():
            return False
    # Strides of dimensions of length 1 are arbitrary, so the usual layouts are checked by name.
    for layout in _LAYOUTS.get(first.dim(), ()):
        if all(t.is_contiguous(memory_format=layout) for t in tensors):
            return True
    return all(t.stride() == first.stride() for t in tensors) and _dense(first)


def _dense(x: Tensor) -> bool:
    """Whether the elements fill their memory without holes or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
