"""The elementwise passes of a training step in compiled code: scores, and clearing pruned weights.

Each function does what it can and returns what it left; the callers, ``scores`` and ``masks``, use the PyTorch path for
the rest. Results are bit-identical (tested), so it does not matter which tensors take which path.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from nmlearn.native import library as native

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}  # csrc/job.h, Dtype
_MOMENTS, _WEIGHTS = 0, 1  # csrc/job.h, Part


class AdamWStep(ctypes.Structure):
    """The numbers of one step of torch.optim.AdamW; csrc/job.h, AdamWStep."""

    _fields_: ClassVar = [
        (name, ctypes.c_float)
        for name in ("shrink", "lerp", "beta2", "new_second", "root_bias", "epsilon", "minus_size")
    ]


@dataclass(frozen=True)
class WeightStep:
    """The optimizer's step on the weights, done in the same pass as the step of their scores.

    Attributes:
        moments: SGD's momentum buffers or AdamW's first moments, None for a weight that is not stepped.
        keeps: the bits of the masks by which weights are cleared in the same pass; None where nothing is pruned.
        momentum, weight_decay: of SGD with momentum; its learning rate is that of the scores.
        seconds: AdamW's second moments; empty for SGD.
        adamw: the numbers of AdamW's step, by weight.
        roots: float32 scratch for AdamW; pieces of this size are stepped at once.
    """

    moments: list[Tensor | None]
    keeps: list[Tensor | None]
    momentum: float = 0.0
    weight_decay: float = 0.0
    seconds: list[Tensor | None] = field(default_factory=list)
    adamw: list[AdamWStep | None] = field(default_factory=list)
    roots: Tensor | None = None

    def rows(self) -> list[_Row]:
        """What a weight is stepped with, by weight: moment, keep, second moment and numbers."""
        nothing = [None] * len(self.moments)
        return list(zip(self.moments, self.keeps, self.seconds or nothing, self.adamw or nothing, strict=True))


_Row = tuple[Tensor | None, Tensor | None, Tensor | None, AdamWStep | None]
# Steps scores as far as it can and returns the indices of the rest: see ``score_step_``.
ScorePass = Callable[..., list[int]]
_PLAIN = (Tensor, nn.Parameter)
_LAYOUTS = {
    4: (torch.channels_last, torch.contiguous_format),
    5: (torch.channels_last_3d, torch.contiguous_format),
}


class _ScoreStep(ctypes.Structure):
    """csrc/job.h, ScoreStep."""

    _fields_: ClassVar = [
        *((name, ctypes.c_float) for name in ("momentum", "weight_decay", "minus_lr")),
        *((name, ctypes.c_float) for name in ("weight_momentum", "weight_weight_decay")),
        *((name, ctypes.c_int32) for name in ("dtype", "part")),
    ]


class _ScoreTensor(ctypes.Structure):
    """csrc/job.h, ScoreTensor."""

    _fields_: ClassVar = [
        ("size", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("score", "momentum", "grad", "weight", "weight_moment", "keep")),
        *((name, ctypes.c_void_p) for name in ("second_moment", "root", "adamw")),
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
    own = WeightStep(nothing, nothing)
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
    rows, owns = list(zip(scores, momenta, grads, weights, strict=True)), own.rows()
    done = [i for i, row in enumerate(rows) if _fits(*row)]
    stepped = [i for i in done if _steps_too(grads[i], weights[i], *owns[i])]
    did, ahead = set(done), set(stepped)
    for dtype, code in _DTYPES.items():
        these = [i for i in done if weights[i].dtype == dtype]
        some = [_score_tensor(*rows[i], *(owns[i] if i in ahead else ())) for i in these]
        _run(lib, _ScoreStep(momentum, weight_decay, -lr, own.momentum, own.weight_decay, code), some, own.roots)
    increment_version([x[i] for x in (scores, momenta) for i in done])
    increment_version([x for i in stepped for x in (weights[i], owns[i][0], owns[i][2]) if x is not None])
    return [i for i in range(len(rows)) if i not in did], stepped


def weight_step_(grads: list[Tensor], weights: list[Tensor], own: WeightStep, *, lr: float) -> list[int]:
    """The optimizer's step on weights without scores, and clearing what is pruned, in one pass; as bits equal to torch.

    Returns:
        The indices of the weights that were stepped.
    """
    lib = _library()
    owns = own.rows() if lib is not None else []
    stepped = [i for i, each in enumerate(owns) if _steps_too(grads[i], weights[i], *each)]
    if lib is not None and stepped:
        some = [_score_tensor(None, None, grads[i], weights[i], *owns[i]) for i in stepped]
        step = _ScoreStep(0.0, 0.0, -lr, own.momentum, own.weight_decay, _DTYPES[torch.float32])
        _run(lib, step, some, own.roots)
    increment_version([x for i in stepped for x in (weights[i], owns[i][0], owns[i][2]) if x is not None])
    return stepped


def _run(lib: ctypes.CDLL, step: _ScoreStep, some: list[_ScoreTensor], roots: Tensor | None) -> None:
    """Step tensors: all in one pass, but for AdamW, whose square roots torch takes between two."""
    _call(lib, step, [tensor for tensor in some if not tensor.adamw])
    if roots is not None:
        for pieces in _batches([tensor for tensor in some if tensor.adamw], roots):
            step.part = _MOMENTS
            _call(lib, step, pieces)
            these = roots[: sum(piece.size for piece in pieces)]
            torch.sqrt(these, out=these)
            step.part = _WEIGHTS
            _call(lib, step, pieces)


def _call(lib: ctypes.CDLL, step: _ScoreStep, some: list[_ScoreTensor]) -> None:
    if some:
        lib.nm_score_step(ctypes.byref(step), (_ScoreTensor * len(some))(*some), len(some))


def _batches(some: list[_ScoreTensor], roots: Tensor) -> Iterator[list[_ScoreTensor]]:
    """The tensors cut into pieces, as many at once as have room for their roots."""
    batch: list[_ScoreTensor] = []
    room, place = roots.numel(), roots.data_ptr()
    for tensor in some:
        start = 0
        while start < tensor.size:
            size = min(room, tensor.size - start)
            batch.append(_piece(tensor, start, size, place))
            room, place, start = room - size, place + 4 * size, start + size
            if not room:
                yield batch
                batch, room, place = [], roots.numel(), roots.data_ptr()
    if batch:
        yield batch


def _piece(tensor: _ScoreTensor, start: int, size: int, root: int) -> _ScoreTensor:
    """``size`` values of a float32 tensor from ``start`` on, in the order of memory."""
    floats = ("score", "momentum", "grad", "weight", "weight_moment", "second_moment")
    places = {name: getattr(tensor, name) and getattr(tensor, name) + 4 * start for name in floats}
    return _ScoreTensor(size, **places, keep=tensor.keep and tensor.keep + start, root=root, adamw=tensor.adamw)


def _fits(score: Tensor, momentum: Tensor, grad: Tensor, weight: Tensor) -> bool:
    known = score.dtype == momentum.dtype == torch.float32 and grad.dtype == weight.dtype and weight.dtype in _DTYPES
    return known and _alike(score, momentum, grad, weight)


def _steps_too(
    grad: Tensor,
    weight: Tensor,
    moment: Tensor | None,
    keep: Tensor | None,
    second: Tensor | None,
    adamw: AdamWStep | None,
) -> bool:
    if moment is None or (adamw is not None and second is None):
        return False
    known = [weight, grad, moment, *([] if second is None else [second])]
    if any(x.dtype != torch.float32 for x in known):
        return False
    return _alike(*known, *([] if keep is None else [keep]))


def _score_tensor(
    score: Tensor | None,
    momentum: Tensor | None,
    grad: Tensor,
    weight: Tensor,
    moment: Tensor | None = None,
    keep: Tensor | None = None,
    second: Tensor | None = None,
    adamw: AdamWStep | None = None,
) -> _ScoreTensor:
    tensors = (score, momentum, grad, weight, moment, keep, second)
    places = [x.data_ptr() if x is not None else None for x in tensors]
    return _ScoreTensor(weight.numel(), *places, None, None if adamw is None else ctypes.addressof(adamw))


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
    strides = first.stride()
    if all(t.stride() == strides for t in tensors[1:]):
        return first.is_contiguous() or _dense(first)
    # Strides of dimensions of length 1 are arbitrary, so the usual layouts are checked by name.
    layouts = _LAYOUTS.get(first.dim(), (torch.contiguous_format,))
    return any(all(t.is_contiguous(memory_format=layout) for t in tensors) for layout in layouts)


def _dense(x: Tensor) -> bool:
    """Whether the elements fill their memory without holes or overlaps, in whatever order of dimensions."""
    expected = 1
    for stride, length in sorted(zip(x.stride(), x.shape, strict=True)):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True
